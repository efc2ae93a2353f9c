"""A step as numbers on the device: what its kernels are told. Laid out on the host and carried over in two pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from terakoya.engine.kinds import BLOCK
from terakoya.engine.paged import Part
from terakoya.engine.store import Store
from terakoya.engine.whole import WIDE, Where


@dataclass(frozen=True)
class Size:
    """How much a step may hold: T tokens of N sequences, P pages of each in every group."""

    tokens: int
    sequences: int
    pages: int
    groups: int

    @property
    def longs(self) -> list[int]:
        """Lengths of tokens, positions, slots, and rows of every group."""
        return [self.tokens, self.tokens, self.sequences, *[self.tokens] * self.groups]

    @property
    def ints(self) -> list[int]:
        """Lengths of the ends of the sequences, and for every group: first, used, ends of what is used, table."""
        n = self.sequences
        return [n + 1, *[n, n, n + 1, n * self.pages] * self.groups]


def size_of(store: Store, parts: Sequence[Part], pad: int = 0) -> Size:
    """Return the size of a step; pages by powers of two, so that there are few sizes."""
    most = 1
    for part in parts:
        for g in store.groups:
            pages = -(-(part.start + part.count) // BLOCK) - g.reach.lowest(part.start) // BLOCK
            most = max(most, -(-pages // WIDE))
    tokens = sum(p.count for p in parts) + pad
    return Size(tokens, len(parts) + pad, WIDE << (most - 1).bit_length(), len(store.groups))


@dataclass(frozen=True)
class Numbers:
    """A step on the host: `longs` int64 and `ints` int32, cut as its size says."""

    longs: np.ndarray
    ints: np.ndarray
    longest: tuple[int, int]  # the most queries, the most keys of one sequence


def numbers(store: Store, parts: Sequence[Part], ids: Sequence[Sequence[int]], size: Size) -> Numbers:
    """Lay a step out. What the size has more is filled with sequences of one token that nobody looks at."""
    longs, ints = np.zeros(sum(size.longs), np.int64), np.zeros(sum(size.ints), np.int32)
    tokens, pos, slots, *rows = np.split(longs, list(accumulate(size.longs))[:-1])
    cu, *rest = np.split(ints, list(accumulate(size.ints))[:-1])
    real, pad = len(parts), size.sequences - len(parts)
    counts = [p.count for p in parts] + [1] * pad
    cu[1:] = np.cumsum(counts)
    end = int(cu[real])
    tokens[:end] = [id for some in ids for id in some]
    pos[:end] = np.concatenate([np.arange(p.start, p.start + p.count) for p in parts]) if parts else ()
    if store.states is not None:
        slots[:] = store.states.pool.total
        slots[:real] = np.array([p.held.slot for p in parts], np.int64)
    keys = 1
    for g, group in enumerate(store.groups):
        first, used, ends, table = rest[4 * g : 4 * g + 4]
        table = table.reshape(size.sequences, size.pages)
        table[:] = group.pool.total  # a spare page
        used[:] = 1
        rows[g][:] = group.pool.total * BLOCK
        for n, part in enumerate(parts):
            low = group.reach.lowest(part.start) // BLOCK
            stop = part.start + part.count
            pages = np.array(part.held.tables[g].pages[low : -(-stop // BLOCK)], np.int64)
            table[n, : len(pages)] = pages
            first[n], used[n] = low * BLOCK, stop - low * BLOCK
            at = np.arange(part.start, stop)
            rows[g][cu[n] : cu[n + 1]] = pages[at // BLOCK - low] * BLOCK + at % BLOCK
        ends[1:] = np.cumsum(used)
        keys = max(keys, int(used.max(initial=1)))
    return Numbers(longs, ints, (max(counts, default=1), keys))


@dataclass(frozen=True)
class Notes:
    """What kernels keep beside a store: for every group, room to write down which page of its sequence a page is."""

    device: torch.device
    pages: tuple[Tensor, ...]

    @staticmethod
    def of(store: Store, device: torch.device) -> Notes:
        counts = [g.pool.total + g.spare for g in store.groups]
        return Notes(device, tuple(torch.zeros(n, dtype=torch.int32, device=device) for n in counts))


class Step:
    """The numbers of a step on the device."""

    def __init__(self, size: Size, longs: Tensor, ints: Tensor, notes: Notes, longest: tuple[int, int]) -> None:
        self.size, self.longs, self.ints, self.longest = size, longs, ints, longest
        self.tokens, self.pos, self.slots, *rows = longs.split(size.longs)
        self.cu, *rest = ints.split(size.ints)
        self.where, self.ends = [], []
        for g in range(size.groups):
            first, used, ends, table = rest[4 * g : 4 * g + 4]
            self.where.append(Where(rows[g], first, used, table.view(size.sequences, size.pages), notes.pages[g]))
            self.ends.append(ends)

    @staticmethod
    def of(size: Size, found: Numbers, notes: Notes, longest: tuple[int, int] | None = None) -> Step:
        """Carry the numbers of a step over; `longest`: the most queries and keys of a sequence, now and later."""
        longs, ints = (torch.from_numpy(a).to(notes.device, copy=True) for a in (found.longs, found.ints))
        return Step(size, longs, ints, notes, longest or found.longest)

    def take(self, found: Numbers) -> None:
        """Go over to another step of the same size, in the same place."""
        self.longs.copy_(torch.from_numpy(found.longs))
        self.ints.copy_(torch.from_numpy(found.ints))
