"""Contexts with a mask of their own: prefixes that see both ways, and orders other than left to right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.ops.attend import Bias, Look


class Masked(Packed):
    """Whole sequences side by side, each with a mask (n, n) that says which keys its queries see.

    `positions` (T,) may differ from the order in memory. The mask replaces the layer's own causal mask; a layer with a
    window or chunks would see less than the mask says, so it is refused.
    """

    def __init__(self, cu: Sequence[int], positions: Tensor, masks: Sequence[Tensor]) -> None:
        super().__init__([b - a for a, b in pairwise(cu)], positions.device)
        self.pos, self.masks = positions, masks

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look, bias: Bias | None, sinks: Tensor | None
    ) -> Tensor:
        bound = look.window is not None or look.chunk is not None or look.patterned
        if bound or sinks is not None or look.softcap is not None:
            raise TerakoyaError("objective", "needs layers that attend without windows, chunks, sinks or soft caps")
        if bias is None and len(self.runs) == 1:  # all alike: one call
            length, count = self.runs[0]
            q, k, v = (t.view(count, length, *t.shape[1:]) for t in (q, k, v))
            return _attend(q, k, v, torch.stack(list(self.masks))[:, None], look.scale).flatten(0, 1)
        out = []
        for (a, b), mask in zip(pairwise(self.cu), self.masks, strict=True):
            added: Tensor = mask[None, None]
            if bias is not None:
                term = bias(q[None, a:b], self.pos[a:b], self.pos[a:b]).to(q.dtype)
                added = term.masked_fill(~mask, float("-inf")).view(1, -1, b - a, b - a)
            out.append(_attend(q[None, a:b], k[None, a:b], v[None, a:b], added, look.scale)[0])
        return torch.cat(out)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attend under a mask: q (B, T, H, K), k (B, T, G, K), v (B, T, G, V), mask (B, 1 or H, T, T) -> (B, T, H, V)."""
    gqa = q.shape[2] != k.shape[2]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=gqa).transpose(1, 2)


def guessed(model: Model, tokens: Tensor, lengths: Sequence[int], gaps: Tensor) -> Tensor:
    """Read pieces side by side and return the vectors of their gaps: tokens (T,), gaps (T,) bool -> (N, D).

    XLNet asks by a vector of its own in the place of a gap, which nobody sees (Yang 2019); all others by [MASK].
    """
    if (asks := model.embed.asks) is None:
        return model(tokens, Packed(lengths, tokens.device))[gaps]
    positions = torch.cat([torch.arange(n, device=tokens.device) for n in lengths])
    seen = [gap.logical_not() if not gap.all() else gap for gap in gaps.split(list(lengths))]
    ctx = Masked([0, *accumulate(lengths)], positions, [s[None].expand(len(s), -1) for s in seen])
    at = gaps.nonzero()[:, 0]
    ctx.share("vectors", lambda: (at, asks[0].expand(len(at), -1)))
    return model(tokens, ctx)[gaps]


def prefixed(batch: Batch, lengths: Tensor) -> Masked:
    """Let the first lengths[i] tokens of piece i see each other both ways, the rest only what is before them."""
    cu = batch.cu.tolist()
    masks = []
    for (a, b), seen in zip(pairwise(cu), lengths.tolist(), strict=True):
        at = torch.arange(b - a, device=batch.tokens.device)
        masks.append((at[None] <= at[:, None]) | (at[None] < seen))
    return Masked(cu, batch.positions, masks)


def ordered(batch: Batch, ranks: Tensor, query: Tensor) -> Masked:
    """See by rank, XLNet's two streams in one: content sees ranks up to its own, a query only those before its own.

    ranks (T,) int64, query (T,) bool; nobody sees a query.
    """
    cu = batch.cu.tolist()
    masks = []
    for a, b in pairwise(cu):
        rank, asks = ranks[a:b], query[a:b]
        before = rank[None] < rank[:, None]
        masks.append(torch.where(asks[:, None], before, rank[None] <= rank[:, None]) & ~asks[None])
    return Masked(cu, batch.positions, masks)
