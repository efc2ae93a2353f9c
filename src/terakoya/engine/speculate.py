"""Guessing ahead without a second model: what followed the last time (prompt lookup, Saxena 2023).

A guess is checked by drawing at its place as always; it stands where the draw gives the same id. Because a draw
depends on seed, choice and position alone, the answer is the same with and without guesses, greedy or not.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, FAR = 4, 4096


def lookup(ids: Sequence[int], most: int) -> list[int]:
    """Return up to `most` ids that followed the latest earlier place where the last few ids stood."""
    window = ids[-FAR:]
    last, best, place = window[-1], 0, 0
    for at in range(len(window) - 2, -1, -1):
        if window[at] == last and most > 0:
            same = 1
            while same < LONGEST and same <= at and window[at - same] == window[-1 - same]:
                same += 1
            if same > best:
                best, place = same, at + 1
            if best == LONGEST:
                break
    return list(window[place : place + most]) if best else []
