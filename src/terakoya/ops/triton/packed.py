"""x W^T with W in four or eight bits, made into numbers inside the product: Triton kernels.

Every program makes a tile of the result. What it reads from memory are codes, not numbers: that is what a step of few
rows waits for. Unverified on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

TILE = 64  # rows of the weight in a program
Kernel = Any  # a launch is an index and a call, of which no type knows


@triton.jit
def _int4(
    x, codes, scales, minima, y, M, N, K, G,
    GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    half = tl.arange(0, BK // 2)
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        at = x + m[:, None].to(tl.int64) * K + k + 2 * half[None, :]
        even = tl.load(at, mask=m[:, None] < M, other=0.0)
        odd = tl.load(at + 1, mask=m[:, None] < M, other=0.0)
        both = tl.load(
            codes + n[None, :].to(tl.int64) * (K // 2) + k // 2 + half[:, None], mask=n[None, :] < N, other=0
        )
        scale = tl.load(scales + n * G + k // GROUP, mask=n < N, other=0.0).to(tl.float32)[None, :]
        least = tl.load(minima + n * G + k // GROUP, mask=n < N, other=0.0).to(tl.float32)[None, :]
        low = ((both & 15).to(tl.float32) * scale + least).to(even.dtype)
        high = ((both >> 4).to(tl.float32) * scale + least).to(even.dtype)
        total = tl.dot(even, low, total, input_precision="ieee")
        total = tl.dot(odd, high, total, input_precision="ieee")
    inside = (m[:, None] < M) & (n[None, :] < N)
    tl.store(y + m[:, None].to(tl.int64) * N + n[None, :], total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _int8(
    x, codes, scales, y, M, N, K, G,
    GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    column = tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        some = tl.load(x + m[:, None].to(tl.int64) * K + k + column[None, :], mask=m[:, None] < M, other=0.0)
        code = tl.load(codes + n[None, :].to(tl.int64) * K + k + column[:, None], mask=n[None, :] < N, other=0)
        scale = tl.load(scales + n * G + k // GROUP, mask=n < N, other=0.0).to(tl.float32)[None, :]
        total = tl.dot(some, (code.to(tl.float32) * scale).to(some.dtype), total, input_precision="ieee")
    inside = (m[:, None] < M) & (n[None, :] < N)
    tl.store(y + m[:, None].to(tl.int64) * N + n[None, :], total.to(y.dtype.element_ty), mask=inside)


def linear(x: Tensor, codes: Tensor, scales: Tensor, minima: Tensor | None, columns: int) -> Tensor:
    """Multiply: x (M, K), codes (N, K / 2) uint8, two in a byte, or (N, K) int8, scales (N, G) -> (M, N).

    With `minima` (N, G) codes are of four bits: w = scale · q + minimum. `columns` together are of one group.
    """
    (M, K), (N, G) = x.shape, scales.shape
    x, y = x.contiguous(), torch.empty(M, N, dtype=x.dtype, device=x.device)
    tiles = {"GROUP": K // G, "BM": 16 if M <= 16 else 64, "BN": TILE, "BK": columns}
    grid = (triton.cdiv(M, tiles["BM"]), triton.cdiv(N, TILE))
    parts = [t.contiguous() for t in (codes, scales)]
    if minima is not None:
        parts.append(minima.contiguous())
    kernel: Kernel = _int8 if minima is None else _int4
    kernel[grid](x, *parts, y, M, N, K, G, **tiles)
    return y
