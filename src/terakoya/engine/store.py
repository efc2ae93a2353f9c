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

from terakoya.engine.kinds import BLOCK as BLOCK
from terakoya.engine.kinds import SPARE, Group, Slab, Sources, States, Table, salted
from terakoya.engine.kinds import Reach as Reach
from terakoya.engine.kinds import Shape as Shape
from terakoya.engine.pool import Pool
from terakoya.errors import TerakoyaError

AHEAD = 512  # tokens of an answer that a new sequence wishes to have side by side with its prompt


@dataclass
class Held:
    """What one sequence holds: a table per group, a slot of state, its source, and the hashes of its full blocks."""

    id: int
    tables: list[Table]
    salt: bytes = b""
    slot: int | None = None
    source: Slab | None = None
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
        whole: bool = False,
    ) -> None:
        """`whole`: kernels will read whole pages, and write rows of nobody (see `Group`)."""
        self.shapes, self.poison, self.step, self.whole = shapes, poison, step, whole
        by_reach: dict[Reach, dict[int, Shape]] = {}
        for layer, s in shapes.items():
            if s.reach is not None:
                by_reach.setdefault(s.reach, {})[layer] = s
        recurrent = {layer: s for layer, s in shapes.items() if s.reach is None}
        pages, slots = _split(by_reach, recurrent, budget, sequences, step)
        device = torch.device(device)
        made = zip(by_reach.items(), pages, strict=True)
        spare = SPARE if whole else 0
        found = [(Sources if r.source else Group)(r, s, n, device, spare) for (r, s), n in made]
        self.groups = [g for g in found if not isinstance(g, Sources)]
        self.sources = next((g for g in found if isinstance(g, Sources)), None)
        self.group_of = {layer: i for i, g in enumerate(self.groups) for layer in g.memory}
        self.states = States(recurrent, slots, device, min(spare, 1)) if recurrent else None
        self.bytes = sum(t.nbytes for part in self._parts() for ts in part.memory.values() for t in ts)
        self._count = 0
        if poison:
            for part in self._parts():
                part.pool.emptied = list(range(part.pool.total))
            self.check()

    def _parts(self) -> list[Group | States]:
        return [*self.groups, *(part for part in (self.sources, self.states) if part is not None)]

    @property
    def longest_source(self) -> int:
        """Tokens that a source may have."""
        return self.sources.pool.total * BLOCK if self.sources is not None else 0

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

    def available(self, tokens: int, source: int = 0) -> bool:
        """Tell whether `tokens` more could be held now, with `source` of another text, if nobody else took any."""
        return (
            all(g.pool.available >= self._pages(g, tokens) for g in self.groups)
            and (self.states is None or self.states.pool.available > 0)
            and (self.sources is None or self.sources.pool.available >= -(-source // BLOCK))
        )

    def _pages(self, g: Group, tokens: int) -> int:
        need = -(-tokens // BLOCK)
        return need if g.reach.span is None else min(need, _most(g.reach.span, self.step))

    # ---- sequences

    def open(
        self,
        tokens: Sequence[int],
        *,
        salt: bytes = b"",
        more: int = 0,
        unit: int = BLOCK,
        source: Sequence[int] | None = None,
    ) -> Held | None:
        """Begin a sequence, with as much of `tokens` as is known already; None where there is no room for its state,
        or for its `source`.

        At least the last token is left to compute. `more` is how many tokens may follow; what is known is cut to a
        multiple of `unit`. `found` says how far it came.
        """
        self._count += 1
        salt = salt if source is None else salted(salt, source)
        held = Held(self._count, [Table() for _ in self.groups], salt)
        if source is not None:
            assert self.sources is not None
            held.source = self.sources.open(source, salt, held.id)
            if held.source is None:
                return None
        held.hashes = chain(tokens, salt)
        blocks = self._known(held.hashes[: (len(tokens) - 1) // BLOCK], unit // BLOCK)
        if self.states is not None:
            blocks = self._begin(held, blocks)
            if held.slot is None:
                self.close(held)
                return None
        whole = len(tokens) + min(more, AHEAD)
        for g, table in zip(self.groups, held.tables, strict=True):
            self._adopt(g, table, held, blocks, self._pages(g, len(tokens)), self._pages(g, whole))
        held.named = blocks
        self.check()
        return held

    def found(self, held: Held) -> int:
        """Return how many tokens a newly opened sequence has already."""
        return held.named * BLOCK

    def extend(self, held: Held, end: int) -> int:
        """Take pages for the tokens up to `end`; return up to where there are pages now (where all are taken: less)."""
        for g, table in zip(self.groups, held.tables, strict=True):
            had = len(table.pages)
            while len(table.pages) * BLOCK < end:
                if table.next is None or not g.pool.fits(table.next, held.id):
                    g.pool.disclaim(held.id)
                    table.next = g.pool.claim(held.id, self._pages(g, AHEAD // 4))
                page = g.pool.take(table.next, held.id)
                if page is None:
                    break
                table.append(page)
            if self.whole:
                g.clear(table.pages[had:])
        self.check()
        return min((len(t.pages) * BLOCK for t in held.tables), default=end)

    def settle(self, held: Held, tokens: Sequence[int], computed: int, *, named: int | None = None) -> None:
        """Take note that `computed` tokens are remembered: name full blocks (up to token `named`), drop unseen ones."""
        if self.sources is not None and held.source is not None:
            self.sources.settle(held.source)
        most = (computed if named is None else min(computed, named)) // BLOCK
        if most > len(held.hashes):
            held.hashes = chain(tokens[: most * BLOCK], held.salt, held.hashes)
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
        if self.sources is not None and held.source is not None:
            self.sources.close(held.source, spoilt=spoilt)
            held.source = None
        self.check()

    def rest(self) -> None:
        """Forget what rows of nobody left in the spare slot of state."""
        if self.states is not None:
            self.states.rest()

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

    def _adopt(self, g: Group, table: Table, held: Held, blocks: int, least: int, whole: int) -> None:
        """Hold the known blocks in place where the sequence can grow from there, else copy them, else leave a bend.

        Copies take empty pages only: what is kept for others is worth more than a straight table.
        """
        first = blocks - g.needs(blocks)
        table.pages, table.gone = [-1] * first, first
        pages = [p for name in held.hashes[first:blocks] if (p := g.pool.find(name)) is not None]
        for page in pages:
            g.pool.share(page)
        rest, least = max(whole - len(pages), 1), max(least - len(pages), 1)
        after = pages[-1] + 1 if pages else None
        straight = all(b == a + 1 for a, b in pairwise(pages))
        wish = g.pool.claim(held.id, rest, after if straight else None, least)
        if pages and not (straight and wish == after):
            g.pool.disclaim(held.id)
            start = g.pool.claim_empty(held.id, max(whole, len(pages)))
            if start is None:
                wish = g.pool.claim(held.id, rest, None, least)
            else:
                pages, wish = self._moved(g, pages, held, start), start + len(pages)
        table.bend = first
        for page in pages:
            table.append(page)
        table.next = wish

    def _moved(self, g: Group, pages: list[int], held: Held, start: int) -> list[int]:
        """Copy known pages to a claimed place from `start` on: return the copies."""
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
        return copies

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
        data = b"".join(id.to_bytes(8, "little") for id in tokens[i * BLOCK : (i + 1) * BLOCK])
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
