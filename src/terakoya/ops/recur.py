"""Recurrences by `csrc/recur.c`, forward and back, in single precision on the CPU; elsewhere PyTorch does the work.

A step in C costs what its numbers cost, so nothing is gained by pieces there: the loop itself runs, sixteen channels
at a time. `able` says whether the library can take some tensors.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int32, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from terakoya.errors import TerakoyaError
from terakoya.ops.compile import NoCompiler, library
from terakoya.ops.sequences import Sequences

LANES, BLOCK = 16, 16  # channels of a group; tokens between the states that the way back begins from
MOST = 256  # numbers of a state, for which the way back has room
KINDS = ("selective", "diagonal", "matrix", "wkv", "filter", "normed", "rglru")
NAMES = tuple(kind + way for kind in KINDS for way in ("", "_back"))
ISA = "TERAKOYA_NATIVE_ISA"


class _Recur(ctypes.Structure):
    """`tk_recur` of recur.c."""

    _fields_ = [
        ("cu", c_void_p),
        *((name, c_int32) for name in ("sequences", "channels", "states", "width", "threads")),
        ("inputs", c_void_p * 12),
        ("outputs", c_void_p * 12),
    ]


@cache
def _library() -> ctypes.CDLL | None:
    try:
        lib = ctypes.CDLL(str(library()))
    except NoCompiler:
        return None
    lib.tk_recurrence.argtypes, lib.tk_recurrence.restype = [c_int32, c_char_p, POINTER(_Recur)], c_int32
    return lib


def able(states: int, *tensors: Tensor | None) -> bool:
    """Return whether these are single precision on the CPU, the state is small enough, and there is a library."""
    real = {torch.float32, torch.complex64}
    return (
        states <= MOST
        and all(t is None or (t.device.type == "cpu" and t.dtype in real) for t in tensors)
        and _library() is not None
    )


def selective(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, start: Tensor, sequences: Sequences
) -> tuple[Tensor, Tensor]:
    """Do what `ops.selective.selective` does."""
    return _Selective.apply(u, dt, a, b, c, start, sequences)  # type: ignore[return-value]


def diagonal(u: Tensor, a: Tensor, b: Tensor, c: Tensor, start: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """Do what `ops.invariant.invariant` does where A is a diagonal: a, b, c (D, S), start (N, D, S) complex."""
    parts = [torch.view_as_real(x.resolve_conj()) for x in (a, b, c, start)]
    y, last = _Diagonal.apply(u, *parts, sequences)  # type: ignore[misc]
    return y, torch.view_as_complex(last)


def matrix(
    r: Tensor, e: Tensor, k: Tensor, v: Tensor, a: Tensor | None, b: Tensor | None, start: Tensor, sequences: Sequences
) -> tuple[Tensor, Tensor]:
    """Run S <- diag(e) S + b (a^T S) + k v^T, y = S^T r.

    r, e, k, a, b (T, H, K), v (T, H, V), start (N, H, K, V) -> y (T, H, V), last S; without a and b no correction.
    """
    return _Matrix.apply(r, e, k, v, a, b, start, sequences)  # type: ignore[return-value]


def wkv(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, total: Tensor, most: Tensor, sequences: Sequences
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `ops.wkv.wkv` does."""
    return _Wkv.apply(k, v, w, u, total, most, sequences)  # type: ignore[return-value]


def short(x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor, sequences: Sequences) -> Tensor:
    """Filter as `ops.convolve.short` does: x (T, D), weight (D, W), tail (N, W - 1, D) -> (T, D)."""
    return _Short.apply(x, weight, bias, tail, sequences)  # type: ignore[return-value]


class _Selective(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        *tensors, sequences = given
        u, dt, a, b, c, start = flat(tensors)
        kept = _kept(ctx, sequences, *a.shape)
        y, last = torch.empty_like(u), torch.empty_like(start)
        call("selective", (u, dt, a, b, c, start), (y, last, kept), sequences, *a.shape)
        ctx.save_for_backward(u, dt, a, b, c, kept)
        ctx.sequences = sequences
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        u, dt, a, b, c, kept = ctx.saved_tensors
        gy, slope = flat(grads)
        threads = _threads(-(-a.shape[0] // LANES))
        gb, gc = (torch.empty(threads, *x.shape) for x in (b, c))
        gu, gdt, ga, gstart = (torch.empty_like(x) for x in (u, dt, a, slope))
        call(
            "selective_back", (u, dt, a, b, c, kept, gy, slope), (gu, gdt, ga, gb, gc, gstart), ctx.sequences, *a.shape
        )
        return gu, gdt, ga, gb.sum(0), gc.sum(0), gstart, None


class _Diagonal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        *tensors, sequences = given
        u, a, b, c, start = flat(tensors)
        kept = _kept(ctx, sequences, a.shape[0], 2 * a.shape[1])
        y, last = torch.empty_like(u), torch.empty_like(start)
        call("diagonal", (u, a, b, c, start), (y, last, kept), sequences, *a.shape[:2])
        ctx.save_for_backward(u, a, b, c, kept)
        ctx.sequences = sequences
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        u, a, b, c, kept = ctx.saved_tensors
        gy, slope = flat(grads)
        out = tuple(torch.empty_like(x) for x in (u, a, b, c, slope))
        call("diagonal_back", (u, a, b, c, kept, gy, slope), out, ctx.sequences, *a.shape[:2])
        return *out, None


class _Matrix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        *tensors, sequences = given
        flat: list[Any] = [t if t is None else t.contiguous() for t in tensors]
        r, e, k, v, a, b, start = flat
        H, K, V = r.shape[1], r.shape[2], v.shape[2]
        kept = _kept(ctx, sequences, V, H * K)
        y, last = torch.empty_like(v), torch.empty_like(start)
        call("matrix", (r, e, k, v, a, b, start), (y, last, kept), sequences, H, K, V)
        ctx.save_for_backward(r, e, k, v, a, b, kept)
        ctx.sequences = sequences
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        r, e, k, v, a, b, kept = ctx.saved_tensors
        gy, slope = flat(grads)
        H, K, V = r.shape[1], r.shape[2], v.shape[2]
        tiles = -(-V // (4 * LANES))
        gr, gk = (torch.empty(tiles, *r.shape) for _ in range(2))
        ge = torch.empty(tiles, *r.shape) if ctx.needs_input_grad[1] else None
        ga, gb = (None if a is None else torch.empty(tiles, *r.shape) for _ in range(2))
        gv, gstart = torch.empty_like(v), torch.empty_like(slope)
        given = (r, e, k, v, a, b, kept, gy, slope)
        call("matrix_back", given, (gr, ge, gk, gv, ga, gb, gstart), ctx.sequences, H, K, V)
        gr, ge, gk, ga, gb = (None if g is None else g[0] if tiles == 1 else g.sum(0) for g in (gr, ge, gk, ga, gb))
        return gr, ge, gk, gv, ga, gb, gstart, None


class _Wkv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, sequences = given
        k, v, w, u, total, most = flat(tensors)
        kept = k.new_empty(k.shape[0], 3, k.shape[1]) if any(ctx.needs_input_grad) else None
        y, last, peak = torch.empty_like(k), torch.empty_like(total), torch.empty_like(most)
        call("wkv", (k, v, w, u, total, most), (y, last, peak, kept), sequences, k.shape[1])
        ctx.save_for_backward(k, v, w, u, kept, y, peak, most)
        ctx.sequences = sequences
        ctx.mark_non_differentiable(peak)
        return y, last, peak

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        k, v, w, u, kept, y, peak, most = ctx.saved_tensors
        gy, slope = flat(grads[:2])
        out = tuple(torch.empty_like(x) for x in (k, v, w, u, slope))
        call("wkv_back", (k, v, w, u, kept, y, gy, slope, peak, most), out, ctx.sequences, k.shape[1])
        return *out, None, None


class _Short(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        x, weight, bias, tail, sequences = given
        x, weight, tail = flat((x, weight, tail))
        y = torch.empty_like(x)
        call("filter", (x, weight, bias, tail), (y,), sequences, *weight.shape)
        ctx.save_for_backward(x, weight, tail)
        ctx.sequences, ctx.biased = sequences, bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, tail = ctx.saved_tensors
        gx, gweight, gbias, gtail = (torch.empty_like(t) for t in (x, weight, weight[:, 0], tail))
        gy = grads[0].contiguous()
        call("filter_back", (x, weight, None, tail, gy), (gx, gweight, gbias, gtail), ctx.sequences, *weight.shape)
        return gx, gweight, gbias if ctx.biased else None, gtail, None


def flat(tensors: Sequence[Any]) -> list[Tensor]:
    """Return tensors as the library reads them."""
    return [t.contiguous() for t in tensors]


def _kept(ctx: Any, sequences: Sequences, channels: int, states: int) -> Tensor | None:
    """Return room for the states before each block, where there is a way back."""
    if not any(ctx.needs_input_grad):
        return None
    blocks = sum(-(-n // BLOCK) for n in sequences.lengths)
    return torch.empty(blocks, -(-channels // LANES), states, LANES)


def _threads(groups: int) -> int:
    return max(1, min(torch.get_num_threads(), 64, groups))


def call(
    name: str, given: Sequence[Tensor | None], made: Sequence[Tensor | None], sequences: Sequences, channels: int,
    states: int = 1, width: int = 1,
) -> None:  # fmt: skip
    """Run one of the library's functions, `channels` of them shared out among threads."""
    lib = _library()
    assert lib is not None and all(t is None or t.is_contiguous() for t in (*given, *made))
    cu = (c_int32 * len(sequences.cu))(*sequences.cu)
    groups = channels * -(-width // (4 * LANES)) if name.startswith("matrix") else -(-channels // LANES)
    plan = _Recur(ctypes.addressof(cu), sequences.count, channels, states, width, _threads(groups))
    for to, tensors in ((plan.inputs, given), (plan.outputs, made)):
        for i, t in enumerate(tensors):
            to[i] = None if t is None else t.data_ptr()
    if lib.tk_recurrence(NAMES.index(name), os.environ.get(ISA, "").encode(), ctypes.byref(plan)):
        raise TerakoyaError("recurrence", "memory or threads ran out")
