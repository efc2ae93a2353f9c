"""One packed layer for all codecs: errors within a step, the same as its dense copy, names kept, files and back."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terakoya.errors import TerakoyaError
from terakoya.model.build import parameters
from terakoya.quant.codecs import FP8, KINDS, NF4, Blocks, Codec, Int4, Int8, from_data, named
from terakoya.quant.linear import Packed, nbytes, packed_layers, quantise, unpacked
from terakoya.quant.native import blocks, program_parameters
from terakoya.zoo import convert, lineage
from tests.quant.small import logits, lost, small, tokenizer

BLOCKS = [Blocks(t) for t in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")]
CODECS: list[Codec] = [Int8(0), Int8(), Int4(), Int4(64), NF4(), NF4(False), FP8(), *BLOCKS]
BOUNDS = {"int8": 0.06, "fp8": 0.2, "Q8_0": 0.06, "Q5_0": 0.25, "Q5_1": 0.25}  # of logits; four bits: 0.5
FAMILIES = ("smollm2", "gpt2", "mixtral", "olmo2", "gemma2", "qwen3-moe", "gpt-oss")


def bound(codec: Codec) -> float:
    return next((b for name, b in BOUNDS.items() if str(codec).startswith(name)), 0.5)


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_packed_is_its_dense_copy_and_near_the_original(codec: Codec) -> None:
    model = small()
    before, size = logits(model), nbytes(model)
    names = {n for n, _ in model.named_modules()}
    quantise(model, codec)
    assert {n for n, _ in model.named_modules()} == names
    assert nbytes(model) < 0.36 * size
    after = logits(model)
    assert lost(model, before) < bound(codec)
    plain = unpacked(model)
    assert not packed_layers(plain)
    torch.testing.assert_close(logits(plain), after, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(logits(copy.deepcopy(model)), after, atol=0, rtol=0)


@given(st.integers(1, 9), st.sampled_from([64, 128, 192]), st.integers(-12, 3), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_no_number_moves_further_than_half_a_step(rows: int, columns: int, size: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=g) * 2.0**size
    w[torch.rand(rows, columns, generator=g) < 0.1] = 0
    for codec, levels, group in (
        (Int8(0), 127, columns),
        (Int8(32), 127, 32),
        (Int4(32), 7.5, 32),
        (Int4(0), 7.5, columns),
    ):
        parts = codec.encode(w)
        assert {n: tuple(t.shape) for n, t in parts.items()} == {
            n: shape for n, shape in codec.sizes(rows, columns).items() if n in parts
        }
        back = codec.decode(parts, columns)
        reach = w.view(rows, -1, group).abs().amax(-1, keepdim=True)
        # half a step, and what rounding the scale to half precision moves the last level by (tiny scales: 2⁻²⁴ steps)
        step = reach / levels * (0.5 + 2**-4) + 127 * 2.0**-24
        assert ((back - w).view(rows, -1, group).abs() <= step).all(), codec
        some = torch.tensor([0, rows - 1, 0])
        assert torch.equal(codec.decode(parts, columns, some), back[some])
    for codec in (NF4(), NF4(False), FP8(), *BLOCKS):
        parts = codec.encode(w if rows % 2 == 0 or not isinstance(codec, NF4) else w.repeat(2, 1))
        back = codec.decode(parts, columns)
        assert torch.equal(codec.decode(parts, columns, slice(0, 1)), back[:1])
        assert (back[:rows] - w).abs().max() <= 0.16 * w.abs().max() + 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("codec", [Int8(16), Int4(16)], ids=str)
def test_folders_come_back(family: str, codec: Codec, tmp_path: Path) -> None:
    """Fused, transposed and stacked layouts, tied and own heads: what is written is what is read."""
    model = small(family)
    quantise(model, codec)
    after = logits(model)
    convert.save(convert.Loaded(model, tokenizer(), family), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["quant_method"] == "terakoya"
    again = convert.load(tmp_path)
    assert packed_layers(again.model).keys() == packed_layers(model).keys()
    assert "quantization_config" not in again.config
    assert torch.equal(logits(again.model), after)
    assert nbytes(again.model) == nbytes(model)
    plain = convert.plain(again)
    convert.save(plain, tmp_path / "plain")
    torch.testing.assert_close(logits(convert.load(tmp_path / "plain").model), after, atol=2e-5, rtol=1e-5)


def test_every_codec_describes_itself() -> None:
    for codec in CODECS:
        assert from_data(json.loads(json.dumps(codec.data())), "here") == codec
    assert named("int4", 32) == Int4(32)
    assert named("Q4_K") == Blocks("Q4_K")
    for bad in ({}, {"kind": "int5"}, {"kind": "int4"}, {"kind": "int4", "group": "64"}, {"kind": "gguf", "type": "X"}):
        with pytest.raises(TerakoyaError, match="here"):
            from_data(bad, "here")
    with pytest.raises(TerakoyaError, match=r"int5.*did you mean|int5"):
        named("int5")
    with pytest.raises(TerakoyaError, match="group"):
        named("nf4", 64)
    assert {c().kind for c in KINDS} >= {"int8", "int4", "nf4", "fp8", "gguf"}


def test_rows_that_do_not_fit_are_named() -> None:
    with pytest.raises(TerakoyaError, match=r"layers\.0\.attn\.q.*64 columns.*groups of 48"):
        quantise(small(), Int4(48))
    with pytest.raises(TerakoyaError, match=r"blocks of 256"):
        quantise(small(), Blocks("Q4_K"))


@pytest.mark.parametrize("harm", ["missing", "more", "shape", "codec", "method", "stranger"])
def test_a_damaged_folder_says_what_is_wrong(harm: str, tmp_path: Path) -> None:
    from terakoya.zoo.weights import open_weights, save_weights

    model = small()
    quantise(model, Int4(32))
    convert.save(convert.Loaded(model, tokenizer(), "smollm2"), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    told = config["quantization_config"]
    weights = open_weights(tmp_path)
    tensors = {n: weights.get(n).clone() for n in weights}
    name = "terakoya.layers.0.attn.q.weight"
    if harm == "missing":
        del tensors[f"{name}.scales"]
    elif harm == "more":
        tensors["terakoya.layers.9.attn.q.weight.codes"] = tensors[f"{name}.codes"]
    elif harm == "shape":
        tensors[f"{name}.scales"] = tensors[f"{name}.scales"][:-1].contiguous()
    elif harm == "codec":
        told["codecs"][0]["group"] = -1.5
    elif harm == "method":
        told["quant_method"] = "aqlm"
    else:
        told["weights"]["layers.7.mlp.up.weight"] = 0
    path.write_text(json.dumps(config), encoding="utf-8")
    save_weights(tmp_path, tensors)
    wanted = {
        "missing": r"layers\.0\.attn\.q\.weight.*scales", "more": r"layers\.9", "shape": r"part scales",
        "codec": "codecs", "method": "aqlm", "stranger": r"layers\.7",
    }  # fmt: skip
    with pytest.raises(TerakoyaError, match=wanted[harm]) as error:
        convert.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("codec", [Int8(), Int8(64), Int4(), Int4(64), *BLOCKS[:3]], ids=str)
def test_the_native_library_takes_packed_weights_as_they_are(codec: Codec) -> None:
    from terakoya.quant.blocks import BLOCKS as KNOWN
    from terakoya.quant.blocks import dequantise

    model = small()
    quantise(model, codec, table=Int8(32))
    taken = program_parameters(model)
    assert set(taken) == set(parameters(unpacked(model)))
    for name, layer in packed_layers(model).items():
        found = blocks(layer)
        assert found is not None, name
        back = dequantise(found.rows.numpy(), KNOWN[found.kind])
        np.testing.assert_array_equal(back, layer.dense().view(back.shape).numpy(), err_msg=name)


def test_gradients_pass_through_packed_layers() -> None:
    layer = torch.nn.Linear(64, 32)
    dense = copy.deepcopy(layer)
    holder = torch.nn.Module()
    from terakoya.quant.linear import put

    codec = Int4(32)
    put(layer, codec, codec.encode(layer.weight.detach()))
    assert isinstance(layer, Packed)
    dense.weight = torch.nn.Parameter(layer.dense())
    x, y = (torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    layer(x).square().sum().backward()
    dense(y).square().sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad)
    del holder


def test_families_without_other_numbers_are_refused() -> None:
    bare = small("olmo")
    left = [n for n, _ in bare.named_parameters() if not n.startswith(("layers", "embed", "head"))]
    if left or lineage.base("olmo").norm is None:
        pytest.skip("this family keeps numbers of its own")
    with pytest.raises(TerakoyaError, match="no number unpacked"):
        quantise(bare, Int8(16))
