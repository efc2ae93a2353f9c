"""Pages by number: which are free, which are held by sequences, and which are kept because they may be wanted again."""

from __future__ import annotations

import numpy as np

FREE, LIVE, CACHED = 0, 1, 2


class Pool:
    """Hand out pages so that the pages of one sequence lie side by side wherever that is possible.

    A page is free, live (one or more sequences hold it) or cached (none does, but its content has a name). Cached
    pages are given away when they are needed, the longest unused first. A `claim` is a wish: others keep away from
    claimed pages as long as there is anything else.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.state = np.zeros(total, np.int8)
        self.used = np.zeros(total, np.int64)  # when a cached page was last held; 0 for a free one
        self.owner = np.zeros(total, np.int64)  # whose claim a page lies in, 0: nobody's
        self.refs = [0] * total
        self.names: dict[int, bytes] = {}
        self.pages: dict[bytes, int] = {}
        self.emptied: list[int] = []  # pages that lost their content since somebody looked (tests poison them)
        self._clock = 0
        self._live = 0

    @property
    def available(self) -> int:
        """Pages that could be taken now."""
        return self.total - self._live

    def counts(self) -> tuple[int, int, int]:
        """Count the pages: (free, cached, live)."""
        free, live, cached = (int((self.state == kind).sum()) for kind in (FREE, LIVE, CACHED))
        assert live == self._live
        return free, cached, live

    def find(self, name: bytes) -> int | None:
        """Return the page whose content has this name."""
        return self.pages.get(name)

    def share(self, page: int) -> int:
        """Hold a page that is live or cached."""
        assert self.state[page] != FREE
        self._hold(page)
        return page

    def take(self, near: int | None, owner: int) -> int | None:
        """Hold an empty page: `near` if it is to be had, else one that nobody claimed, else any; None: all are live."""
        page = near if near is not None and self.fits(near, owner) else self._any(owner)
        if page is None:
            return None
        self._empty(page)
        self._hold(page)
        return page

    def fits(self, page: int, owner: int) -> bool:
        """Whether `take` should give just this page: claimed, or empty and nobody's; no cached one beside a claim."""
        if page >= self.total or self.state[page] == LIVE:
            return False
        return self.owner[page] == owner or (self.owner[page] == 0 and self.state[page] == FREE)

    def release(self, page: int) -> None:
        """Let go of a page; with a name it stays as cached."""
        assert self.refs[page] > 0
        self.refs[page] -= 1
        if self.refs[page]:
            return
        self._live -= 1
        if page in self.names:
            self._clock += 1
            self.state[page], self.used[page] = CACHED, self._clock
        else:
            self.state[page], self.used[page] = FREE, 0
            self.emptied.append(page)

    def name(self, page: int, name: bytes) -> bool:
        """Give the content of a live page a name; False where another page has it already."""
        if self.pages.setdefault(name, page) != page:
            return False
        self.names[page] = name
        return True

    def unname(self, page: int) -> None:
        """Take a live page's name away: its content is not to be trusted."""
        name = self.names.pop(page, None)
        if name is not None:
            del self.pages[name]

    def claim(self, owner: int, count: int, after: int | None = None, least: int = 1) -> int | None:
        """Wish for `count` pages side by side, from `after` on if it may be; return the first, None where none is.

        Empty pages come first, be they only `least`: behind a prefix that many share stands what the last of them
        said, and its next turn will read that again. Where all is full, the longest unused are wished for.
        """
        usable = (self.state != LIVE) & (self.owner == 0)
        start, length = self._wished(usable, count, after, least)
        self.owner[start : start + length] = owner
        return start if length else None

    def _wished(self, usable: np.ndarray, count: int, after: int | None, least: int) -> tuple[int, int]:
        """Find what `claim` claims: (start, length)."""
        empty = usable & (self.state == FREE)
        if after is not None and (run := min(_run(empty, after), count)) >= least:
            return after, run
        start, length = self._best(usable, count)
        if length == count and not self._newest(start, count):
            return start, count
        place, run = self._best(empty, count)
        if run >= least:
            return place, run
        if (
            after is not None
            and _run(usable, after) >= count
            and self._newest(after, count) <= self._newest(start, length)
        ):
            return after, count
        return start, length

    def claim_empty(self, owner: int, count: int) -> int | None:
        """Wish for `count` empty pages side by side; return the first, None where there are none together."""
        start, length = self._best((self.state == FREE) & (self.owner == 0), count)
        if length < count:
            return None
        self.owner[start : start + count] = owner
        return start

    def disclaim(self, owner: int) -> None:
        """Drop a claim."""
        self.owner[self.owner == owner] = 0

    def forget(self) -> None:
        """Drop every cached page."""
        for page in np.flatnonzero(self.state == CACHED).tolist():
            self._empty(page)

    def _hold(self, page: int) -> None:
        if not self.refs[page]:
            self._live += 1
        self.refs[page] += 1
        self.state[page] = LIVE

    def _empty(self, page: int) -> None:
        if self.state[page] == CACHED:
            self.unname(page)
            self.state[page], self.used[page] = FREE, 0
            self.emptied.append(page)

    def _any(self, owner: int) -> int | None:
        if not self.available:
            return None
        usable = self.state != LIVE
        mine = usable & ((self.owner == 0) | (self.owner == owner))
        pages = np.flatnonzero(mine if mine.any() else usable)
        return int(pages[self.used[pages].argmin()])

    def _best(self, usable: np.ndarray, count: int) -> tuple[int, int]:
        """Find where `count` usable pages lie whose newest content is oldest; else the longest run: (start, length)."""
        edges = np.flatnonzero(np.diff(np.concatenate(([0], usable.astype(np.int8), [0]))))
        runs = [(a, b - a) for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]
        places = [a + i for a, n in runs for i in range(0, n - count + 1, max(count, 1))]
        if places:
            return min(places, key=lambda a: self._newest(a, count)), count
        return max(runs, key=lambda run: run[1], default=(0, 0))

    def _newest(self, start: int, count: int) -> int:
        """Return when the latest used of so many pages was last held; 0 where all are empty."""
        return int(self.used[start : start + count].max(initial=0))


def _run(usable: np.ndarray, start: int) -> int:
    rest = usable[start:]
    stop = rest.argmin() if len(rest) and not rest.all() else len(rest)
    return int(stop)
