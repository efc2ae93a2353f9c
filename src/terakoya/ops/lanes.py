"""Recurrent cells over sequences side by side: a step of time is one product for all that still run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from terakoya.ops import steps


@dataclass(frozen=True)
class Lanes:
    """The order in which a flat batch is read time step by time step, the longest sequence first."""

    order: Tensor  # (T,) token at each place
    back: Tensor  # (T,) place of each token
    sizes: Tensor  # (longest,) sequences that have a token at each time, on the CPU
    rows: Tensor  # (N,) sequence of each lane
    lane: Tensor  # (N,) lane of each sequence
    places: Tensor  # (T,) where each token stands in a table by time and lane
    ends: Tensor  # (N,) the last token of each sequence

    # torch's packed loop differentiates a slice of everything at every step, but for LSTMs; padded it does not.
    def spread(self, x: Tensor) -> Tensor:
        """Lay a flat batch out by time and lane, whatever stands behind a sequence's end: (T, D) -> (longest, N, D)."""
        if len(self.rows) == 1:
            return x[:, None]
        return (
            x.new_zeros(len(self.sizes) * len(self.rows), x.shape[1])
            .index_copy(0, self.places, x)
            .unflatten(0, (len(self.sizes), -1))
        )

    def gather(self, out: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Undo `spread`: (longest, N, H) -> (T, H), and the last row of each sequence (N, H)."""
        flat = out.flatten(0, 1)
        y = flat if len(self.rows) == 1 else flat.index_select(0, self.places)
        return y, (y[self.ends],)

    @staticmethod
    def of(cu: Sequence[int], device: torch.device | str) -> Lanes:
        """Lay out the sequences with boundaries `cu`; none is empty."""
        starts = torch.tensor(cu[:-1])
        lengths = torch.tensor([b - a for a, b in pairwise(cu)])
        rows = lengths.argsort(descending=True, stable=True)
        time = torch.arange(int(lengths.max()))
        running = time[:, None] < lengths[rows][None, :]
        order = (time[:, None] + starts[rows][None, :])[running]
        sizes = running.sum(1)
        places = running.flatten().nonzero()[:, 0]
        back = order.argsort()
        parts = (order, back, rows, rows.argsort(), places[back], starts + lengths - 1)
        order, back, rows, lane, places, ends = (t.to(device) for t in parts)
        return Lanes(order, back, sizes, rows, lane, places, ends)


def rnn(x: Tensor, lanes: Lanes, weights: list[Tensor], state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run tanh cells: x (T, D), state ((N, H),) -> (T, H), state after the last token of each sequence."""
    if steps.wanted(x, *weights, *state):
        return lanes.gather(steps.rnn(lanes.spread(x), state[0][lanes.rows], weights))
    out, _ = torch.rnn_tanh(lanes.spread(x), _in(state[0], lanes), weights, True, 1, 0.0, False, False, False)
    return lanes.gather(out)


def gru(x: Tensor, lanes: Lanes, weights: list[Tensor], state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run gated recurrent units: x (T, D), state ((N, H),) -> (T, H), last state."""
    if steps.wanted(x, *weights, *state):
        return lanes.gather(steps.gru(lanes.spread(x), state[0][lanes.rows], weights))
    out, _ = torch.gru(lanes.spread(x), _in(state[0], lanes), weights, True, 1, 0.0, False, False, False)
    return lanes.gather(out)


def lstm(
    x: Tensor, lanes: Lanes, weights: list[Tensor], state: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run LSTM cells: x (T, D), state ((N, P), (N, H)) -> (T, P), last state; P = H without a projection."""
    start = [_in(s, lanes) for s in state]
    out, h, c = torch.lstm(x[lanes.order], lanes.sizes, start, weights, True, 1, 0.0, False, False)
    return out[lanes.back], (h[0][lanes.lane], c[0][lanes.lane])


def _in(state: Tensor, lanes: Lanes) -> Tensor:
    return state[lanes.rows][None]
