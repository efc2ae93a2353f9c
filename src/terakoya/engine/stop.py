"""Stop strings: one automaton over the text as it comes (Aho & Corasick 1975)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class Stop:
    """Let text through until one of `strings` completes; hold back exactly what may still become one.

    The match that completes first wins; of those that complete with the same character, the longest. `found` is then
    that string, and nothing passes any more. Strings may lie across pieces in any way.
    """

    def __init__(self, strings: Sequence[str] = ()) -> None:
        assert all(strings), "an empty stop string stops everywhere"
        self.found: str | None = None
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]  # of a node: the length of the prefix that it stands for
        self._ends = [0]  # of a node: the length of the longest stop string that ends there, 0 for none
        for string in strings:
            self._add(string)
        self._fail = self._links()
        self._node = 0
        self._held = ""  # always the last depth[node] characters

    def push(self, piece: str) -> str:
        """Take a piece of text; return what may go out."""
        if self.found is not None:
            return ""
        text = self._held + piece
        for at, char in enumerate(piece, len(self._held) + 1):
            self._node = self._step(self._node, char)
            if size := self._ends[self._node]:
                self.found = text[at - size : at]
                self._held = ""
                return text[: at - size]
        free = len(text) - self._depth[self._node]
        self._held = text[free:]
        return text[:free]

    def finish(self) -> str:
        """Return what was held back: no more text comes, so it is no stop string."""
        rest, self._held, self._node = self._held, "", 0
        return rest

    def _step(self, node: int, char: str) -> int:
        while node and char not in self._next[node]:
            node = self._fail[node]
        return self._next[node].get(char, 0)

    def _add(self, string: str) -> None:
        node = 0
        for char in string:
            if char not in self._next[node]:
                self._next[node][char] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[node] + 1)
                self._ends.append(0)
            node = self._next[node][char]
        self._ends[node] = len(string)

    def _links(self) -> list[int]:
        """Find for each node the longest proper suffix that is a node, breadth first."""
        self._fail = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            node = queue.popleft()
            self._ends[node] = self._ends[node] or self._ends[self._fail[node]]
            for char, child in self._next[node].items():
                self._fail[child] = self._step(self._fail[node], char)
                queue.append(child)
        return self._fail
