"""x W^T with a packed weight on a GPU, without making numbers of all of it first. Who can, and how."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor

FEW = 128  # rows up to which reading codes is faster than making numbers once
STRIPES = (128, 64, 32)  # columns that a program takes at once: half of them must be 16 or more
MOST = 448.0  # the largest e4m3


@cache
def has_triton() -> bool:
    """Say whether Triton is installed, without importing it."""
    return importlib.util.find_spec("triton") is not None


def stripe(columns: int, groups: int) -> int | None:
    """Return how many columns are taken at once; None: groups are too narrow, or uneven."""
    return next((n for n in STRIPES if columns // groups % n == 0), None)


def integers(x: Tensor, codes: Tensor, scales: Tensor, minima: Tensor | None, order: Tensor | None = None) -> Tensor:
    """Multiply by a weight in four (with `minima`) or eight bits: x (T, K), codes (N, …), scales (N, G) -> (T, N).

    `order` (K,): column i of the codes belongs to column order[i] of x.
    """
    from terakoya.ops.triton.packed import linear

    columns = stripe(x.shape[1], scales.shape[1])
    assert columns is not None
    return linear(x if order is None else x[:, order.long()], codes, scales, minima, columns)


def floats(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """Multiply by a weight in e4m3, inputs rounded to e4m3 too: x (T, K), codes (N, K), scales (N, 1) -> (T, N)."""
    codes_of_x, scale = _codes(x)
    multiply = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
    y = multiply(codes_of_x, codes.t(), scale_a=scale, scale_b=scales.t(), out_dtype=torch.bfloat16)
    return y.to(x.dtype)


def rounded(x: Tensor) -> Tensor:
    """Return what `floats` makes of its inputs: x (T, K) -> (T, K) float32."""
    codes, scale = _codes(x)
    return codes.float() * scale


def _codes(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = (x.float().abs().amax(1, keepdim=True) / MOST).clamp(min=1e-12)
    return (x.float() / scale).clamp(-MOST, MOST).to(torch.float8_e4m3fn), scale


@cache
def has_fp8(device: torch.device) -> bool:
    """Say whether a device multiplies e4m3 with a scale per row."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
