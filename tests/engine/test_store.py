"""What stays of texts that nobody holds: pages that may be read again are the last to be given away."""

from __future__ import annotations

import random

import pytest
import torch

from terakoya.engine.kinds import BLOCK, Reach, Shape
from terakoya.engine.pool import Pool
from terakoya.engine.store import Store

SHAPE = Shape(((1, 2), (1, 2)), (torch.float32, torch.float32), Reach())


def store(pages: int) -> Store:
    found = Store({0: SHAPE}, pages * BLOCK * SHAPE.bytes, sequences=4, step=64)
    assert found.groups[0].pool.total == pages
    return found


class Talk:
    """A conversation: what all begin with, and turns of its own."""

    def __init__(self, prefix: list[int], seed: int) -> None:
        self.ids, self.random = list(prefix), random.Random(seed)
        self.read = self.kept = 0  # tokens of former turns: read again, and found

    def turn(self, store: Store, tokens: int, more: int = 64) -> None:
        former = len(self.ids) // BLOCK * BLOCK
        self.ids += [self.random.randrange(1000) for _ in range(tokens)]
        held = store.open(self.ids, more=more)
        assert held is not None
        found = store.found(held)
        self.read, self.kept = self.read + former - found, self.kept + found
        assert store.extend(held, len(self.ids)) >= len(self.ids)
        written = store.groups[0].memory[0][0]
        for at, page in enumerate(held.tables[0].pages):
            if at >= found // BLOCK:
                written[page * BLOCK : (page + 1) * BLOCK] = float(at)
            assert (written[page * BLOCK : (page + 1) * BLOCK] == at).all(), "a page is another's"
        store.settle(held, self.ids, len(self.ids))
        store.close(held)


PREFIX = [random.Random(7).randrange(1000) for _ in range(20 * BLOCK)]


@pytest.mark.parametrize("more", [0, 64, 512])
@pytest.mark.parametrize("pages", [104, 160, 640])
def test_conversations_that_fit_are_not_read_twice(pages: int, more: int) -> None:
    """Six that begin alike, in turn: 20 pages of prefix and 6 x 12 of their own, 92 in all."""
    kept, first = store(pages), Talk(PREFIX, 0)
    talks = [first, *(Talk(PREFIX, n) for n in range(1, 6))]
    first.turn(kept, BLOCK * 2, more)
    first.read = 0  # the prefix, for the first time
    for turn in range(6):
        for talk in talks if turn else talks[1:]:
            talk.turn(kept, BLOCK * 2, more)
    assert [talk.read for talk in talks] == [0] * 6


def test_under_pressure_the_longest_unused_go_first() -> None:
    """Twelve begin alike, and there is room for a third of them: who comes back soon is found."""
    kept, chance = store(64), random.Random(3)
    talks = [Talk(PREFIX, n) for n in range(12)]
    for turn in range(200):
        near = talks[turn // 20 : turn // 20 + 2]
        chance.choice(near).turn(kept, 4, more=16)
    read, found = sum(t.read for t in talks), sum(t.kept for t in talks)
    assert found / (found + read) > 0.95


def test_a_claim_behind_a_prefix_spares_what_was_used_last() -> None:
    pool = Pool(12)
    pages = [pool.take(n, 1) for n in range(6)]
    for n, page in enumerate(pages):
        assert page == n
        pool.name(page, bytes([n]))
    for page in reversed(pages[2:]):
        pool.release(page)
    assert (pool.claim(2, 3, after=2) or 0) >= 6  # empty pages, rather than what may be read again
    pool.disclaim(2)
    for n in range(6, 12):
        pool.name(pool.take(n, 3) or 0, bytes([n]))
    for n in range(6, 12):
        pool.release(n)
    assert pool.claim(2, 3, after=2) == 2  # all is full: these have been unused for longest
