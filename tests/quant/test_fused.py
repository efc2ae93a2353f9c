"""Which packed layers multiply without becoming numbers: only where that was tried, and gave the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from terakoya.ops import packed_linear
from terakoya.quant import fused
from terakoya.quant.codecs import FP8, NF4, Codec, Int4, Int8
from terakoya.quant.linear import PackedLinear, quantise
from tests.quant.small import IDS, logits, small


def layer(codec: Codec, rows: int = 48, columns: int = 64) -> PackedLinear:
    made = nn.Linear(columns, rows)
    parts = codec.encode(made.weight.detach())
    fused_layer = nn.Sequential(made)
    from terakoya.quant.linear import put

    put(fused_layer[0], codec, parts)
    found = fused_layer[0]
    assert isinstance(found, PackedLinear)
    return found


def exact(x: Tensor, codes: Tensor, scales: Tensor, minima: Tensor | None, order: Tensor | None = None) -> Tensor:
    """What Triton's kernels compute."""
    codec: Int4 | Int8 = Int8() if minima is None else Int4()
    parts = {"codes": codes, "scales": scales} | ({} if minima is None else {"minima": minima})
    parts |= {} if order is None else {"order": order}
    return (x.float() @ codec.decode(parts, x.shape[1]).T).to(x.dtype)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have Triton, as it seems; the numbers of rows that it was asked for."""
    asked: list[int] = []

    def called(x: Tensor, *parts: Tensor | None) -> Tensor:
        asked.append(len(x))
        return exact(x, *parts)  # type: ignore[arg-type]

    monkeypatch.setattr(fused, "has_triton", lambda: True)
    monkeypatch.setattr(fused, "integers", called)
    return asked


def test_a_model_computes_the_same_and_says_how(triton: list[int]) -> None:
    model = quantise(small(), Int4(32))
    before = logits(model)
    words = fused.enable(model)
    assert words == "packed layers: 14 × int4 by 32 by Triton up to 128 rows"
    assert len(triton) == len({m.shape for m in model.modules() if isinstance(m, PackedLinear)})
    triton.clear()
    assert torch.allclose(logits(model), before, atol=1e-3)
    assert set(triton) == {len(IDS)}
    triton.clear()
    model.layers[0].mlp.up(torch.randn(fused.FEW + 1, 64))  # type: ignore[operator, union-attr]
    assert not triton


def test_what_no_kernel_takes_becomes_numbers(triton: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused.way(layer(NF4())) == "no kernel"
    assert fused.way(layer(Int4(16))) == "groups too narrow"
    assert fused.way(layer(FP8())) == "no product in fp8 here"
    monkeypatch.setattr(fused, "has_triton", lambda: False)
    model = quantise(small(), Int8(32))
    assert fused.enable(model) == "packed layers: 14 × int8 by 32 as numbers (no triton)"
    assert not triton
    assert fused.enable(small()) == ""


@pytest.mark.parametrize("how", ["raises", "wrong"])
def test_a_kernel_that_fails_here_is_not_used(how: str, triton: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def called(x: Tensor, *parts: Tensor | None) -> Tensor:
        if how == "raises":
            raise RuntimeError("out of resource: shared memory")
        return exact(x, *parts) * 1.1  # type: ignore[arg-type]

    monkeypatch.setattr(fused, "integers", called)
    model = quantise(small(), Int4(32))
    before = logits(model)
    words = fused.enable(model)
    assert ("out of resource" if how == "raises" else "10.0% off") in words
    assert torch.equal(logits(model), before)


def test_fp8_is_the_product_of_what_was_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By PyTorch's own product of this processor where it has one; else by its contract."""

    def multiply(a: Tensor, b: Tensor, *, scale_a: Tensor, scale_b: Tensor, out_dtype: torch.dtype) -> Tensor:
        assert a.dtype == b.dtype == torch.float8_e4m3fn
        assert a.is_contiguous()
        assert b.stride(0) == 1  # the second by columns
        assert scale_a.shape == (len(a), 1)
        assert scale_b.shape == (1, b.shape[1])
        assert scale_a.dtype == scale_b.dtype == torch.float32
        assert a.shape[1] % 16 == b.shape[1] % 16 == 0
        return ((a.float() * scale_a) @ (b.float() * scale_b)).to(out_dtype)

    monkeypatch.setattr(torch, "_scaled_mm", multiply)
    monkeypatch.setattr(fused, "has_fp8", lambda device: True)
    one = layer(FP8())
    assert fused.way(one) == "fp8"
    assert fused.trial(one) == ""
    x = torch.randn(7, 64)
    wanted = packed_linear.rounded(x) @ one.dense().T
    found = packed_linear.floats(x, one.kept()["codes"], one.kept()["scales"])
    assert found.dtype == x.dtype
    assert float((found - wanted).norm() / wanted.norm()) < 0.01
    assert float((wanted - x @ one.dense().T).norm() / wanted.norm()) < 0.05
    assert fused.way(layer(FP8(), rows=40)) == "no product in fp8 here"
