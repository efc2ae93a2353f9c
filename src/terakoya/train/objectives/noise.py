"""BART's five ways to spoil a text; the target is the text itself (Lewis 2019, §2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.tokenizer import Tokenizer
from terakoya.train.objectives.mask import choose
from terakoya.train.objectives.seq2seq import Denoising, Rewriting
from terakoya.train.objectives.signs import CLS, MASK, SEP
from terakoya.train.objectives.task import Task

Noise = Literal["mask", "delete", "infill", "permute", "rotate"]
STOPS = ("。", "！", "？", "．", ".", "!", "?", "\n")


@dataclass(frozen=True)
class Bart(Rewriting):
    """Denoising (Lewis 2019): hide tokens, delete tokens, hide spans as one mask each, shuffle sentences, rotate.

    BART itself fills gaps in shuffled sentences: the default.
    """

    noises: tuple[Noise, ...] = ("permute", "infill")  # in this order
    share: float = 0.3  # of the tokens that are hidden or deleted
    mean: float = 3.0  # tokens of a gap, Poisson; some have none

    def __post_init__(self) -> None:
        if not self.noises:
            raise TerakoyaError(
                "objective.noises", "is empty", allowed=["mask", "delete", "infill", "permute", "rotate"]
            )
        if not 0 < self.share < 1:
            raise TerakoyaError("objective.share", given=self.share, allowed="a share between 0 and 1, both excluded")
        if not self.mean > 0:
            raise TerakoyaError("objective.mean", given=self.mean, allowed="more than 0")

    @property
    def marks(self) -> tuple[str, ...]:
        return (CLS, SEP, MASK)

    def room(self, context: int, joined: bool) -> int:
        source = context
        for _ in range(max(1, self.noises.count("infill"))):  # empty gaps lengthen the source, each time
            source += 2 * round(source * self.share / self.mean) + 8
        return (context if joined else 0) + source + 3

    def task(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> Task:
        return _Spoiling(self, tokenizer, s, seed)


class _Spoiling(Denoising):
    def __init__(self, plan: Bart, tokenizer: Tokenizer, s: spec.Model, seed: int) -> None:
        super().__init__(tokenizer, s, seed)
        self.plan = plan

    @cached_property
    def stops(self) -> np.ndarray:
        """Which ids end a sentence: (V,) bool."""
        tokenizer = self.signs.tokenizer
        ends = tuple(s.encode() for s in STOPS)
        return np.array([tokenizer.token_bytes(i).rstrip(b" ").endswith(ends) for i in range(tokenizer.vocab_size)])

    def pair(self, body: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        source = body
        for noise in self.plan.noises:
            source = self._spoilt(noise, source, rng)
        return self.signs.framed(source), np.append(body, self.signs.end)

    def _spoilt(self, noise: Noise, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        match noise:
            case "mask":
                return np.where(self._chosen(ids, rng), self.signs.mask, ids)
            case "delete":
                return ids[kept(~self._chosen(ids, rng), rng)]
            case "infill":
                return infill(ids, self.plan.share, self.plan.mean, self.signs.mask, rng)
            case "permute":
                return shuffled(ids, self.stops[ids], rng)
            case "rotate":
                return np.roll(ids, -int(rng.integers(len(ids))))

    def _chosen(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return choose(ids != self.signs.id(MASK), self.plan.share, rng)


def kept(mark: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keep one token where none would be left: a source says something. mark (n,) bool -> (n,)."""
    if not mark.any():
        mark[rng.integers(len(mark))] = True
    return mark


def infill(ids: np.ndarray, share: float, mean: float, mask: int, rng: np.random.Generator) -> np.ndarray:
    """Replace stretches of Poisson length, about a share of the tokens, by one mask each; an empty one inserts it."""
    want, most = max(1, round(share * len(ids))), 2 * round(len(ids) * share / mean) + 8
    sizes: list[int] = []
    while sum(sizes) < want and len(sizes) < most:
        sizes.append(min(int(rng.poisson(mean)), want - sum(sizes)))
    kept = len(ids) - sum(sizes)
    where = np.sort(rng.integers(kept + 1, size=len(sizes)))  # how many kept tokens stand before each gap
    order = rng.permutation(len(sizes))
    out: list[np.ndarray] = []
    at = done = 0
    for i, gap in enumerate(order.tolist()):
        before = int(where[i]) - done
        out += [ids[at : at + before], np.array([mask])]
        at, done = at + before + sizes[gap], done + before
    return np.concatenate([*out, ids[at:]])


def shuffled(ids: np.ndarray, stops: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shuffle the sentences, which end after the tokens marked: ids (n,), stops (n,) bool -> (n,)."""
    sentences = [s for s in np.split(ids, np.flatnonzero(stops) + 1) if len(s)]
    return np.concatenate([sentences[i] for i in rng.permutation(len(sentences))])
