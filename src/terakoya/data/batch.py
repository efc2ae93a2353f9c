"""A batch: flat tokens and what each of them is for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows of tokens laid end to end.

    tokens (T,) int64; targets (T,) int64, the token that follows each; weights (T,) float32, what each target counts;
    cu (N+1,) int32, boundaries of the N pieces that may see only themselves; positions (T,) int64, from 0 in each
    piece. `bytes` is the UTF-8 length of the targets that count, for bits per byte. `row_ends` are the ends of the
    rows in the flat batch and `row_bytes` their shares of `bytes`; without them every piece is a row.
    """

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    cu: Tensor
    positions: Tensor
    bytes: int = 0
    row_ends: tuple[int, ...] = ()
    row_bytes: tuple[int, ...] = ()

    @property
    def weight(self) -> float:
        """What the sum of losses over this batch is divided by: Σ weights."""
        return self.weights.sum(dtype=torch.float64).item()

    def split(self, n: int) -> list[Batch]:
        """Cut into n micro-batches along rows, as even as rows allow; the pieces of all are the pieces of this."""
        ends = self.row_ends or tuple(int(end) for end in self.cu[1:])
        row_bytes = self.row_bytes or (0,) * len(ends)
        if sum(row_bytes) != self.bytes:
            raise ValueError("cannot share bytes among micro-batches: the batch does not say which row they are in")
        if not 1 <= n <= len(ends):
            raise ValueError(f"a batch of {len(ends)} rows cannot be split into {n} micro-batches")
        cuts = [len(ends) * i // n for i in range(n + 1)]
        return [self._rows(ends, row_bytes, first, last) for first, last in pairwise(cuts)]

    def _rows(self, ends: tuple[int, ...], row_bytes: tuple[int, ...], first: int, last: int) -> Batch:
        begin, end = (ends[first - 1] if first else 0), ends[last - 1]
        inside = (self.cu >= begin) & (self.cu <= end)
        return Batch(
            self.tokens[begin:end],
            self.targets[begin:end],
            self.weights[begin:end],
            self.cu[inside] - begin,
            self.positions[begin:end],
            sum(row_bytes[first:last]),
            tuple(at - begin for at in ends[first:last]),
            tuple(row_bytes[first:last]),
        )

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on `device`."""
        names = ("tokens", "targets", "weights", "cu", "positions")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})
