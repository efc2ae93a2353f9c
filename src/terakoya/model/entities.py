"""Entities as tokens of their own, behind the words of a text (LUKE, Yamada 2020, arXiv:2010.01057)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.model import spec
from terakoya.model.context import Context, Packed
from terakoya.model.norm import Norm


@dataclass(frozen=True)
class Mentions:
    """Where entities stand in a step, which they are, and the words that name them.

    at (M,): places in the flat batch; ids (M,): rows of the entities' table; words (P,): positions in their sequence,
    owner (P,): which of the M each belongs to.
    """

    at: Tensor
    ids: Tensor
    words: Tensor
    owner: Tensor

    def mask(self, length: int) -> Tensor:
        """Mark the places of entities: -> (length,) bool."""
        found = torch.zeros(length, dtype=torch.bool, device=self.at.device)
        found[self.at] = True
        return found


class Mentioned(Packed):
    """Whole sequences side by side, each with its entities behind its words."""

    def __init__(
        self,
        lengths: Sequence[int],
        device: torch.device | str | None,
        mentions: Mentions,
        *,
        segments: Tensor | None = None,
    ) -> None:
        super().__init__(lengths, device, segments=segments)
        self._made["mentions"] = mentions


def mentions_of(ctx: Context) -> Mentions | None:
    """Return the entities of a step, where there are any."""
    return ctx.share("mentions", lambda: None)


class EntityTable(nn.Module):
    """norm(entity + mean of the positions of its words + segment), §3.1; the tables are not those of the words."""

    def __init__(self, e: spec.Entities, s: spec.Model) -> None:
        super().__init__()
        width = e.dim or s.dim
        self.token = nn.Embedding(e.count, width)
        self.project = nn.Linear(width, s.dim, bias=False) if width != s.dim else None
        learned = s.embed.position
        offset = learned.offset if isinstance(learned, spec.Learned) else 0
        self.position = nn.Embedding(s.context + offset, s.dim)  # counted from 0, though it has the words' rows
        self.segment = nn.Embedding(s.embed.types, s.dim) if s.embed.types else None
        self.norm = Norm(s.embed.norm, s.dim) if s.embed.norm else None

    def forward(self, m: Mentions, segments: Tensor | None) -> Tensor:
        """Look up: segments (T,) of the whole step -> (M, D)."""
        x = self.token(m.ids)
        if self.project is not None:
            x = self.project(x)
        sums = x.new_zeros(len(m.ids), x.shape[1]).index_add(0, m.owner, self.position(m.words).to(x.dtype))
        x = x + sums / torch.bincount(m.owner, minlength=len(m.ids)).clamp(min=1)[:, None]
        if self.segment is not None:
            x = x + self.segment(torch.zeros_like(m.ids) if segments is None else segments[m.at])
        return x if self.norm is None else self.norm(x)


class EntityHead(nn.Module):
    """Score every entity: norm(act(W h)) through the entities' own table, and a bias (§3.3)."""

    def __init__(self, e: spec.Entities, s: spec.Model, table: EntityTable) -> None:
        super().__init__()
        width = e.dim or s.dim
        self.dense = nn.Linear(s.dim, width)
        self.norm = Norm(s.embed.norm, width) if s.embed.norm else None
        self.bias = nn.Parameter(torch.empty(e.count))
        self.lent = [table]  # in a list, so that it is no part of the head

    def forward(self, x: Tensor) -> Tensor:
        """Score: x (M, D) -> (M, count)."""
        x = F.gelu(self.dense(x))
        x = x if self.norm is None else self.norm(x)
        return F.linear(x, self.lent[0].token.weight, self.bias)


class Queries(nn.Module):
    """Queries for each pair of kinds (§3.2): a word asks words with the layer's own, everything else with these.

    The score of i and j is q_{kind of i, kind of j}(i) · k(j). One product does it: queries for words and for entities
    side by side, against keys that are zero in the other's half.
    """

    def __init__(self, dim: int, width: int, bias: bool) -> None:
        super().__init__()
        self.w2e, self.e2w, self.e2e = (nn.Linear(dim, width, bias=bias) for _ in range(3))

    def forward(self, x: Tensor, q: Tensor, k: Tensor, m: Mentions) -> tuple[Tensor, Tensor]:
        """Double the heads: x (T, D), q (T, H, K), k (T, G, K) -> (T, H, 2K), (T, G, 2K)."""
        entity = m.mask(len(x))[:, None]
        words = torch.where(entity, self.e2w(x), q.flatten(1))
        entities = torch.where(entity, self.e2e(x), self.w2e(x))
        asked = torch.cat((words.view_as(q), entities.view_as(q)), -1)
        kept = entity[..., None]
        return asked, torch.cat((k.masked_fill(kept, 0.0), k.masked_fill(~kept, 0.0)), -1)
