"""Mamba's recurrence, whose states are too many to keep: a block of time at once in the cache, made again to go back.

h_t = e^{dt_t A} h_{t-1} + dt_t u_t B_t, y_t = C_t h_t (Gu & Dao 2023, §3.3: what its kernel does in a GPU's SRAM).
Only the states before each block are kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from terakoya.ops import recur, triton
from terakoya.ops.sequences import Sequences

BLOCK = 32  # tokens


def selective(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, sequences: Sequences, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence: u, dt (T, D), a (D, S), b, c (T, S), start (N, D, S) -> y (T, D), last h (N, D, S)."""
    if start is None:
        start = u.new_zeros(sequences.count, *a.shape)
    if max(sequences.lengths) == 1:
        h = torch.exp(dt[..., None] * a) * start + (dt * u)[..., None] * b[:, None]
        return (h @ c[..., None])[..., 0], h
    if recur.able(a.shape[1], u, dt, a, b, c, start):
        return recur.selective(u, dt, a, b, c, start, sequences)
    if triton.able(a.shape[1], u, dt, a, b, c, start):
        from terakoya.ops.triton import recurrences

        return recurrences.selective(u, dt, a, b, c, start, sequences, partial(_blocks, sequences))
    return _blocks(sequences, u, dt, a, b, c, start)


def _blocks(sequences: Sequences, *given: Tensor) -> tuple[Tensor, Tensor]:
    return _Selective.apply(*given, sequences)  # type: ignore[return-value]


class _Selective(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        u, dt, a, b, c, start, sequences = given
        y, last = torch.empty_like(u), torch.empty_like(start)
        befores, fed = [], dt * u
        for n, spans in enumerate(_spans(sequences)):
            h = start[n]
            for s in spans:
                befores.append(h)
                _, states = _states(fed[s], dt[s], a, b[s], h)
                y[s] = (states @ c[s, :, None])[..., 0]
                h = states[-1].clone()
            last[n] = h
        ctx.save_for_backward(u, dt, a, b, c, torch.stack(befores))
        ctx.sequences = sequences
        return y, last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, dt, a, b, c, befores = ctx.saved_tensors
        gy, slope = grads
        gdt, gfed, gb, gc = (torch.empty_like(x) for x in (dt, u, b, c))
        ga, gstart, fed = torch.zeros_like(a), torch.empty_like(slope), dt * u
        at = len(befores)
        for n, spans in reversed(list(enumerate(_spans(ctx.sequences)))):
            carry = slope[n]
            for s in reversed(spans):
                at -= 1
                keep, states = _states(fed[s], dt[s], a, b[s], befores[at])
                d = gy[s, :, None] * c[s, None]
                rows, keeps = d.unbind(), keep.unbind()
                rows[-1].add_(carry)
                for i in range(len(rows) - 2, -1, -1):
                    rows[i].addcmul_(keeps[i + 1], rows[i + 1])
                carry = keeps[0] * rows[0]
                gc[s] = (gy[s, None] @ states)[:, 0]
                gb[s] = (fed[s, None] @ d)[:, 0]
                gfed[s] = (d @ b[s, :, None])[..., 0]
                keep[0] *= befores[at]
                keep[1:] *= states[:-1]
                keep *= d
                gdt[s] = (keep * a).sum(-1)
                ga += torch.einsum("tds,td->ds", keep, dt[s])
            gstart[n] = carry
        return gfed * dt, gdt + gfed * u, ga, gb, gc, gstart, None


def _states(fed: Tensor, dt: Tensor, a: Tensor, b: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Run one block: (what each step keeps, the state after it), both (t, D, S)."""
    keep = (dt[..., None] * a).exp_()
    states = fed[..., None] * b[:, None]
    for k, row in zip(keep.unbind(), states.unbind(), strict=True):
        h = row.addcmul_(k, h)
    return keep, states


def _spans(sequences: Sequences) -> Iterator[list[slice]]:
    for begin, end in pairwise(sequences.cu):
        yield [slice(s, min(s + BLOCK, end)) for s in range(begin, end, BLOCK)]
