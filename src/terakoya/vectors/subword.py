"""Words as bags of their parts: character n-grams, and parts of characters (fastText, Bojanowski 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from terakoya.errors import TerakoyaError

Parts = Mapping[str, str]
"""Character -> what it is made of, one sign each: 語 -> 言五口."""


@dataclass(frozen=True)
class Subwords:
    """N-grams of `shortest` to `longest` characters of <word>, each hashed to one of `buckets` rows."""

    shortest: int = 3
    longest: int = 6
    buckets: int = 200_000  # fastText's 2,000,000 are for vocabularies of a whole Wikipedia

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise TerakoyaError("--min-n", given=self.shortest, allowed=f"1 to --max-n={self.longest}")
        if not 1 <= self.buckets < 1 << 30:
            raise TerakoyaError("--buckets", given=self.buckets, allowed="1 to 2**30")

    def grams(self, word: str) -> list[str]:
        """List the n-grams; those of one character are characters of the word, not its borders, as in fastText."""
        marked = f"<{word}>"
        return [
            marked[i : i + n]
            for i in range(len(marked))
            for n in range(self.shortest, self.longest + 1)
            if i + n <= len(marked) and not (n == 1 and (i == 0 or i + n == len(marked)))
        ]

    def rows(self, word: str, parts: Parts) -> list[int]:
        """Return the buckets of a word's n-grams, and of its characters' parts."""
        made = [f"\x1f{part}" for c in word for part in parts.get(c, "")]
        return [fnv1a(gram) % self.buckets for gram in (*self.grams(word), *made)]


def fnv1a(text: str) -> int:
    """Hash as fastText does: FNV-1a of 32 bits over the UTF-8 bytes, each taken as signed and widened with its sign."""
    h = 2166136261
    for byte in text.encode():
        h = ((h ^ (byte | 0xFFFFFF00 if byte > 127 else byte)) * 16777619) & 0xFFFFFFFF
    return h


def table(words: Sequence[str], subwords: Subwords | None, parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that make up each word: rows (R,) int32 and where each word's begin (V + 1,) int64.

    Row i < V is word i itself; buckets come after. Without subwords every word is its own row.
    """
    if subwords is None:
        return np.arange(len(words), dtype=np.int32), np.arange(len(words) + 1)
    bags = [[i, *(len(words) + b for b in subwords.rows(word, parts))] for i, word in enumerate(words)]
    return np.array([r for bag in bags for r in bag], np.int32), np.array([0, *accumulate(map(len, bags))])


def read_parts(path: Path) -> dict[str, str]:
    """Read what characters are made of, `語 : 言 五 口` a line (KRADFILE's form, as UTF-8); # begins a comment."""
    found: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TerakoyaError(str(path), f"cannot be read as UTF-8: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        char, _, made = (side.strip() for side in line.partition(":"))
        if len(char) != 1 or not made:
            raise TerakoyaError(f"{path}:{number}", given=line[:40], allowed="character : part part …")
        found[char] = "".join(made.split())
    return found
