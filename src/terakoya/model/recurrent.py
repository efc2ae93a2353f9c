"""Recurrent cells: Elman's network, LSTM, GRU. One step of each is written out; `ops.lanes` runs them fast."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from terakoya.model import spec, spec_recurrent
from terakoya.model.context import Context
from terakoya.model.kernels import sequences
from terakoya.ops import lanes

State = tuple[Tensor, ...]


class Cell(nn.Module):
    """What the three have in common: gates of input and of the last output, (gates * H, D) and (gates * H, P)."""

    gates: int
    run: Callable[..., tuple[Tensor, State]]

    def __init__(self, model: spec.Model, layer: int, hidden: int) -> None:
        super().__init__()
        self.layer, self.hidden, self.dim = layer, hidden, model.dim
        self.x = nn.Linear(model.dim, self.gates * hidden)
        self.h = nn.Linear(model.dim, self.gates * hidden)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Read every sequence from its beginning or its state: x (T, D) -> (T, D)."""
        order = sequences(ctx, x).lanes
        state = ctx.state(self.layer) or self.nothing(len(ctx.cu) - 1, x)
        y, state = type(self).run(x, order, self.weights(), state)
        ctx.commit(self.layer, state)
        return y

    def nothing(self, count: int, x: Tensor) -> State:
        """Return the state of sequences that have not begun."""
        return (x.new_zeros(count, self.dim),)

    def weights(self) -> list[Tensor]:
        """Return the weights in torch's order."""
        return [self.x.weight, self.h.weight, self.x.bias, self.h.bias]

    def step(self, x: Tensor, state: State) -> State:
        """Advance by one token: x (D,), state (each (H,)) -> state; its first part is the output."""
        raise NotImplementedError

    def naive(self, x: Tensor, ctx: Context) -> Tensor:
        """Do what `forward` does, token after token by the definition."""
        held = ctx.state(self.layer) or self.nothing(len(ctx.cu) - 1, x)
        out, ends, tokens = [], [], x.unbind()
        for n, (a, b) in enumerate(pairwise(ctx.cu)):
            state = tuple(s[n] for s in held)
            for token in tokens[a:b]:
                state = self.step(token, state)
                out.append(state[0])
            ends.append(state)
        ctx.commit(self.layer, tuple(torch.stack(part) for part in zip(*ends, strict=True)))
        return torch.stack(out)


class RNN(Cell):
    """h <- tanh(W x + b + U h + c) (Elman 1990, Cognitive Science 14)."""

    gates, run = 1, staticmethod(lanes.rnn)

    def __init__(self, s: spec_recurrent.RNN, model: spec.Model, layer: int) -> None:
        super().__init__(model, layer, model.dim)
        self.spec = s

    def step(self, x: Tensor, state: State) -> State:
        return (torch.tanh(self.x(x) + self.h(state[0])),)


class LSTM(Cell):
    """c <- f c + i g; h <- P (o tanh(c)), rows in the order i, f, g, o (Hochreiter 1997; Gers 2000; P: Sak 2014)."""

    gates, run = 4, staticmethod(lanes.lstm)

    def __init__(self, s: spec_recurrent.LSTM, model: spec.Model, layer: int) -> None:
        hidden = s.hidden or model.dim
        super().__init__(model, layer, hidden)
        self.spec = s
        self.o = nn.Linear(hidden, model.dim, bias=False) if hidden != model.dim else None

    def nothing(self, count: int, x: Tensor) -> State:
        return x.new_zeros(count, self.dim), x.new_zeros(count, self.hidden)

    def weights(self) -> list[Tensor]:
        return super().weights() + ([] if self.o is None else [self.o.weight])

    def step(self, x: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = (self.x(x) + self.h(h)).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h if self.o is None else self.o(h)), c


class GRU(Cell):
    """h <- (1 - z) n + z h with n = tanh(W_n x + r (U_n h)), rows in the order r, z, n (Cho 2014)."""

    gates, run = 3, staticmethod(lanes.gru)

    def __init__(self, s: spec_recurrent.GRU, model: spec.Model, layer: int) -> None:
        super().__init__(model, layer, model.dim)
        self.spec = s

    def step(self, x: Tensor, state: State) -> State:
        (h,) = state
        (xr, xz, xn), (hr, hz, hn) = self.x(x).chunk(3), self.h(h).chunk(3)
        r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
        n = torch.tanh(xn + r * hn)
        return ((1 - z) * n + z * h,)
