"""Mixtures: which source a row comes from, and which of its rows, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from terakoya.data.shards import Shards
from terakoya.errors import TerakoyaError

_PERIOD = 10_000  # rows after which the counts repeat: weights are kept to a hundredth of a percent


class Mix:
    """Several shards with a weight each; after any number of rows each source has its share, to within a few rows.

    `counts` are the rows of each source in one period. Within a period each next row goes to the source that is
    furthest behind its share, so the sequence is fixed, and row k is found without counting up to it.
    """

    def __init__(self, parts: Sequence[Shards], weights: Sequence[float]) -> None:
        if len(parts) != len(weights) or not parts:
            raise TerakoyaError("mix", f"has {len(parts)} sources and {len(weights)} weights")
        if not all(0 < weight < float("inf") for weight in weights):
            raise TerakoyaError("mix", given=list(weights), allowed="weights above 0")
        first = parts[0].index
        for part in parts:
            if (part.index.tokenizer, part.index.prefix, part.index.suffix) != (
                first.tokenizer,
                first.prefix,
                first.suffix,
            ):
                raise TerakoyaError(str(part.folder), "was made with another tokenizer than the rest of the mix")
        self.parts = tuple(parts)
        self.counts = _shared(weights) if len(parts) > 1 else np.array([1])
        if not self.counts.all():
            given = weights[int(np.argmin(self.counts))]
            raise TerakoyaError("mix", "is too small a share", given=given, allowed=f"1 row in {_PERIOD} or more")
        self._part, self._turn = _sequence(self.counts)

    def locate(self, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map row numbers of the mixture k (R,) -> (part (R,), how many rows of that part came before (R,))."""
        period, at = np.divmod(k, len(self._part))
        part = self._part[at]
        return part, period * self.counts[part] + self._turn[at]


def _shared(weights: Sequence[float]) -> np.ndarray:
    """Share a period out by largest remainders, then take out what the counts have in common."""
    exact = np.array(weights, dtype=np.float64) / sum(weights) * _PERIOD
    counts = np.floor(exact).astype(np.int64)
    behind = np.argsort(counts - exact, kind="stable")[: _PERIOD - int(counts.sum())]
    counts[behind] += 1
    return counts // np.gcd.reduce(counts)


def _sequence(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each row of a period, its part and how many rows of that part come before it in the period."""
    total = int(counts.sum())
    part, turn, given = np.empty(total, np.int64), np.empty(total, np.int64), np.zeros_like(counts)
    for row in range(total):
        part[row] = chosen = int(np.argmax(counts * (row + 1) - given * total))  # in whole numbers: the same anywhere
        turn[row] = given[chosen]
        given[chosen] += 1
    return part, turn
