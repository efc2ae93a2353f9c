"""h_t = a_t h_{t-1} + b_t for every channel: all pieces of all sequences step side by side, then the states pass on.

Two sweeps of C and M / N short steps stand for T. Nothing is divided and nothing is kept in logarithms, so decays as
strong as any leave the numbers as exact as the loop's. The derivative is the same recurrence from the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from terakoya.ops import triton
from terakoya.ops.sequences import Sequences

CHUNK = 32


def scan(a: Tensor, b: Tensor, sequences: Sequences, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Run the recurrence: a, b (T, ...), start (N, ...) -> h (T, ...), the last h of each sequence (N, ...)."""
    if start is None:
        start = b.new_zeros(sequences.count, *b.shape[1:])
    a = a.expand_as(b)
    if max(sequences.lengths) == 1:
        h = a * start + b
        return h, h
    if torch.is_grad_enabled() and any(t.requires_grad for t in (a, b, start)):
        h: Tensor = _Scan.apply(a, b, start, sequences)  # type: ignore[assignment]
    else:
        h = _run(a, b, start, sequences)
    return h, h[sequences.last]


@torch.no_grad()
def peak(k: Tensor, w: Tensor, sequences: Sequences, start: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """m_t = max(m_{t-1} + w, k_t): k (T, D), w (D,), start (N, D), nothing: -inf -> m, the m before each, the last."""
    if start is None:
        start = torch.full((sequences.count, k.shape[1]), float("-inf"), dtype=k.dtype, device=k.device)
    chunks = sequences.chunks(CHUNK)
    m = chunks.cut(k, float("-inf"))
    m = m.clone() if chunks.whole else m
    for i in range(1, chunks.size):
        torch.maximum(m[:, i], m[:, i - 1] + w, out=m[:, i])
    far = w * torch.arange(1, chunks.size + 1, device=k.device)[:, None].to(w.dtype)  # decay since the piece began
    ends = m[:, -1]
    before, _ = chunks.carry(start, lambda s, i: torch.maximum(ends[i], s + far[-1]))
    m = chunks.join(torch.maximum(m, before[:, None] + far))
    earlier = torch.cat([m[:1], m[:-1]]).index_copy(0, sequences.first, start)
    return m, earlier, m[sequences.last]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, start: Tensor, sequences: Sequences) -> Tensor:
        h = _run(a, b, start, sequences)
        ctx.save_for_backward(a, h, start)
        ctx.sequences = sequences
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, h, start = ctx.saved_tensors
        sequences: Sequences = ctx.sequences
        after = torch.empty_like(a)  # the factor between a token's h and the next token's
        after[:-1] = a[1:]
        after[sequences.last] = 0
        nothing = torch.zeros_like(start)
        d = _run(after.conj().flip(0), grads[0].flip(0), nothing, sequences.backward).flip(0)
        before = torch.empty_like(h)
        before[1:] = h[:-1]
        before[sequences.first] = start
        return d * before.conj(), d, (a.conj() * d)[sequences.first], None


def _run(a: Tensor, b: Tensor, start: Tensor, sequences: Sequences) -> Tensor:
    if not b.is_complex() and triton.able(1, a, b, start):
        from terakoya.ops.triton import recurrences

        return recurrences.scan(a, b, start, sequences)
    chunks = sequences.chunks(CHUNK)
    a, h = chunks.cut(a, 1.0), chunks.cut(b)
    h = h.clone() if chunks.whole else h
    kept = torch.empty_like(a)  # how much of the state before a piece is left
    kept[:, 0] = a[:, 0]
    for i in range(1, chunks.size):
        torch.mul(kept[:, i - 1], a[:, i], out=kept[:, i])
        h[:, i].addcmul_(a[:, i], h[:, i - 1])
    ends, factors = h[:, -1], kept[:, -1]
    before, _ = chunks.carry(start, lambda s, i: torch.addcmul(ends[i], factors[i], s))
    return chunks.join(h.addcmul_(kept, before[:, None]))
