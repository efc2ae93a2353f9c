"""ELMo: words from their bytes, a language model in each direction, and a mixture of its layers (Peters 2018).

The sizes and details are those of the released model (AllenNLP's ElmoEmbedder): bytes of a word between two marks,
convolutions and max-pooling, highway layers, a projection; two LSTMs with projection and clipped cells in each
direction, joined to the layer below from the second on; both directions share words and head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.context import Context
from terakoya.model.model import Head, Model

LIMIT = 1 << 16
BEGIN, END, PAD = 256, 257, 258  # of a word; bytes are 0 to 255
FILTERS = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))


@dataclass(frozen=True)
class ElmoPlan:
    """Sizes; the defaults are the released model's, 93.6 M parameters without its softmax over 793,471 words."""

    dim: int = 512  # of words and states
    cells: int = 4096
    depth: int = 2
    letters: int = 16  # width of a byte's vector
    filters: tuple[tuple[int, int], ...] = FILTERS  # (width, count)
    highways: int = 2
    longest: int = 50  # bytes of a word with its marks
    clip: float = 3.0  # of cells and of projected states

    def __post_init__(self) -> None:
        for name in ("dim", "cells", "depth", "letters"):
            if getattr(self, name) < 1:
                raise TerakoyaError(f"elmo.{name}", given=getattr(self, name), allowed="1 or more")
        if self.highways < 0:
            raise TerakoyaError("elmo.highways", given=self.highways, allowed="0 or more")
        if not self.filters or any(n < 1 for pair in self.filters for n in pair):
            raise TerakoyaError("elmo.filters", given=self.filters, allowed="pairs of width and count, 1 or more each")
        if not self.clip > 0:
            raise TerakoyaError("elmo.clip", given=self.clip, allowed="more than 0")
        if self.longest < max(width for width, _ in self.filters) or self.longest < 3:
            raise TerakoyaError("elmo.longest", given=self.longest, allowed="the widest filter or more, and at least 3")


def letters(words: Sequence[bytes], longest: int) -> Tensor:
    """Write words as rows of letters: begin, bytes, end, padding; long words keep their first bytes -> (V, longest)."""
    rows = [[BEGIN, *word[: longest - 2], END] for word in words]
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


class Highway(nn.Module):
    """g x + (1 - g) relu(W x), g = sigmoid(V x) (Srivastava 2015)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.both = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        new, gate = self.both(x).chunk(2, 1)
        gate = gate.sigmoid()
        return gate * x + (1 - gate) * new.relu()


class Letters(nn.Module):
    """A word's vector from its letters (Kim 2015)."""

    def __init__(self, p: ElmoPlan) -> None:
        super().__init__()
        self.token = nn.Embedding(PAD + 1, p.letters)
        self.filters = nn.ModuleList(nn.Conv1d(p.letters, count, width) for width, count in p.filters)
        total = sum(count for _, count in p.filters)
        self.highways = nn.ModuleList(Highway(total) for _ in range(p.highways))
        self.project = nn.Linear(total, p.dim)

    def forward(self, words: Tensor) -> Tensor:
        """Read words (N, longest) -> (N, D)."""
        x = self.token(words).mT
        x = torch.cat([f(x).amax(2).relu() for f in self.filters], 1)
        for highway in self.highways:
            x = highway(x)
        return self.project(x)


class ClippedLSTM(nn.Module):
    """An LSTM with a smaller output: c <- clip(f c + i g), h <- clip(P (o tanh(c))), one bias a gate."""

    def __init__(self, p: ElmoPlan) -> None:
        super().__init__()
        self.clip, self.cells = p.clip, p.cells
        self.x = nn.Linear(p.dim, 4 * p.cells, bias=False)
        self.h = nn.Linear(p.dim, 4 * p.cells)
        self.o = nn.Linear(p.cells, p.dim, bias=False)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Read x (B, S, D) from the left -> (B, S, D); what lies behind a row's length means nothing."""
        given, h, c = self.x(x), x.new_zeros(len(x), x.shape[2]), x.new_zeros(len(x), self.cells)
        out = list[Tensor]()
        for step in given.unbind(1):
            i, f, g, o = (step + self.h(h)).chunk(4, 1)
            c = (i.sigmoid() * g.tanh() + f.sigmoid() * c).clamp(-self.clip, self.clip)
            h = self.o(o.sigmoid() * c.tanh()).clamp(-self.clip, self.clip)
            out.append(h)
        return torch.stack(out, 1)


class Elmo(Model):
    """Both language models. `forward` is the one that reads from the left, scored as others are."""

    table: Tensor

    def __init__(self, plan: ElmoPlan, words: Sequence[bytes]) -> None:
        nn.Module.__init__(self)
        self.plan = plan
        self.spec = spec.Model(
            vocab=len(words), dim=plan.dim, depth=plan.depth, context=LIMIT, blocks=(spec.Block(()),), norm=None,
            head=spec.Head(tied=False, bias=True),
        )  # fmt: skip
        self.register_buffer("table", letters(words, plan.longest), persistent=False)
        self.words = Letters(plan)
        self.layers = nn.ModuleList(ClippedLSTM(plan) for _ in range(plan.depth))
        self.back = nn.ModuleList(ClippedLSTM(plan) for _ in range(plan.depth))
        self.head = Head(self.spec, nn.Embedding(1, 1, device="meta"))

    def states(self, tokens: Tensor, ctx: Context, *, back: bool = False) -> list[Tensor]:
        """Return the words and every layer's states, read from the left or from the right: depth + 1 of (T, D)."""
        sizes = [b - a for a, b in pairwise(ctx.cu)]
        known, at = tokens.unique(return_inverse=True)
        words = self.words(self.table[known])[at]
        lengths = torch.tensor(sizes, device=tokens.device)
        place = torch.arange(max(sizes), device=tokens.device)[None, :]
        inside = place < lengths[:, None]
        starts = torch.tensor(ctx.cu[:-1], device=tokens.device)[:, None]
        order = starts + (lengths[:, None] - 1 - place if back else place)
        x = words[order.clamp(min=0, max=len(tokens) - 1)]
        out = [words]
        for i, layer in enumerate(self.back if back else self.layers):
            y = layer(x, lengths)
            x = x + y if i else y
            flat = torch.empty_like(words)
            flat[order[inside]] = x[inside]
            out.append(flat)
        return out

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        """Read from the left: tokens (T,) -> (T, D)."""
        return self.states(tokens, ctx)[-1]

    def both(self, tokens: Tensor, ctx: Context) -> list[Tensor]:
        """Return the layers for a task to mix: depth + 1 of (T, 2D), forward and backward side by side."""
        ways = zip(self.states(tokens, ctx), self.states(tokens, ctx, back=True), strict=True)
        return [torch.cat(pair, 1) for pair in ways]


class Mix(nn.Module):
    """ELMo's vector for one task: gamma * sum of softmax(s)_l layer_l (Peters 2018, equation 1)."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.s, self.gamma = nn.Parameter(torch.zeros(layers)), nn.Parameter(torch.ones(()))

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        return self.gamma * torch.einsum("l,ltd->td", self.s.softmax(0), torch.stack(list(layers)))


class ElmoVectors(Model):
    """ELMo as a task uses it: hidden vectors are its layers of both directions, mixed; it scores no words."""

    def __init__(self, elmo: Elmo) -> None:
        nn.Module.__init__(self)
        self.elmo, self.mix = elmo, Mix(elmo.plan.depth + 1)
        self.spec = replace(elmo.spec, dim=2 * elmo.plan.dim, head=spec.Head(tied=False, scores="nothing"))
        self.layers, self.head = nn.ModuleList(), Head(self.spec, nn.Embedding(1, 1, device="meta"))

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        """Read in both directions: tokens (T,) -> (T, 2D)."""
        return self.mix(self.elmo.both(tokens, ctx))
