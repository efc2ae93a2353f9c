"""How right a head is: accuracy with its interval, correlations, exact match and overlap by character."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np


def wilson(right: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the interval of a share at 95 % (Wilson 1927)."""
    if not count:
        return 0.0, 1.0
    p, n = right / count, count
    middle, room = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - room) / (1 + z * z / n), (middle + room) / (1 + z * z / n)


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlate; 0 where one side does not vary."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    x, y = x - x.mean(), y - y.mean()
    norm = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norm if norm else 0.0


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlate by rank; equal values share the mean of their ranks."""
    return pearson(ranks(a), ranks(b))


def ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, from 0."""
    v = np.asarray(values, np.float64)
    _, inverse, counts = np.unique(v, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse.reshape(-1)].tolist()


def plain(text: str) -> str:
    """Bring an answer to the form in which it is compared: NFKC, no spaces, no closing marks, no quotes."""
    return "".join(unicodedata.normalize("NFKC", text).split()).strip("。、.,「」『』\"'").lower()


def exact(said: str, right: Sequence[str]) -> float:
    """1 where the answer is one of the right ones."""
    return float(plain(said) in {plain(r) for r in right})


def overlap(said: str, right: Sequence[str]) -> float:
    """F1 of the characters, with the right answer that is nearest (JGLUE)."""
    return max((_f1(plain(said), plain(r)) for r in right), default=0.0)


def _f1(a: str, b: str) -> float:
    both = sum((Counter(a) & Counter(b)).values())
    return 2 * both / (len(a) + len(b)) if a and b else float(a == b)


def chrf(said: Sequence[str], right: Sequence[str], *, order: int = 6, beta: float = 2.0) -> float:
    """Return chrF of a corpus, 0 to 100: F of character n-grams, spaces left out (Popović 2015; sacrebleu's chrF2)."""
    if len(said) != len(right):
        raise ValueError(f"{len(said)} translations of {len(right)} texts")
    parts = []
    for n in range(1, order + 1):
        hits = given = wanted = 0
        for a, b in zip(said, right, strict=True):
            mine, theirs = _grams(a, n), _grams(b, n)
            hits += sum((mine & theirs).values())
            given, wanted = given + sum(mine.values()), wanted + sum(theirs.values())
        if given and wanted:
            parts.append((hits / given, hits / wanted))
    if not parts:
        return 0.0
    precision, recall = (sum(side) / len(parts) for side in zip(*parts, strict=True))
    weighted = beta**2 * precision + recall
    return 100 * (1 + beta**2) * precision * recall / weighted if weighted else 0.0


def _grams(text: str, n: int) -> Counter[str]:
    chars = "".join(text.split())
    return Counter(chars[i : i + n] for i in range(len(chars) - n + 1))
