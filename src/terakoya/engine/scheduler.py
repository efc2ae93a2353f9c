"""Which choices get how many tokens in the next step. There are no phases: what is computed catches up with what is.

Choices that need one token come first, so that a long prompt delays nobody by more than a step; the rest of the step
is shared among those that read. Out of pages, the newest gives its own back and begins anew later (what it computed
stays in the prefix cache while there is room), so the oldest always moves on and everything admitted ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from terakoya.engine.drafting import AHEAD, Drafter
from terakoya.engine.sequence import Choice
from terakoya.engine.speculate import lookup
from terakoya.engine.store import BLOCK, Store


@dataclass(frozen=True)
class Row:
    """A choice computes `count` tokens from `start` on; the last `draft` of them are guesses."""

    choice: Choice
    start: int
    count: int
    draft: int = 0

    @property
    def caught_up(self) -> bool:
        """Whether the row ends at the choice's last token, so that the next can be drawn."""
        return self.start + self.count - self.draft == len(self.choice.ids)


class Scheduler:
    """Waiting and running choices. `unit` (deterministic mode) makes every chunk end at its multiples."""

    def __init__(self, store: Store, *, budget: int, running: int, unit: int | None = None) -> None:
        self.store, self.budget, self.most, self.unit = store, budget, running, unit
        self.waiting: deque[Choice] = deque()
        self.running: list[Choice] = []
        self.preemptions = 0
        self.drafter: Drafter | None = None

    def plan(self) -> list[Row]:
        """Choose the rows of the next step; their pages are there when this returns."""
        rows: dict[Choice, Row] = {}
        for choice in [c for c in self.running if c.behind == 1]:
            if choice.held is not None and len(rows) < self.budget:  # not preempted meanwhile
                self._give(rows, choice, 1)
        self._admit()
        left = self.budget - len(rows)
        if self.unit is not None:
            self._read_units(rows, left)
        else:
            left = self._read(rows, left)
            self._propose(rows, left)
        return list(rows.values())

    def close(self, choice: Choice, *, spoilt: bool = False) -> None:
        """Take a choice out, wherever it is."""
        self._forget(choice)
        if choice.held is not None:
            self.store.close(choice.held, spoilt=spoilt)
            choice.held = None
        if choice in self.running:
            self.running.remove(choice)
        else:
            self.waiting.remove(choice)

    def clear(self) -> None:
        """Take all out, and empty the store."""
        for choice in [*self.running, *self.waiting]:
            choice.held = None
        self.running.clear()
        self.waiting.clear()
        self.store.clear()
        if self.drafter is not None:
            self.drafter.clear()

    def _forget(self, choice: Choice) -> None:
        if self.drafter is not None:
            self.drafter.close(choice)

    # ---- parts of a plan

    def _give(self, rows: dict[Choice, Row], choice: Choice, count: int) -> int:
        """Plan `count` tokens or as many as there is room for; make room by preempting where there is none."""
        assert choice.held is not None
        while True:
            room = self.store.extend(choice.held, choice.computed + count) - choice.computed
            if room > 0 and (room >= count or self.unit is None):
                count = min(room, count)
                rows[choice] = Row(choice, choice.computed, count)
                return count
            victim = self.running[-1]
            rows.pop(victim, None)
            self._preempt(victim)
            if victim is choice:
                return 0

    def _preempt(self, choice: Choice) -> None:
        assert choice.held is not None
        self.running.remove(choice)
        self._forget(choice)
        self.store.close(choice.held)
        choice.held, choice.computed = None, 0
        self.waiting.appendleft(choice)
        self.preemptions += 1

    def _admit(self) -> None:
        """Let waiting choices in, in order, as long as their tokens have room beside what others still read."""
        promised = sum(c.behind for c in self.running)
        reading = 0  # tokens of sources that this step's encoder will read
        while self.waiting and len(self.running) < self.most:
            at = next((i for i, c in enumerate(self.waiting) if not _follows(c)), None)
            if at is None:
                return
            choice = self.waiting[at]
            source = choice.request.source
            length = len(source or ())
            if self.running and not self.store.available(promised + len(choice.ids) + BLOCK, length):
                return
            if reading and reading + length > self.budget:
                return
            more = choice.most - choice.said
            salt = choice.request.salt.encode()
            # Where bits matter, what was said one by one is computed one by one again.
            keys = choice.keys if self.unit is None else choice.keys[: choice.prompt + 1]
            held = self.store.open(keys, salt=salt, more=more, unit=self.unit or BLOCK, source=source)
            if held is None:
                return
            if held.source is not None and not held.source.filled:
                reading += length
            del self.waiting[at]
            choice.held, choice.computed = held, self.store.found(held)
            if not choice.said:
                choice.cached = choice.computed
            promised += choice.behind
            self.running.append(choice)

    def _read(self, rows: dict[Choice, Row], left: int) -> int:
        """Share what is left of the step among the choices that read, the earliest first with the remainder."""
        reading = [c for c in self.running if c not in rows]
        for i, choice in enumerate(reading):
            if left <= 0:
                break
            if choice.held is None:
                continue
            share = max(left // (len(reading) - i), min(left, BLOCK))
            if i == 0:  # what the others do not need
                share = max(share, left - sum(c.behind for c in reading[1:]))
            left -= self._give(rows, choice, self._cut(choice, min(choice.behind, share)))
        return left

    def _cut(self, choice: Choice, count: int) -> int:
        """Where a state can only be kept at block ends, end there if that is possible."""
        if self.store.states is None:
            return count
        end = choice.computed + count
        whole = end // BLOCK * BLOCK
        return whole - choice.computed if whole > choice.computed else count

    def _read_units(self, rows: dict[Choice, Row], left: int) -> None:
        """Read prompts in fixed pieces and answers token by token, whatever the others do."""
        assert self.unit is not None
        for choice in [c for c in self.running if c not in rows]:
            if choice.held is None or left <= 0:
                continue
            end = min((choice.computed // self.unit + 1) * self.unit, choice.prompt)
            count = max(end - choice.computed, 1)
            if count <= left:
                left -= self._give(rows, choice, count)

    def _propose(self, rows: dict[Choice, Row], left: int) -> None:
        """Add guesses to the rows that draw, where they cost nobody anything."""
        if self.store.states is not None:  # a state cannot go back
            return
        asks: list[tuple[Choice, int, list[int]]] = []
        for choice, row in rows.items():
            most = min(choice.request.draft or self._ahead, left, choice.most - choice.said - 1)
            if not row.caught_up or row.count > 1 or most <= 0 or choice.matcher is not None:
                continue
            asks.append((choice, most, lookup(choice.ids, most) if choice.request.draft else []))
            left -= most
        for choice, guess in self._asked(asks):
            assert choice.held is not None
            guess = guess[: max(self.store.extend(choice.held, len(choice.ids) + len(guess)) - len(choice.ids), 0)]
            choice.draft = guess
            rows[choice] = Row(choice, rows[choice].start, 1 + len(guess), len(guess))

    @property
    def _ahead(self) -> int:
        return 0 if self.drafter is None else AHEAD

    def _asked(self, asks: list[tuple[Choice, int, list[int]]]) -> list[tuple[Choice, list[int]]]:
        """Let the draft model guess where looking up found nothing."""
        if self.drafter is not None:
            lost = [(choice, most) for choice, most, guess in asks if not guess]
            found = dict(zip((choice for choice, _ in lost), self.drafter.guess(lost), strict=True))
            return [(choice, guess or found[choice]) for choice, _, guess in asks]
        return [(choice, guess) for choice, _, guess in asks]


def _follows(choice: Choice) -> bool:
    """Whether another choice is computing the same prompt."""
    return choice.leader is not None and choice.leader.ending is None and choice.leader.said == 0
