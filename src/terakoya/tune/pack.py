"""Samples to rows: best fit, decreasing. Every sample stays whole and sees only itself; nothing is padded."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from terakoya.data.batch import Batch
from terakoya.data.order import epoch_seed, permute
from terakoya.tokenizer import Tokenizer
from terakoya.tune.samples import Sample


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Lay lengths into rows of `room`: longest first, each into the fullest row that still takes it (Johnson 1973)."""
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (space left, row), sorted
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        assert lengths[item] <= room
        at = bisect_left(spaces, (lengths[item], -1))
        if at == len(spaces):
            rows.append([])
            left, row = room, len(rows) - 1
        else:
            left, row = spaces.pop(at)
        rows[row].append(item)
        if left > lengths[item]:
            insort(spaces, (left - lengths[item], row))
    return rows


def dealt(count: int, rows: int, seed: int, step: int) -> list[int]:
    """Return which of `count` items come at `step`: each once an epoch, in another order every time."""
    k = step * rows + np.arange(rows, dtype=np.int64)
    epochs, at = np.divmod(k, count)
    out = np.empty_like(at)
    for epoch in np.unique(epochs).tolist():
        these = epochs == epoch
        out[these] = permute(at[these], count, epoch_seed(seed, epoch))
    return out.tolist()


class Packer:
    """Rows of whole samples, dealt out as a pure function of (seed, step)."""

    def __init__(self, samples: Sequence[Sample], tokenizer: Tokenizer, *, rows: int, context: int, seed: int) -> None:
        self.samples, self.rows, self.context, self.seed = list(samples), rows, context, seed
        self.plan = best_fit([s.length for s in samples], context)
        self._bytes = [sum(len(tokenizer.token_bytes(i)) for i, w in _learnt(s) if w) for s in samples]

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every sample has come at least once."""
        return -(-len(self.plan) // self.rows)

    @property
    def filled(self) -> float:
        """Share of the rows' room that samples take."""
        return sum(s.length for s in self.samples) / (len(self.plan) * self.context)

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides what comes at which step."""
        made = hashlib.sha256(repr((self.rows, self.context, self.seed)).encode("ascii"))
        for sample in self.samples:
            made.update(np.array(sample.ids, "<i8").tobytes() + np.array(sample.weights, "<f4").tobytes())
        return made.hexdigest()

    def batch(self, step: int) -> Batch:
        """Return the batch of `step` (from 0)."""
        return self._laid(self.chosen(step))

    def chosen(self, step: int) -> list[list[int]]:
        """Return the samples of each row of `step`."""
        return [self.plan[row] for row in dealt(len(self.plan), self.rows, self.seed, step)]

    def evaluate(self) -> Iterator[Batch]:
        """Yield every sample exactly once."""
        for first in range(0, len(self.plan), self.rows):
            yield self._laid(self.plan[first : first + self.rows])

    def _laid(self, rows: Sequence[Sequence[int]]) -> Batch:
        order = [item for row in rows for item in row]
        ends = accumulate(sum(self.samples[i].length for i in row) for row in rows)
        shares = tuple(sum(self._bytes[i] for i in row) for row in rows)
        return laid([self.samples[i] for i in order], tuple(ends), shares)


def laid(samples: Sequence[Sample], row_ends: tuple[int, ...] = (), row_bytes: tuple[int, ...] = ()) -> Batch:
    """Lay samples end to end, each a piece of its own."""
    lengths = [s.length for s in samples]
    return Batch(
        tokens=torch.tensor([i for s in samples for i in s.ids[:-1]]),
        targets=torch.tensor([i for s in samples for i in s.ids[1:]]),
        weights=torch.tensor([w for s in samples for w in s.weights[1:]], dtype=torch.float32),
        cu=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        positions=torch.cat([torch.arange(n) for n in lengths]),
        bytes=sum(row_bytes),
        row_ends=row_ends,
        row_bytes=row_bytes,
    )


def plain(batch: Batch) -> dict[str, Any]:
    """Return the fields that every batch has, to build a richer one of them."""
    return {name: getattr(batch, name) for name in Batch.__dataclass_fields__}


def unsized(batch: Batch) -> dict[str, Any]:
    """The same without lengths in bytes: where the loss is no likelihood of the text, bits per byte mean nothing."""
    return plain(batch) | {"bytes": 0, "row_bytes": ()}


def _learnt(sample: Sample) -> Iterator[tuple[int, float]]:
    return zip(sample.ids[1:], sample.weights[1:], strict=True)
