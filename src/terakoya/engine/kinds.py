"""The kinds of memory that layers ask for: keys and values by pages, of a text or of its source; states by slots."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from terakoya.engine.pool import Pool

BLOCK = 16  # tokens of a page
SPARE = 16  # pages that nobody holds, behind the others, where kernels read whole pages: the first is there to spoil


@dataclass(frozen=True)
class Reach:
    """How far back a layer looks: everything, a window, or the chunk of positions that a token stands in.

    `source`: not back at all, but at another text, which an encoder read.
    """

    window: int | None = None
    chunk: int | None = None
    source: bool = False

    def lowest(self, pos: int) -> int:
        """Return the first position that a token at `pos` or later may still see."""
        low = 0
        if self.window is not None:
            low = max(low, pos - self.window + 1)
        if self.chunk is not None:
            low = max(low, pos // self.chunk * self.chunk)
        return low

    @property
    def span(self) -> int | None:
        """Tokens that can be seen at once; None: all."""
        return min((n for n in (self.window, self.chunk) if n is not None), default=None)


@dataclass(frozen=True)
class Shape:
    """What one layer stores: per token for attention (k, v), per sequence for a recurrent one."""

    sizes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    reach: Reach | None = None  # None: recurrent

    @property
    def bytes(self) -> int:
        return sum(torch.Size(size).numel() * d.itemsize for size, d in zip(self.sizes, self.dtypes, strict=True))

    def room(self, count: int, device: torch.device) -> tuple[Tensor, ...]:
        """Allocate `count` of them; the system gives the memory as it is first written."""
        pairs = zip(self.sizes, self.dtypes, strict=True)
        return tuple(torch.empty(count, *size, dtype=d, device=device) for size, d in pairs)


class Group:
    """Layers with one reach: their pages, and one table per sequence for all of them.

    With `spare` pages behind them, kernels may read a page as a whole: rows that nobody wrote yet are zeros.
    """

    def __init__(
        self, reach: Reach, shapes: dict[int, Shape], pages: int, device: torch.device, spare: int = 0
    ) -> None:
        self.reach, self.pool, self.spare = reach, Pool(pages), spare
        self.memory = {layer: s.room((pages + spare) * BLOCK, device) for layer, s in shapes.items()}
        self.clear([*range(pages, pages + spare)])

    def rows(self, page: int) -> slice:
        """Return the rows of the memory that belong to a page."""
        return slice(page * BLOCK, (page + 1) * BLOCK)

    def clear(self, pages: Sequence[int]) -> None:
        """Fill pages with zeros."""
        for first, last in runs(pages):
            for tensors in self.memory.values():
                for t in tensors:
                    t[first * BLOCK : last * BLOCK] = 0

    def needs(self, end: int) -> int:
        """Return how many blocks before block `end` a sequence must have to go on there."""
        return end - self.reach.lowest(end * BLOCK) // BLOCK


class States:
    """Slots of recurrent state: one per sequence, the rest for states kept at block ends."""

    def __init__(self, shapes: dict[int, Shape], slots: int, device: torch.device, spare: int = 0) -> None:
        self.pool = Pool(slots)
        self.memory = {layer: s.room(slots + spare, device) for layer, s in shapes.items()}
        self.rest()

    def rest(self) -> None:
        """Give the spare slot, if there is one, the state of nothing."""
        for tensors in self.memory.values():
            for t in tensors:
                t[self.pool.total :] = 0

    def copy(self, source: int, target: int) -> None:
        for tensors in self.memory.values():
            for t in tensors:
                t[target] = t[source]


@dataclass
class Table:
    """The pages of one sequence in one group. Pages below what may still be seen are gone (-1)."""

    pages: list[int] = field(default_factory=list)
    gone: int = 0
    bend: int = 0  # the last index whose page does not follow the one before it
    last: int = -1
    next: int | None = None  # the page to take next, if it is to be had

    def append(self, page: int) -> None:
        if self.pages and page != self.last + 1:
            self.bend = len(self.pages)
        self.pages.append(page)
        self.last, self.next = page, page + 1


@dataclass
class Slab:
    """What one sequence holds of its source: its ids, its pages, and whether they are written."""

    ids: tuple[int, ...]
    names: list[bytes]
    table: Table = field(default_factory=Table)
    filled: bool = False
    named: bool = False
    mine: list[int] = field(default_factory=list)  # pages named by this sequence


class Sources(Group):
    """Keys and values that layers of cross-attention made of an encoder's vectors: whole, once per source.

    They stay as long as a sequence looks at them, and after that until their room is needed.
    """

    def open(self, ids: Sequence[int], salt: bytes, owner: int) -> Slab | None:
        """Hold the pages of a source, written ones if it is known; None where there is no room."""
        count = -(-len(ids) // BLOCK)
        slab = Slab(tuple(ids), [salt + i.to_bytes(4, "little") for i in range(count)])
        known = [p for name in slab.names if (p := self.pool.find(name)) is not None]
        slab.filled = slab.named = len(known) == count
        if slab.filled:
            for page in known:
                slab.table.append(self.pool.share(page))
            return slab
        if self.pool.available < count:
            return None
        slab.table.next = self.pool.claim(owner, count)
        for _ in range(count):
            page = self.pool.take(slab.table.next, owner)
            assert page is not None
            slab.table.append(page)
        self.pool.disclaim(owner)
        return slab

    def settle(self, slab: Slab) -> None:
        """Let others find what has been written."""
        if slab.filled and not slab.named:
            slab.named = True
            pairs = zip(slab.table.pages, slab.names, strict=True)
            slab.mine = [page for page, name in pairs if self.pool.name(page, name)]

    def close(self, slab: Slab, *, spoilt: bool = False) -> None:
        """Let go; `spoilt`: what this sequence wrote must not be used again."""
        for page in slab.mine if spoilt else ():
            self.pool.unname(page)
        for page in reversed(slab.table.pages):
            self.pool.release(page)
        slab.table = Table()


def runs(pages: Sequence[int]) -> list[tuple[int, int]]:
    """Return the stretches (first, last + 1) of pages that follow each other."""
    found: list[tuple[int, int]] = []
    for page in pages:
        if found and found[-1][1] == page:
            found[-1] = (found[-1][0], page + 1)
        else:
            found.append((page, page + 1))
    return found


def beside(layer: int) -> int:
    """Return the number by which a layer's memory of the source is known: its own is `layer`."""
    return -1 - layer


def salted(salt: bytes, source: Sequence[int]) -> bytes:
    """Return a salt under which only continuations of one source are known."""
    data = b"".join(id.to_bytes(4, "little") for id in source)
    return hashlib.blake2b(len(salt).to_bytes(8, "little") + salt + data, digest_size=16).digest()
