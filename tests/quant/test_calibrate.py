"""GPTQ and AWQ: balancing changes nothing by itself, and both lose less than rounding where inputs are uneven."""

from __future__ import annotations

import copy

import pytest
import torch

from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.model.model import Block, Model
from terakoya.quant import calibrate as c
from terakoya.quant.calibrate import Inputs, calibrate, clipped, gptq
from terakoya.quant.codecs import Int4, Int8
from terakoya.quant.linear import linears, packed_layers, quantise
from tests.quant.small import IDS, logits, lost, small

TEXTS = [torch.randint(0, 259, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (256, 200, 251, 256)]


def off(weight: torch.Tensor, parts: dict[str, torch.Tensor], inputs: Inputs, codec: Int4 | Int8) -> float:
    """What the outputs lose, squared."""
    gone = codec.decode(parts, weight.shape[1]) - weight
    return ((gone @ inputs.squares) * gone).sum().item()


@pytest.mark.parametrize("group", [32, 0])
def test_gptq_loses_less_than_the_same_grid_rounded(group: int) -> None:
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(160, 160, generator=g) / 12 + torch.eye(160)
    x = (torch.randn(800, 160, generator=g) * torch.exp(torch.randn(160, generator=g))) @ mix
    weight = torch.randn(48, 160, generator=g)
    inputs, codec = Inputs(160), Int4(group)
    inputs.add(x[:500])
    inputs.add(x[500:])
    assert torch.allclose(inputs.squares, x.T @ x, rtol=1e-3, atol=1e-2)
    rounded = off(weight, codec.encode(weight), inputs, codec)
    clip = off(weight, clipped(weight, inputs, codec), inputs, codec)
    moved = off(weight, gptq(weight, inputs, codec), inputs, codec)
    assert clip < rounded
    assert moved < 0.7 * clip


def test_a_dead_column_does_no_harm() -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    x[:, 5] = 0
    inputs = Inputs(64)
    inputs.add(x)
    w = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
    for pack in (gptq, clipped):
        back = Int4(32).decode(pack(w, inputs, Int4(32)), 64)
        assert torch.isfinite(back).all()
        assert (back - w).abs().max() < 1.5


@pytest.mark.parametrize("family", ["smollm2", "gpt2", "gemma2", "phi3", "pythia", "olmo2", "mixtral"])
def test_balancing_alone_changes_nothing(family: str) -> None:
    """Factors move from inputs to weights: through norms with and without offset, values and gated layers."""
    model = small(family)
    before, moved = logits(model), 0
    ctx = Packed([len(IDS)])
    with torch.no_grad():
        x = model.embed(IDS, ctx)
        for i, (block, s) in enumerate(zip(model.layers, model.spec.layers(), strict=True)):
            assert isinstance(block, Block)
            wanted = {n: m for n, m in linears(model) if n.startswith(f"layers.{i}.") and type(m) is torch.nn.Linear}
            for joint in c._joints(block, s, f"layers.{i}", wanted):
                width = joint.readers[0].in_features
                width = width if joint.heads is None else width * joint.heads[1] // joint.heads[0]
                factors = torch.exp(torch.randn(width, generator=torch.Generator().manual_seed(i)))
                joint.divide(factors)
                for reader in joint.readers:
                    reader.weight.mul_(c._to_heads(factors, joint.heads) if joint.heads else factors)
                moved += 1
            x = block(x, ctx)
    assert moved >= 2
    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-4 * before.abs().max().item())


def test_eight_bits_are_fitted_too() -> None:
    """What a layer gives is nearer than with the same scales rounded to; and it stays what the program takes."""
    g = torch.Generator().manual_seed(1)
    weight, inputs, codec = torch.randn(24, 160, generator=g), Inputs(160), Int8(32)
    inputs.add(torch.randn(400, 160, generator=g) @ torch.randn(160, 160, generator=g) / 12)
    fitted, rounded = gptq(weight, inputs, codec), codec.encode(weight)
    assert torch.equal(fitted["scales"], rounded["scales"]) and fitted["codes"].dtype == torch.int8
    assert off(weight, fitted, inputs, codec) < 0.7 * off(weight, rounded, inputs, codec)
    model = calibrate(small(), TEXTS, codec, "gptq")
    assert all(layer.codec == codec for layer in packed_layers(model).values())
    assert lost(model, logits(small())) < 0.06


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_models_lose_less_than_rounded_ones(method: c.Method) -> None:
    codec = Int4(64)
    rounded, fitted = small(depth=3), small(depth=3)
    before = logits(rounded)
    quantise(rounded, codec, table=None)
    calibrate(fitted, TEXTS, codec, method)
    assert packed_layers(fitted).keys() == packed_layers(rounded).keys()
    assert lost(fitted, before) < lost(rounded, before)


def test_experts_and_the_unreached_are_rounded() -> None:
    model = small("mixtral")
    plain = copy.deepcopy(model)
    calibrate(model, [t[:40] for t in TEXTS], Int4(32), "gptq")
    quantise(plain, Int4(32), table=None)
    assert packed_layers(model).keys() == packed_layers(plain).keys()
    name = next(n for n in packed_layers(model) if ".experts." in n)
    assert torch.equal(packed_layers(model)[name].dense(), packed_layers(plain)[name].dense())


def test_what_cannot_be_calibrated_is_said() -> None:
    def fails(model: Model, texts: list[list[int]], codec: Int4, said: str) -> None:
        with pytest.raises(TerakoyaError, match=said):
            calibrate(model, texts, codec, "gptq")

    fails(small(), [], Int4(), "texts")
    fails(small(), [[1]], Int4(), "texts")
    fails(small(), [[1] * 300], Int4(), "context")
    fails(small(), TEXTS, Int4(48), r"layers\.0\.attn\.q.*48")
