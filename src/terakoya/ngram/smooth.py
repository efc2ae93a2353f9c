"""Kneser-Ney smoothing: from counts to probabilities.

Interpolated (Chen and Goodman 1998, "An empirical study of smoothing techniques", section 4.1.6): with a(hw) the counts
of a level and h' the context without its first token,

    p(w | h) = max(a(hw) - D(a(hw)), 0) / a(h) + gamma(h) * p(w | h'),   gamma(h) = sum_w D(a(hw)) / a(h)

and below the single tokens stands the uniform distribution. Kneser-Ney has one D a level, the modified form one for
each of the counts 1, 2 and 3 or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from terakoya.ngram.counts import Level

Smoothing = Literal["modified", "plain"]
USUAL = (0.5, 1.0, 1.5)  # where a text is too small to estimate a discount; KenLM's choice too


@dataclass(frozen=True)
class Discounts:
    """What is taken off the counts 1, 2 and 3 or more of one level; `guessed` where the text could not tell."""

    one: float
    two: float
    more: float
    guessed: bool = False


@dataclass(frozen=True)
class Smoothed:
    """Natural logarithms: p (n,) of each node after its parent, and gamma (n,) of each node as a context."""

    p: np.ndarray
    gamma: np.ndarray


def discounts(counts: np.ndarray, smoothing: Smoothing) -> Discounts:
    """Estimate the discounts of a level from how many n-grams were seen once, twice, three and four times."""
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
    if n[1] == 0 or n[2] == 0:
        return Discounts(*USUAL, guessed=True) if smoothing == "modified" else Discounts(0.5, 0.5, 0.5, guessed=True)
    y = float(n[1] / (n[1] + 2 * n[2]))
    if smoothing == "plain":
        return Discounts(y, y, y)
    found = [k - (k + 1) * y * n[k + 1] / n[k] if n[k] else np.nan for k in (1, 2, 3)]
    good = [0 < d < k for k, d in enumerate(found, 1)]
    one, two, more = (float(d) if ok else usual for d, ok, usual in zip(found, good, USUAL, strict=True))
    return Discounts(one, two, more, guessed=not all(good))


def smooth(levels: Sequence[Level], smoothing: Smoothing) -> tuple[list[Smoothed], list[Discounts]]:
    """Estimate every level, from single tokens to the longest."""
    cuts = [discounts(level.counts, smoothing) for level in levels]
    made: list[Smoothed] = []
    below = np.full(len(levels[0].tokens), 1 / len(levels[0].tokens))
    for i, (level, cut) in enumerate(zip(levels, cuts, strict=True)):
        parents = level.parents if i else np.zeros(len(level.tokens), np.int64)
        above = len(levels[i - 1].tokens) if i else 1
        taken = np.array([0.0, cut.one, cut.two, cut.more])[np.minimum(level.counts, 3)]
        total = np.bincount(parents, level.counts, above)
        share = np.bincount(parents, taken, above) / np.maximum(total, 1)
        share[total == 0] = 1.0  # a context that nothing followed says nothing
        lower = below[level.suffix] if i else below
        below = (level.counts - taken) / np.maximum(total, 1)[parents] + share[parents] * lower
        if i:
            made[-1] = Smoothed(made[-1].p, np.log(share))
        made.append(Smoothed(np.log(below), np.zeros(0)))
    return made, cuts
