"""Which words there are, how often, and what follows from it: subsampling, noise, the Huffman tree."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from terakoya.errors import TerakoyaError

LONGEST = 10_000  # words of a sentence; longer ones are cut, as everywhere since word2vec.c (there: 1,000)


@dataclass(frozen=True)
class Vocabulary:
    """Words from the most frequent to the rarest, and their counts (V,) int64."""

    words: tuple[str, ...]
    counts: np.ndarray

    @property
    def index(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}


@dataclass(frozen=True)
class Text:
    """Sentences as word numbers, words outside the vocabulary left out: ids (T,) int32, ends (sentences + 1,) int64."""

    ids: np.ndarray
    ends: np.ndarray


def read(sentences: Iterable[list[str]], least: int) -> tuple[Vocabulary, Text]:
    """Read a corpus once; words seen fewer than `least` times are left out, as if they had not been written."""
    if least < 1:
        raise TerakoyaError("--min-count", given=least, allowed="1 or more")
    numbers: dict[str, int] = {}
    ids, lengths = list[np.ndarray](), list[int]()
    for sentence in sentences:
        found = np.array([numbers.setdefault(word, len(numbers)) for word in sentence], np.int32)
        for part in range(0, len(found), LONGEST):
            ids.append(found[part : part + LONGEST])
            lengths.append(len(ids[-1]))
    if not ids:
        raise TerakoyaError("corpus", "has no words")
    flat = np.concatenate(ids)
    counts = np.bincount(flat, minlength=len(numbers))
    names = list(numbers)
    order = sorted(np.flatnonzero(counts >= least).tolist(), key=lambda i: (-counts[i], names[i]))
    if len(order) < 2:
        raise TerakoyaError("--min-count", "leaves fewer than two words", given=least, hint="lower it, or add text")
    place = np.full(len(numbers), -1, np.int32)
    place[order] = np.arange(len(order))
    kept = place[flat]
    inside = kept >= 0
    ends = np.concatenate([[0], np.cumsum(inside)])[np.concatenate([[0], np.cumsum(lengths)])]
    return Vocabulary(tuple(names[i] for i in order), counts[order]), Text(kept[inside], np.unique(ends))


def keep(counts: np.ndarray, sample: float) -> np.ndarray:
    """Return how likely a word stays, as a bound on draws of 32 bits: (V,) uint32.

    sqrt(t / f) + t / f of word2vec.c, f being the word's share of the text, t = `sample`; 0 keeps all.
    """
    share = counts / counts.sum()
    chance = np.minimum(np.sqrt(sample / share) + sample / share, 1.0) if sample else np.ones(len(counts))
    return np.floor(chance * 0xFFFFFFFF).astype(np.uint32)


def noise(counts: np.ndarray, power: float = 0.75) -> tuple[np.ndarray, np.ndarray]:
    """Return the alias table of the noise distribution, counts ** power (Walker 1977).

    Draw k evenly and r of 32 bits: the word is k where r <= chance[k], else other[k]; chance (V,) uint32, other (V,).
    """
    weight = counts**power
    level = weight / weight.sum() * len(counts)
    chance, other = np.ones(len(counts)), np.arange(len(counts), dtype=np.int32)
    small = [i for i, x in enumerate(level) if x < 1]
    large = [i for i, x in enumerate(level) if x >= 1]
    while small and large:
        low, high = small.pop(), large[-1]
        chance[low], other[low] = level[low], high
        level[high] -= 1 - level[low]
        if level[high] < 1:
            small.append(large.pop())
    return np.floor(chance * 0xFFFFFFFF).astype(np.uint32), other


def huffman(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the paths of the Huffman tree, root first: inner nodes (P,) int32, ways (P,) uint8, begins (V + 1,)."""
    size = len(counts)
    heap = [(int(c), i) for i, c in enumerate(counts)]
    heapq.heapify(heap)
    up = np.zeros(2 * size - 1, np.int64)
    way = np.zeros(2 * size - 1, np.uint8)
    for node in range(size, 2 * size - 1):
        (a, left), (b, right) = heapq.heappop(heap), heapq.heappop(heap)
        up[left] = up[right] = node
        way[right] = 1
        heapq.heappush(heap, (a + b, node))
    nodes, ways = list[list[int]](), list[list[int]]()
    for word in range(size):
        path, code, at = list[int](), list[int](), word
        while at != 2 * size - 2:
            code.append(int(way[at]))
            at = int(up[at])
            path.append(at - size)
        nodes.append(path[::-1])
        ways.append(code[::-1])
    branch = np.array([0, *accumulate(map(len, nodes))])
    return (
        np.array([n for path in nodes for n in path], np.int32),
        np.array([c for code in ways for c in code], np.uint8),
        branch,
    )
