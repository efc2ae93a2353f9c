"""A fading sum, S_t = e^{g_t} S_{t-1} + k_t v_t^T, y_t = S_t^T q_t, by products over whole pieces, forward and back.

Inside a piece tokens meet as in attention, between pieces the state is passed on (Sun 2023, eq. 7; Dao 2024, §6). The
way back is written down: the same products turned round. Decays need no more than q and k: they stand beside these
everywhere, so with G the sum of g so far dL/dG_t = q_t dL/dq_t - k_t dL/dk_t (Yang 2024, gated linear attention).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from terakoya.ops.sequences import Chunks, Sequences

PIECE = 64


def fading(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, start: Tensor, sequences: Sequences
) -> tuple[Tensor, Tensor]:
    """Read the sum: q, k (T, H, K), v (T, H, V), g (T, H), start (N, H, K, V) -> y (T, H, V), the last S."""
    return _Fading.apply(q, k, v, g, start, sequences)  # type: ignore[return-value]


class _Decays:
    """What decays leave in the pieces of a batch: (M or 1, H, ...), with 1 where all tokens of a head fade alike."""

    def __init__(self, chunks: Chunks, g: Tensor | None, heads: int, like: Tensor) -> None:
        C = chunks.size
        if g is None:
            g = like.new_zeros(1, 1).expand(chunks.count * C if chunks.whole else like.shape[0], heads)
        steady = g.stride(0) == 0 and chunks.whole
        rows = g[:1].t()[None].expand(1, heads, C) if steady else chunks.cut(g).transpose(1, 2)
        total = rows.cumsum(-1)  # (M, H, C)
        later = _later(C, like.device)
        self.between = (total[..., :, None] - total[..., None, :]).masked_fill(later, float("-inf")).exp()
        self.grown = total.exp()[..., None]  # of the state before the piece, at each token
        self.left = (total[..., -1:] - total).exp()[..., None]  # of each token, at the end of the piece
        self.fade = total[..., -1].exp()[..., None, None]

    def fade_of(self, pieces: Tensor) -> Tensor:
        return self.fade if self.fade.shape[0] == 1 else self.fade[pieces]


@cache
def _later(size: int, device: torch.device) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).triu(1)


class _Fading(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        q, k, v, g, start, sequences = given
        chunks = sequences.chunks(PIECE)
        decays = _Decays(chunks, g, q.shape[1], q)
        qs, ks, vs = (_pieces(chunks, t) for t in (q, k, v))
        new = (ks * decays.left).transpose(-1, -2) @ vs
        before, last = chunks.carry(start, lambda s, i: torch.addcmul(new[i], decays.fade_of(i), s))
        y = ((qs @ ks.transpose(-1, -2)).mul_(decays.between)) @ vs
        y = _added(y, qs * decays.grown, before)
        ctx.save_for_backward(qs, ks, vs, before, last if g is not None else None)
        ctx.decays, ctx.sequences, ctx.slopes = decays, sequences, g is not None and ctx.needs_input_grad[3]
        return _flat(chunks, y), last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, before, last = ctx.saved_tensors
        decays, sequences, (gy, glast) = ctx.decays, ctx.sequences, grads
        chunks: Chunks = sequences.chunks(PIECE)
        gy = _pieces(chunks, gy)
        read = (q * decays.grown).transpose(-1, -2) @ gy  # slopes of the state before each piece, by its own tokens
        after, gstart = chunks.carry_back(glast, lambda s, i: torch.addcmul(read[i], decays.fade_of(i), s))
        near = (gy @ v.transpose(-1, -2)).mul_(decays.between)
        seen = (q @ k.transpose(-1, -2)).mul_(decays.between)
        gq = _added(near @ k, gy, before.transpose(-1, -2), decays.grown)
        gk = _added(near.transpose(-1, -2) @ q, v, after.transpose(-1, -2), decays.left)
        gv = _added(seen.transpose(-1, -2) @ gy, k * decays.left, after)
        gg = None
        if ctx.slopes:
            total = _flat(chunks, ((q * gq) - (k * gk)).sum(-1, keepdim=True))[..., 0]
            total = total.index_add(0, sequences.last, (glast * last).sum((-1, -2)))
            gg = torch.cat([x.flip(0).cumsum(0).flip(0) for x in total.split(sequences.lengths)])
        return *(_flat(chunks, x) for x in (gq, gk, gv)), gg, gstart, None


def _added(to: Tensor, a: Tensor, b: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return to + scale (a @ b), over pieces and heads; `to` is overwritten."""
    if scale is None:
        return to.flatten(0, 1).baddbmm_(a.flatten(0, 1), b.flatten(0, 1)).view_as(to)
    return to.addcmul_(a @ b, scale)


def _pieces(chunks: Chunks, x: Tensor) -> Tensor:
    """(T, H, K) -> (M, H, C, K), each piece of a head in one stretch of memory."""
    return chunks.cut(x.contiguous()).transpose(1, 2).contiguous()


def _flat(chunks: Chunks, x: Tensor) -> Tensor:
    """(M, H, C, K) -> (T, H, K)."""
    return chunks.join(x.transpose(1, 2))
