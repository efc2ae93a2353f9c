"""Products with packed weights for a GPU, on the CPU: Triton's interpreter, and PyTorch's own fp8 product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from terakoya.ops import packed_linear
from terakoya.quant.codecs import Codec, Int4, Int8


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton run kernels as Python; that is decided when it is imported."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    language = pytest.importorskip("triton.language", reason="Triton is not installed")
    if type(language.zeros).__name__ != "InterpretedFunction":
        pytest.skip("Triton was loaded for a GPU before: run this file alone")


def weight(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) * 0.3


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rows", [1, 5, 17])
@pytest.mark.parametrize(
    ("codec", "columns"),
    [(Int4(32), 96), (Int4(64), 128), (Int4(0), 64), (Int8(32), 96), (Int8(128), 256), (Int8(0), 160)], ids=str,
)  # fmt: skip
def test_integers_are_what_their_numbers_give(codec: Codec, columns: int, rows: int, dtype: torch.dtype) -> None:
    w = weight(70, columns)
    parts = codec.encode(w)
    x = torch.randn(rows, columns).to(dtype)
    y = packed_linear.integers(x, parts["codes"], parts["scales"], parts.get("minima"))
    wanted = x.double() @ codec.decode(parts, columns).to(dtype).double().T
    assert y.dtype == dtype
    assert float((y - wanted).abs().max() / wanted.abs().max()) < (1e-6 if dtype == torch.float32 else 1e-3)


@pytest.mark.usefixtures("interpreted")
def test_columns_may_lie_in_another_order() -> None:
    codec, order = Int4(32), torch.randperm(64, generator=torch.Generator().manual_seed(1))
    parts = codec.encode(weight(32, 64)) | {"order": order.int()}
    x = torch.randn(3, 64)
    y = packed_linear.integers(x, parts["codes"], parts["scales"], parts["minima"], parts["order"])
    assert torch.allclose(y, x @ codec.decode(parts, 64).T, atol=1e-4)
