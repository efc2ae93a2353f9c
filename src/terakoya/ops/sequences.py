"""How the sequences of a flat batch lie: in pieces for parallel scans, side by side for recurrent cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import groupby, pairwise

import torch
from torch import Tensor

from terakoya.ops.lanes import Lanes


class Sequences:
    """N sequences of a flat batch, none empty, with boundaries `cu`; what is worked out is kept for the step."""

    def __init__(self, cu: Sequence[int], device: torch.device | str) -> None:
        self.cu, self.device = list(cu), device
        self.lengths = [b - a for a, b in pairwise(cu)]
        self._chunks: dict[int, Chunks] = {}

    @property
    def count(self) -> int:
        return len(self.lengths)

    @cached_property
    def lanes(self) -> Lanes:
        return Lanes.of(self.cu, self.device)

    @cached_property
    def first(self) -> Tensor:
        """The first token of each sequence (N,)."""
        return torch.tensor(self.cu[:-1], device=self.device)

    @cached_property
    def last(self) -> Tensor:
        """The last token of each sequence (N,)."""
        return torch.tensor(self.cu[1:], device=self.device) - 1

    @cached_property
    def backward(self) -> Sequences:
        """The same sequences read from the end of the batch to its beginning."""
        return Sequences([self.cu[-1] - end for end in reversed(self.cu)], self.device)

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """Neighbours of equal length: (length, how many)."""
        return [(n, len(list(same))) for n, same in groupby(self.lengths)]

    def chunks(self, size: int) -> Chunks:
        """Return the sequences cut into pieces of at most `size` tokens."""
        size = min(size, max(self.lengths))
        if size not in self._chunks:
            self._chunks[size] = Chunks(self.lengths, size, self.device)
        return self._chunks[size]


class Chunks:
    """Sequences cut into M pieces of C tokens; a sequence's last piece is filled up with zeros."""

    def __init__(self, lengths: Sequence[int], size: int, device: torch.device | str) -> None:
        self.size = size
        counts = [-(-n // size) for n in lengths]
        self.count = sum(counts)
        self.whole = all(n % size == 0 for n in lengths)
        self.held = [min(size, n - i * size) for n, c in zip(lengths, counts, strict=True) for i in range(c)]
        starts = [0]
        for c in counts:
            starts.append(starts[-1] + c)
        lanes = sorted(range(len(counts)), key=lambda n: -counts[n])
        steps = [[starts[n] + j for n in lanes if counts[n] > j] for j in range(max(counts))]
        flat = [i for step in steps for i in step]
        self.sizes = [len(step) for step in steps]
        self.steps = [torch.tensor(step, device=device) for step in steps]
        self.lanes = torch.tensor(lanes, device=device)  # the sequence of each lane, the longest first
        self.lane = self.lanes.argsort()
        self.place = torch.tensor(flat, device=device).argsort()  # where each chunk comes in the order of the steps
        self.single = len(counts) == 1
        if not self.whole:
            index, token = [], 0
            for n in self.held:
                index += [*range(token, token + n), *([-1] * (size - n))]
                token += n
            table = torch.tensor(index, device=device)
            self.filled = table >= 0
            self.index = table.clamp(min=0)
            self.tokens = self.filled.nonzero()[:, 0]

    def cut(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """Cut a flat batch: x (T, ...) -> (M, C, ...), with `fill` where there is no token."""
        if self.whole:
            return x.view(self.count, self.size, *x.shape[1:])
        rows = x.index_select(0, self.index)
        empty = ~self.filled.view(-1, *[1] * (x.dim() - 1))
        return rows.masked_fill(empty, fill).view(self.count, self.size, *x.shape[1:])

    def join(self, x: Tensor) -> Tensor:
        """Put the pieces together again: x (M, C, ...) -> (T, ...)."""
        flat = x.reshape(self.count * self.size, *x.shape[2:])
        return flat if self.whole else flat.index_select(0, self.tokens)

    def carry(self, state: Tensor, advance: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Pass a state from piece to piece: state (N, ...) -> (before each piece (M, ...), at the end (N, ...)).

        `advance(state (n, ...), pieces (n,))` gives the state behind those pieces; sequences go side by side.
        """
        held, before, ended = state[self.lanes], [], []
        for n, pieces in zip(self.sizes, self.steps, strict=True):
            if n < held.shape[0]:
                ended.append(held[n:])
                held = held[:n]
            before.append(held)
            held = advance(held, pieces)
        last = torch.cat([held, *reversed(ended)])[self.lane]
        return torch.cat(before)[self.place], last

    def carry_back(self, state: Tensor, advance: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Pass a slope from piece to piece, the last first: (N, ...) -> (behind each piece (M, ...), at the start)."""
        behind = state.new_empty(self.count, *state.shape[1:])
        held = state[self.lanes]
        for n, pieces in zip(reversed(self.sizes), reversed(self.steps), strict=True):
            behind[pieces] = held[:n]
            held = torch.cat([advance(held[:n], pieces), held[n:]])
        return behind, held[self.lane]
