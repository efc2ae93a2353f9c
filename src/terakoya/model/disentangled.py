"""Attention that keeps content and position apart (He 2020, arXiv:2006.03654), and what DeBERTa v2 adds around it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from terakoya.model import spec
from terakoya.model.context import Context
from terakoya.model.ffn import ACTS
from terakoya.model.norm import Norm
from terakoya.ops.attend import Bias


class Distances(nn.Module):
    """A vector for every distance, from far before to far after: one table for all layers."""

    def __init__(self, s: spec.Disentangled, norm: spec.Norm | None, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(2 * (s.buckets or s.reach), dim)
        self.norm = Norm(norm, dim) if s.norm and norm else None

    def forward(self) -> Tensor:
        """Return all vectors (2R, D)."""
        return self.table.weight if self.norm is None else self.norm(self.table.weight)


class Disentangled(nn.Module):
    """Score terms content -> position and position -> content: q_i · k(d_ij) and k_j · q(d_ij), scaled."""

    def __init__(self, s: spec.Disentangled, a: spec.Attention, dim: int, width: int) -> None:
        super().__init__()
        self.spec, self.heads = s, a.heads
        rows = a.heads * width
        self.k = nn.Linear(dim, rows, bias=a.key_bias) if s.own and "c2p" in s.terms else None
        self.q = nn.Linear(dim, rows) if s.own and "p2c" in s.terms else None

    def term(self, vectors: Tensor, q: nn.Linear, k: nn.Linear, scale: float) -> Bias:
        """Return the score term. It wants keys behind the queries: q (B, T, H, 2K) -> (B, H, T, T)."""
        keys = (self.k or k)(vectors).unflatten(-1, (self.heads, -1)) if "c2p" in self.spec.terms else None
        asks = (self.q or q)(vectors).unflatten(-1, (self.heads, -1)) if "p2c" in self.spec.terms else None

        def bias(both: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
            content, others = both.chunk(2, -1)
            B, T, H, _ = content.shape
            at = places(q_pos[:, None] - k_pos[None, :], self.spec)
            total = content.new_zeros(B, H, T, T)
            if keys is not None:
                total = total + torch.einsum("bthk,rhk->bhtr", content, keys).gather(-1, at.expand(B, H, T, T))
            if asks is not None:
                terms = torch.einsum("bshk,rhk->bhsr", others, asks).gather(-1, at.T.expand(B, H, T, T))
                total = total + terms.transpose(-1, -2)
            return total * scale

        return bias


def places(gap: Tensor, s: spec.Disentangled) -> Tensor:
    """Return the row of each distance: whole numbers where near, and rounded up logarithms where far, if bucketed."""
    if s.buckets is None:
        return (gap + s.reach).clamp(0, 2 * s.reach - 1)
    middle = s.buckets // 2
    size = torch.where(gap.abs() < middle, middle - 1, gap.abs())
    steps = torch.log(size / middle) / torch.log(torch.tensor((s.reach - 1) / middle)) * (middle - 1)
    far = (torch.ceil(steps) + middle) * gap.sign()
    return (torch.where(size <= middle, gap, far.long()) + s.buckets).clamp(0, 2 * s.buckets - 1)


class Neighbours(nn.Module):
    """norm(x_1 + act(conv(x_0))) after the first layer: n-grams of the input (DeBERTa v2)."""

    def __init__(self, s: spec.Conv, norm: spec.Norm, dim: int) -> None:
        super().__init__()
        self.spec = s
        self.conv = nn.Conv1d(dim, dim, s.kernel, padding=(s.kernel - 1) // 2, groups=s.groups)
        self.norm = Norm(norm, dim)

    def forward(self, before: Tensor, after: Tensor, ctx: Context) -> Tensor:
        """Add what the neighbours say: before, after (T, D) -> (T, D); sequences do not touch."""
        said = [self.conv(before[a:b].T[None])[0].T for a, b in pairwise(ctx.cu)]
        act = torch.tanh if self.spec.act == "tanh" else ACTS[self.spec.act]
        return self.norm(after + act(torch.cat(said)))
