"""What sequences remember between steps, in one budget of bytes: keys and values by pages, recurrent states by slots.

Layers that remember equally far share one page table. A page is BLOCK tokens; the pages of one sequence lie side by
side wherever possible, so that reading them is a slice. Full blocks are known by a hash over all tokens up to their
end; what no sequence holds any more stays until its room is needed, and a new sequence that begins alike goes on from
there. Recurrent states are kept at block ends for the same purpose.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from terakoya.engine.pool import Pool
from terakoya.errors import TerakoyaError

BLOCK = 16  # tokens of a page
AHEAD = 512  # tokens of an answer that a new sequence wishes to have side by side with its prompt


@dataclass(frozen=True)
class Reach:
    """How far back a layer looks: everything, a window, or the chunk of positions that a token stands in."""

    window: int | None = None
    chunk: int | None = None

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
    """Layers with one reach: their pages, and one table per sequence for all of them."""

    def __init__(self, reach: Reach, shapes: dict[int, Shape], pages: int, device: torch.device) -> None:
        self.reach, self.pool = reach, Pool(pages)
        self.memory = {layer: s.room(pages * BLOCK, device) for layer, s in shapes.items()}

    def rows(self, page: int) -> slice:
        """Return the rows of the memory that belong to a page."""
        return slice(page * BLOCK, (page + 1) * BLOCK)

    def needs(self, end: int) -> int:
        """Return how many blocks before block `end` a sequence must have to go on there."""
        return end - self.reach.lowest(end * BLOCK) // BLOCK


class States:
    """Slots of recurrent state: one per sequence, the rest for states kept at block ends."""

    def __init__(self, shapes: dict[int, Shape], slots: int, device: torch.device) -> None:
        self.pool = Pool(slots)
        self.memory = {layer: s.room(slots, device) for layer, s in shapes.items()}

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
class Held:
    """What one sequence holds: a table per group, a slot of state, and the hashes of its full blocks."""

    id: int
    tables: list[Table]
    slot: int | None = None
    hashes: list[bytes] = field(default_factory=list)
    named: int = 0  # blocks that have been offered to the prefix cache
    mine: list[tuple[Pool, int]] = field(default_factory=list)  # pages named by this sequence


class Store:
    """The memory of all sequences of one model."""

    def __init__(
        self,
        shapes: dict[int, Shape],
        budget: int,
        *,
        sequences: int,
        step: int,
        device: torch.device | str = "cpu",
        poison: bool = False,
    ) -> None:
        self.shapes, self.poison, self.step = shapes, poison, step
        by_reach: dict[Reach, dict[int, Shape]] = {}
        for layer, s in shapes.items():
            if s.reach is not None:
                by_reach.setdefault(s.reach, {})[layer] = s
        recurrent = {layer: s for layer, s in shapes.items() if s.reach is None}
        pages, slots = _split(by_reach, recurrent, budget, sequences, step)
        device = torch.device(device)
        self.groups = [Group(r, s, n, device) for (r, s), n in zip(by_reach.items(), pages, strict=True)]
        self.group_of = {layer: i for i, g in enumerate(self.groups) for layer in g.memory}
        self.states = States(recurrent, slots, device) if recurrent else None
        self.bytes = sum(t.nbytes for part in self._parts() for ts in part.memory.values() for t in ts)
        self._count = 0
        if poison:
            for part in self._parts():
                part.pool.emptied = list(range(part.pool.total))
            self.check()

    def _parts(self) -> list[Group | States]:
        return [*self.groups, *([self.states] if self.states else [])]

    @property
    def longest(self) -> int:
        """Tokens that one sequence may have when it is alone; a very large number where nothing grows."""
        longest = 1 << 40
        for g in self.groups:
            if g.reach.span is None or g.pool.total < _most(g.reach.span, self.step):
                longest = min(longest, g.pool.total * BLOCK)
        return longest

    @property
    def capacity(self) -> int:
        """Tokens that fit at once, over all sequences (of the layers that keep everything, else of all)."""
        whole = [g for g in self.groups if g.reach.span is None] or self.groups
        return min((g.pool.total * BLOCK for g in whole), default=self.longest)

    def available(self, tokens: int) -> bool:
        """Tell whether `tokens` more could be held now, if nobody else took any."""
        return all(g.pool.available >= self._pages(g, tokens) for g in self.groups) and (
            self.states is None or self.states.pool.available > 0
        )

    def _pages(self, g: Group, tokens: int) -> int:
        need = -(-tokens // BLOCK)
        return need if g.reach.span is None else min(need, _most(g.reach.span, self.step))

    # ---- sequences

    def open(self, tokens: Sequence[int], *, salt: bytes = b"", more: int = 0, unit: int = BLOCK) -> Held | None:
        """Begin a sequence, with as much of `tokens` as is known already; None where there is no slot for its state.

        At least the last token is left to compute. `more` is how many tokens may follow; what is known is cut to a
        multiple of `unit`. `found` says how far it came.
        """
        self._count += 1
        held = Held(self._count, [Table() for _ in self.groups])
        held.hashes = chain(tokens, salt)
        blocks = self._known(held.hashes[: (len(tokens) - 1) // BLOCK], unit // BLOCK)
        if self.states is not None:
            blocks = self._begin(held, blocks)
            if held.slot is None:
                return None
        whole = len(tokens) + min(more, AHEAD)
        for g, table in zip(self.groups, held.tables, strict=True):
            self._adopt(g, table, held, blocks, self._pages(g, whole))
        held.named = blocks
        self.check()
        return held

    def found(self, held: Held) -> int:
        """Return how many tokens a newly opened sequence has already."""
        return held.named * BLOCK

    def extend(self, held: Held, end: int) -> int:
        """Take pages for the tokens up to `end`; return up to where there are pages now (where all are taken: less)."""
        for g, table in zip(self.groups, held.tables, strict=True):
            while len(table.pages) * BLOCK < end:
                if table.next is None or not g.pool.fits(table.next, held.id):
                    g.pool.disclaim(held.id)
                    table.next = g.pool.claim(held.id, self._pages(g, AHEAD // 4))
                page = g.pool.take(table.next, held.id)
                if page is None:
                    break
                table.append(page)
        self.check()
        return min((len(t.pages) * BLOCK for t in held.tables), default=end)

    def settle(self, held: Held, tokens: Sequence[int], computed: int, *, named: int | None = None) -> None:
        """Take note that `computed` tokens are remembered: name full blocks (up to token `named`), drop unseen ones."""
        most = (computed if named is None else min(computed, named)) // BLOCK
        if most > len(held.hashes):
            held.hashes = chain(tokens[: most * BLOCK], b"", held.hashes)
        for g, table in zip(self.groups, held.tables, strict=True):
            for i in range(held.named, most):
                page = table.pages[i]
                if page >= 0 and g.pool.name(page, held.hashes[i]):
                    held.mine.append((g.pool, page))
            low = min(g.reach.lowest(computed) // BLOCK, len(table.pages))
            for i in range(table.gone, low):
                g.pool.release(table.pages[i])
                table.pages[i] = -1
            table.gone = max(table.gone, low)
        if self.states is not None and computed == most * BLOCK and most > held.named:
            self._keep(held, held.hashes[most - 1])
        held.named = max(held.named, most)
        self.check()

    def close(self, held: Held, *, spoilt: bool = False) -> None:
        """Let go of all; `spoilt`: what this sequence wrote must not be used again."""
        if spoilt:
            for pool, page in held.mine:
                pool.unname(page)
        for g, table in zip(self.groups, held.tables, strict=True):
            for page in reversed(table.pages[table.gone :]):  # the end is forgotten first
                g.pool.release(page)
            g.pool.disclaim(held.id)
            table.pages, table.gone = [], 0
        if self.states is not None and held.slot is not None:
            self.states.pool.release(held.slot)
            held.slot = None
        self.check()

    def forget(self) -> None:
        """Empty the prefix cache."""
        for part in self._parts():
            part.pool.forget()
        self.check()

    def clear(self) -> None:
        """Empty everything; whoever holds something must not use it any more."""
        for part in self._parts():
            part.pool = Pool(part.pool.total)
            part.pool.emptied = list(range(part.pool.total)) if self.poison else []
        self.check()

    def check(self) -> None:
        """With `poison` on (tests): fill what is empty with NaN, and count the pages."""
        for part in self._parts():
            if self.poison:
                assert sum(part.pool.counts()) == part.pool.total
                for page in part.pool.emptied:
                    rows = part.rows(page) if isinstance(part, Group) else page
                    if part.pool.state[page] == 0:
                        for tensors in part.memory.values():
                            for t in tensors:
                                if t.is_floating_point():  # codes have no NaN; their scales do
                                    t[rows] = float("nan")
            part.pool.emptied.clear()

    # ---- the prefix cache

    def _known(self, hashes: list[bytes], unit: int) -> int:
        """Return the most blocks that every kind of memory can go on from."""
        ok = [True] * (len(hashes) + 1)
        for g in self.groups:
            run = 0
            for n, name in enumerate(hashes, 1):
                run = run + 1 if g.pool.find(name) is not None else 0
                ok[n] = ok[n] and run >= g.needs(n)
        if self.states is not None:
            for n, name in enumerate(hashes, 1):
                ok[n] = ok[n] and self.states.pool.find(name) is not None
        return max(n for n, good in enumerate(ok) if good and n % unit == 0)

    def _begin(self, held: Held, blocks: int) -> int:
        """Take a slot with the state kept after `blocks`; return after how many it really is."""
        assert self.states is not None
        pool = self.states.pool
        kept = pool.find(held.hashes[blocks - 1]) if blocks else None
        if kept is not None:
            pool.share(kept)
        held.slot = pool.take(None, held.id)
        if kept is None:
            return 0
        if held.slot is not None:
            self.states.copy(kept, held.slot)
        pool.release(kept)
        if held.slot is None:  # the kept state lies in the only slot there is
            held.slot, blocks = pool.take(None, held.id), 0
        return blocks

    def _adopt(self, g: Group, table: Table, held: Held, blocks: int, whole: int) -> None:
        """Hold the known blocks in place where the sequence can grow from there, else copy them, else leave a bend."""
        first = blocks - g.needs(blocks)
        table.pages, table.gone = [-1] * first, first
        pages = [p for name in held.hashes[first:blocks] if (p := g.pool.find(name)) is not None]
        for page in pages:
            g.pool.share(page)
        rest = max(whole - len(pages), 1)
        after = pages[-1] + 1 if pages else None
        straight = all(b == a + 1 for a, b in pairwise(pages))
        wish = g.pool.claim(held.id, rest, after if straight else None)
        if pages and not (straight and wish == after):
            pages, wish = self._moved(g, pages, held, whole)
        table.bend = first
        for page in pages:
            table.append(page)
        table.next = wish

    def _moved(self, g: Group, pages: list[int], held: Held, whole: int) -> tuple[list[int], int | None]:
        """Copy known pages to a place with room behind it, if there is one: (pages, the page to go on with)."""
        g.pool.disclaim(held.id)
        start = g.pool.claim(held.id, whole)
        if start is None or (g.pool.owner[start : start + whole] == held.id).sum() < whole:
            return pages, start
        copies = []
        for i, page in enumerate(pages):
            new = g.pool.take(start + i, held.id)
            assert new is not None and new == start + i
            for tensors in g.memory.values():
                for t in tensors:
                    t[g.rows(new)] = t[g.rows(page)]
            copies.append(new)
        for page in reversed(pages):
            g.pool.release(page)
        return copies, start + len(copies)

    def _keep(self, held: Held, name: bytes) -> None:
        assert self.states is not None
        assert held.slot is not None
        pool = self.states.pool
        if pool.find(name) is not None or not pool.available:
            return
        slot = pool.take(None, 0)
        assert slot is not None
        self.states.copy(held.slot, slot)
        pool.name(slot, name)
        pool.release(slot)


def chain(tokens: Sequence[int], salt: bytes, known: list[bytes] | None = None) -> list[bytes]:
    """Hash every full block with all before it; what is `known` is not hashed again."""
    hashes = list(known or ())
    last = hashes[-1] if hashes else hashlib.blake2b(salt, digest_size=16).digest()
    for i in range(len(hashes), len(tokens) // BLOCK):
        data = b"".join(id.to_bytes(4, "little") for id in tokens[i * BLOCK : (i + 1) * BLOCK])
        last = hashlib.blake2b(last + data, digest_size=16).digest()
        hashes.append(last)
    return hashes


def _most(span: int, step: int) -> int:
    """Pages that a sequence with a limited reach can ever hold at once."""
    return -(-(span - 1 + step) // BLOCK) + 1


def _split(
    groups: dict[Reach, dict[int, Shape]], recurrent: dict[int, Shape], budget: int, sequences: int, step: int
) -> tuple[list[int], int]:
    """Share the budget out: (pages of each group, slots of state). The group that looks furthest gets what is left."""
    costs = [BLOCK * sum(s.bytes for s in layers.values()) for layers in groups.values()]
    spans = [reach.span for reach in groups]
    widest = max((s or 1 << 40 for s in spans), default=0)
    slot = sum(s.bytes for s in recurrent.values())

    def shares(n: int) -> tuple[list[int], int]:
        pages = [n if (s or 1 << 40) == widest else min(n, 2 * sequences * _most(s or 0, step)) for s in spans]
        slots = (min(n, sequences) + n // 4 if groups else n) if recurrent else 0
        return pages, slots

    def cost(n: int) -> int:
        pages, slots = shares(n)
        return sum(p * c for p, c in zip(pages, costs, strict=True)) + slots * slot

    if not groups and not recurrent:
        return [], 0
    if cost(1) > budget:
        raise TerakoyaError("memory_bytes", "holds not even one page", given=budget, allowed=f"{cost(1):,} or more")
    return shares(_largest(lambda n: cost(n) <= budget))


def _largest(fits: Callable[[int], bool]) -> int:
    high = 1
    while fits(high * 2):
        high *= 2
    low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
