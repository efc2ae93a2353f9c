"""The recurrences of `ops` by Triton's kernels: forward there, back through the PyTorch that defines them.

Every function takes what its namesake in `ops` takes, and `define`, which computes the same in PyTorch: the way back
computes again by it and differentiates. Unverified on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from terakoya.ops.sequences import Sequences
from terakoya.ops.triton import kernels as compiled

CHUNK, TILE, CHANNELS = 32, 32, 32  # tokens of a piece, columns and channels of a program
kernels: Any = compiled  # a launch is an index and a call, of which no type knows
Made = Any  # a tuple of tensors, as many as the recurrence gives


class _Again(torch.autograd.Function):
    """A forward pass of its own, and the backward pass of a definition."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Made], define: Callable[..., Made], *given: Any) -> Made:
        ctx.define = define
        ctx.save_for_backward(*given)
        made = run(*given)
        ctx.mark_non_differentiable(*made[2:])  # RWKV-4's exponent
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        wanted = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            own = [t if t is None else t.detach().requires_grad_(w) for t, w in zip(ctx.saved_tensors, wanted)]
            made = ctx.define(*own)
        pairs = [(y, g) for y, g in zip(made, grads, strict=True) if y.requires_grad]
        asked: Any = [t for t, w in zip(own, wanted) if w]
        found = iter(torch.autograd.grad([y for y, _ in pairs], asked, [g for _, g in pairs], allow_unused=True))
        return None, None, *(next(found) if w else None for w in wanted)


def decayed(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, start: Tensor, sequences: Sequences, define: Callable[..., Made]
) -> Made:
    """Do what `ops.linear.decayed` does, by pieces."""

    def run(*given: Any) -> Made:
        q, k, v, g, start = _flat(given)
        H, K, V = k.shape[1], k.shape[2], v.shape[2]
        y, last = torch.empty_like(v), torch.empty_like(start)
        grid = (sequences.count * H, -(-V // TILE))
        kernels.decayed[grid](
            q, k, v, q if g is None else g, start, y, last, _cu(sequences), H, K, V, _wide(K), TILE, CHUNK,
            g is not None, num_stages=1,
        )  # fmt: skip
        return y, last

    return _Again.apply(run, define, q, k, v, g, start)  # type: ignore[return-value]


def matrix(
    r: Tensor, e: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, start: Tensor, sequences: Sequences
) -> Made:
    """Do what `ops.recur.matrix` does; nothing here has a way back."""
    r, e, k, v, a, b, start = _flat((r, e, k, v, a, b, start))
    H, K, V = r.shape[1], r.shape[2], v.shape[2]
    y, last = torch.empty_like(v), torch.empty_like(start)
    grid = (sequences.count * H, -(-V // TILE))
    kernels.matrix[grid](r, e, k, v, a, b, start, y, last, _cu(sequences), H, K, V, _wide(K), TILE)
    return y, last


def delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, start: Tensor, sequences: Sequences,
    define: Callable[..., Made],
) -> Made:  # fmt: skip
    """Do what `ops.linear.delta` does."""

    def run(*given: Any) -> Made:
        q, k, v, g, beta, start = given
        fade, wrote = g.exp()[..., None], beta[..., None] * k
        return matrix(q, fade.expand_as(k), wrote, v, fade * k, -wrote, start, sequences)

    return _Again.apply(run, define, q, k, v, g, beta, start)  # type: ignore[return-value]


def general(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, start: Tensor, sequences: Sequences,
    define: Callable[..., Made],
) -> Made:  # fmt: skip
    """Do what `ops.linear.general` does."""

    def run(*given: Any) -> Made:
        r, w, k, v, a, b, start = given
        return matrix(r, w.exp(), k, v, a, b, start, sequences)

    return _Again.apply(run, define, r, w, k, v, a, b, start)  # type: ignore[return-value]


def scan(a: Tensor, b: Tensor, start: Tensor, sequences: Sequences) -> Tensor:
    """h_t = a_t h_{t-1} + b_t: a, b (T, ...), start (N, ...) -> h (T, ...); its derivative is a scan too."""
    a, b, start = _flat((a.expand_as(b), b, start))
    h, D = torch.empty_like(b), b[0].numel()
    grid = (sequences.count, -(-D // CHANNELS))
    kernels.scan[grid](a, b, start, h, _cu(sequences), D, CHUNK, CHANNELS)
    return h


def selective(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, start: Tensor, sequences: Sequences,
    define: Callable[..., Made],
) -> Made:  # fmt: skip
    """Do what `ops.selective.selective` does."""

    def run(*given: Any) -> Made:
        u, dt, a, b, c, start = _flat(given)
        y, last, (D, S) = torch.empty_like(u), torch.empty_like(start), a.shape
        grid = (sequences.count, -(-D // CHANNELS))
        kernels.selective[grid](u, dt, a, b, c, start, y, last, _cu(sequences), D, S, _wide(S), CHANNELS)
        return y, last

    return _Again.apply(run, define, u, dt, a, b, c, start)  # type: ignore[return-value]


def diagonal(
    u: Tensor, a: Tensor, b: Tensor, c: Tensor, start: Tensor, sequences: Sequences, define: Callable[..., Made]
) -> Made:
    """Do what `ops.invariant.invariant` does where A is a diagonal: a, b, c (D, S), start (N, D, S) complex."""

    def run(*given: Any) -> Made:
        u, parts = given[0].contiguous(), [torch.view_as_real(x.resolve_conj().contiguous()) for x in given[1:]]
        y, last, (D, S) = torch.empty_like(u), torch.empty_like(parts[3]), given[1].shape
        grid = (sequences.count, -(-D // CHANNELS))
        kernels.diagonal[grid](u, *parts, y, last, _cu(sequences), D, S, _wide(S), CHANNELS)
        return y, torch.view_as_complex(last)

    return _Again.apply(run, define, u, a, b, c, start)  # type: ignore[return-value]


def wkv(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, total: Tensor, most: Tensor, sequences: Sequences,
    define: Callable[..., Made],
) -> Made:  # fmt: skip
    """Do what `ops.wkv.wkv` does."""

    def run(*given: Any) -> Made:
        k, v, w, u, total, most = _flat(given)
        y, last, peak = torch.empty_like(k), torch.empty_like(total), torch.empty_like(most)
        grid = (sequences.count, -(-k.shape[1] // CHANNELS))
        kernels.wkv[grid](k, v, w, u, total, most, y, last, peak, _cu(sequences), k.shape[1], CHANNELS)
        return y, last, peak

    return _Again.apply(run, define, k, v, w, u, total, most)  # type: ignore[return-value]


def _flat(tensors: Sequence[Any]) -> list[Any]:
    return [t if t is None else t.contiguous() for t in tensors]


def _cu(sequences: Sequences) -> Tensor:
    return torch.tensor(sequences.cu, dtype=torch.int32, device=sequences.device)


def _wide(states: int) -> int:
    """Return the power of two that holds so many numbers, at least the 16 that a product of tiles wants."""
    return max(16, 1 << (states - 1).bit_length())
