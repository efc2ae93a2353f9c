"""Which made rows are kept: long enough, in the language, no copy of another, no copy of a benchmark."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from terakoya.errors import TerakoyaError
from terakoya.tune.compare import japanese

Language = Literal["ja", "en"]
SHINGLE, HASHES, PRIME = 5, 128, (1 << 31) - 1
BENCHMARK = 13  # characters that a row and a benchmark must not share too many runs of


@dataclass(frozen=True)
class Limits:
    """What a kept row must be like; lengths in characters, likenesses as shares."""

    shortest: int = 4
    longest: int = 4000
    language: Language | None = None
    share: float = 0.5  # of the letters, in that language
    alike: float = 0.7  # Jaccard likeness (MinHash) from which two questions are the same
    leaked: float = 0.2  # share of runs of 13 characters that a question may have in common with a benchmark

    def __post_init__(self) -> None:
        if not 0 < self.shortest <= self.longest:
            raise TerakoyaError("limits", given=(self.shortest, self.longest), allowed="0 < shortest <= longest")
        for name in ("share", "alike", "leaked"):
            if not 0 < getattr(self, name) <= 1:
                raise TerakoyaError(f"limits.{name}", given=getattr(self, name), allowed="more than 0, at most 1")


class Sieve:
    """Remembers what it let pass, and counts why it did not."""

    def __init__(self, limits: Limits, benchmarks: Iterable[str] = ()) -> None:
        self.limits = limits
        self.counts: Counter[str] = Counter()
        self._seen = np.empty((0, HASHES), np.uint32)
        self._bench = {run for text in benchmarks for run in _runs(text, BENCHMARK)}

    def remember(self, question: str) -> None:
        """Take a question as known: what comes later must differ from it."""
        self._seen = np.vstack([self._seen, minhash(question)[None]])

    def passes(self, question: str, answer: str) -> bool:
        """Say whether a row is kept; it is remembered then."""
        why = self.fault(question, answer)
        self.counts[why or "kept"] += 1
        if not why:
            self.remember(question)
        return not why

    def fault(self, question: str, answer: str) -> str:
        """Name what is wrong with a row; nothing where it may be kept."""
        limits = self.limits
        for text in (question, answer):
            if not limits.shortest <= len(text.strip()) <= limits.longest:
                return "too short or too long"
            if limits.language and in_language(text, limits.language) < limits.share:
                return "another language"
        runs = _runs(question, BENCHMARK)
        if runs and sum(r in self._bench for r in runs) / len(runs) >= limits.leaked:
            return "in a benchmark"
        if len(self._seen) and float((self._seen == minhash(question)).mean(1).max()) >= limits.alike:
            return "a copy"
        return ""


def in_language(text: str, language: Language) -> float:
    """Share of the letters that are kana or kanji (ja), or Latin (en); a text without letters counts as fitting."""
    letters = [c for c in text if c.isalpha()]
    if not letters:
        return 1.0
    return japanese(text) if language == "ja" else sum(c.isascii() for c in letters) / len(letters)


def minhash(text: str) -> np.ndarray:
    """Return a signature (HASHES,): two texts agree in it as often as their sets of runs of five characters do."""
    runs = _runs(text, SHINGLE) or {text}
    keys = (
        int.from_bytes(hashlib.blake2b(r.encode("utf-8", "replace"), digest_size=4).digest(), "little") for r in runs
    )
    values = np.fromiter((k % PRIME for k in keys), np.uint64, len(runs))
    rng = np.random.Generator(np.random.PCG64(7))
    a, b = (rng.integers(1, PRIME, HASHES, dtype=np.uint64) for _ in range(2))
    return ((values[:, None] * a + b) % PRIME).min(0).astype(np.uint32)


def _runs(text: str, size: int) -> set[str]:
    """Runs of `size` characters, spaces and case aside; a shorter text is one run."""
    flat = "".join(text.split()).casefold()
    return {flat[i : i + size] for i in range(len(flat) - size + 1)} or ({flat} if flat else set())
