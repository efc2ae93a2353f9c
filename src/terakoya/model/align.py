"""Where to look in the source: additive (Bahdanau 2014) and multiplicative (Luong 2015) scores, global or local."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

Score = Literal["dot", "general", "concat"]
Where = Literal["global", "local-m", "local-p"]


@dataclass
class Memory:
    """What was read: states (B, S, M), lengths (B,). `made` keeps what a score computes of it once."""

    states: Tensor
    lengths: Tensor
    made: dict[str, Tensor] = field(default_factory=dict)

    @property
    def places(self) -> Tensor:
        """Return 0 … S - 1: -> (1, S)."""
        return torch.arange(self.states.shape[1], device=self.states.device)[None, :]

    def inside(self) -> Tensor:
        """Mark the places that are text: -> (B, S)."""
        return self.places < self.lengths[:, None]


class Additive(nn.Module):
    """v · tanh(W s + U h) (Bahdanau 2014, appendix A.1.2)."""

    def __init__(self, query: int, memory: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(query, hidden, bias=False)
        self.memory = nn.Linear(memory, hidden, bias=False)
        self.v = nn.Linear(hidden, 1, bias=False)

    def forward(self, s: Tensor, memory: Memory) -> Tensor:
        """Weigh the places: s (B, D) -> (B, S), rows sum to one."""
        if "keys" not in memory.made:
            memory.made["keys"] = self.memory(memory.states)
        score = self.v(torch.tanh(self.query(s)[:, None] + memory.made["keys"]))[:, :, 0]
        return score.masked_fill(~memory.inside(), -torch.inf).softmax(1)


class Multiplicative(nn.Module):
    """Luong's scores: dot h·s, general h·W s, concat v·tanh(W [h; s]); and his windows.

    local-m looks at 2 half + 1 places round t, local-p round S sigmoid(v · tanh(W h)), its weights times a Gaussian of
    deviation half / 2 about that point (so they sum to less than one). A local-m window that would lie behind the
    source's end rests on its last place.
    """

    def __init__(self, dim: int, score: Score, where: Where, half: int) -> None:
        super().__init__()
        self.kind, self.where, self.reach = score, where, half
        self.w = nn.Linear(dim, dim, bias=False) if score == "general" else None
        self.pair = nn.Linear(2 * dim, dim, bias=False) if score == "concat" else None
        self.v = nn.Linear(dim, 1, bias=False) if score == "concat" else None
        self.place = nn.Linear(dim, dim, bias=False) if where == "local-p" else None
        self.point = nn.Linear(dim, 1, bias=False) if where == "local-p" else None

    def forward(self, h: Tensor, memory: Memory, t: int) -> Tensor:
        """Weigh the places at step t: h (B, D) -> (B, S)."""
        score = self.scores(h, memory)
        allowed, centre = memory.inside(), self.centre(h, memory, t)
        if centre is not None:
            allowed = allowed & ((memory.places - centre[:, None]).abs() <= self.reach)
        weights = score.masked_fill(~allowed, -torch.inf).softmax(1)
        if self.where == "local-p":
            assert centre is not None
            weights = weights * torch.exp(-((memory.places - centre[:, None]) ** 2) / (2 * (self.reach / 2) ** 2))
        return weights

    def scores(self, h: Tensor, memory: Memory) -> Tensor:
        """Return h's score with every place: (B, D) -> (B, S)."""
        if self.pair is not None and self.v is not None:
            both = torch.cat([h[:, None].expand(-1, memory.states.shape[1], -1), memory.states], 2)
            return self.v(torch.tanh(self.pair(both)))[:, :, 0]
        if self.w is None:
            return (memory.states @ h[:, :, None])[:, :, 0]
        if "keys" not in memory.made:
            memory.made["keys"] = self.w(memory.states)
        return (memory.made["keys"] @ h[:, :, None])[:, :, 0]

    def centre(self, h: Tensor, memory: Memory, t: int) -> Tensor | None:
        """Return the middle of the window (B,), None for global attention."""
        if self.place is not None and self.point is not None:
            share = self.point(torch.tanh(self.place(h)))[:, 0].sigmoid()
            return (share * memory.lengths).clamp(max=memory.lengths - 1)
        return (memory.lengths - 1).clamp(max=t) if self.where == "local-m" else None
