"""AWD-LSTM (Merity 2017, arXiv:1708.02182), the language model of ULMFiT.

Four kinds of noise, all drawn from the step: whole words are dropped from the table; masks over the input, between
layers and on the output stay the same along time; and single weights of the hidden-to-hidden products are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.context import Context
from terakoya.model.model import Head, Model
from terakoya.model.noise import Noise
from terakoya.ops import lanes

LIMIT = 1 << 16


@dataclass(frozen=True)
class Drops:
    """Shares dropped; the defaults are Merity's for WikiText-2."""

    word: float = 0.1
    input: float = 0.65
    layer: float = 0.2
    output: float = 0.4
    weight: float = 0.5

    def __post_init__(self) -> None:
        for name in ("word", "input", "layer", "output", "weight"):
            if not 0 <= getattr(self, name) < 1:
                raise TerakoyaError(f"awd.drops.{name}", given=getattr(self, name), allowed="0 or more, less than 1")


@dataclass(frozen=True)
class AwdPlan:
    """Sizes: words of `dim`, LSTMs of `hidden` but the last, which gives `dim` again for the tied head."""

    dim: int = 400
    hidden: int = 1150
    depth: int = 3
    drops: Drops = field(default_factory=Drops)

    def __post_init__(self) -> None:
        for name in ("dim", "hidden", "depth"):
            if getattr(self, name) < 1:
                raise TerakoyaError(f"awd.{name}", given=getattr(self, name), allowed="1 or more")

    def widths(self) -> list[tuple[int, int]]:
        """Return (input, output) of each layer."""
        ends = [self.dim, *[self.hidden] * (self.depth - 1), self.dim]
        return list(pairwise(ends))


class DroppedLSTM(nn.Module):
    """An LSTM whose hidden-to-hidden weights are partly dropped, the same ones for all of a batch (DropConnect)."""

    def __init__(self, width: tuple[int, int], layer: int, drop: float, noise: Noise) -> None:
        super().__init__()
        self.layer, self.share, self.noise, self.hidden = layer, drop, noise, width[1]
        self.x, self.h = nn.Linear(width[0], 4 * width[1]), nn.Linear(width[1], 4 * width[1])

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Read on from the context's state: x (T, D) -> (T, H)."""
        order = ctx.share("lanes", lambda: lanes.Lanes.of(ctx.cu, x.device))
        state = ctx.state(self.layer)
        if state is None:
            zero = x.new_zeros(len(ctx.cu) - 1, self.hidden)
            state = (zero, zero)
        weights = [self.x.weight, self.noise.drop(self.h.weight, self.share), self.x.bias, self.h.bias]
        y, state = lanes.lstm(x, order, weights, state)
        ctx.commit(self.layer, state)
        return y


class AwdLstm(Model):
    """The language model; `states` are the top layer's outputs before and after the last mask, for the penalties."""

    def __init__(self, plan: AwdPlan, vocab: int) -> None:
        nn.Module.__init__(self)
        self.plan, self.noise = plan, Noise()
        self.spec = spec.Model(
            vocab=vocab, dim=plan.dim, depth=plan.depth, context=LIMIT, blocks=(spec.Block(()),), norm=None,
            head=spec.Head(tied=True, bias=True),
        )  # fmt: skip
        self.token = nn.Embedding(vocab, plan.dim)
        self.layers = nn.ModuleList(
            DroppedLSTM(width, i, plan.drops.weight, self.noise) for i, width in enumerate(plan.widths())
        )
        self.head = Head(self.spec, self.token)

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        """Read: tokens (T,) -> (T, D)."""
        return self.states(tokens, ctx)[1]

    def states(self, tokens: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """Return the top states without and with the output's mask: (T, D) each."""
        drops, table = self.plan.drops, self.token.weight
        if self.noise.on and drops.word:
            table = table * self.noise.mask((len(table), 1), drops.word, table)
        x = self.locked(nn.functional.embedding(tokens, table), ctx, drops.input)
        for i, layer in enumerate(self.layers):
            x = layer(x, ctx)
            if i + 1 < len(self.layers):
                x = self.locked(x, ctx, drops.layer)
        return x, self.locked(x, ctx, drops.output)

    def locked(self, x: Tensor, ctx: Context, share: float) -> Tensor:
        """Drop the same channels at all times of a sequence: x (T, D) -> (T, D) (Gal and Ghahramani 2016)."""
        if not (self.noise.on and share):
            return x
        mask = self.noise.mask((len(ctx.cu) - 1, x.shape[1]), share, x)
        counts = torch.tensor([b - a for a, b in pairwise(ctx.cu)], device=x.device)
        return x * mask.repeat_interleave(counts, 0)
