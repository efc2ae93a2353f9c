"""Span corruption: leave out stretches of a text, then say them in order (Raffel 2019, §3.1.4 and T5's source)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.tokenizer import Tokenizer
from terakoya.train.objectives.seq2seq import Denoising, Rewriting
from terakoya.train.objectives.signs import CLS, SEP, sentinels
from terakoya.train.objectives.task import Task


@dataclass(frozen=True)
class Spans(Rewriting):
    """Span corruption (Raffel 2019). A decoder alone learns it too, with the source as a prefix."""

    share: float = 0.15  # of the tokens that are left out
    mean: float = 3.0  # tokens of a gap
    sentinels: int = 100  # gaps of a piece at most

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise TerakoyaError("objective.share", given=self.share, allowed="a share between 0 and 1, both excluded")
        if not self.mean >= 1:
            raise TerakoyaError("objective.mean", given=self.mean, allowed="1 or more tokens")
        if self.sentinels < 1:
            raise TerakoyaError("objective.sentinels", given=self.sentinels, allowed="1 or more")

    @property
    def marks(self) -> tuple[str, ...]:
        return (CLS, SEP, *sentinels(self.sentinels))

    def room(self, context: int, joined: bool) -> int:
        gaps = round(context * self.share / self.mean) + 1
        return context + 2 * gaps + 3 if joined else context + gaps + 3

    def task(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> Task:
        return _Gaps(self, tokenizer, s, seed)


class _Gaps(Denoising):
    def __init__(self, plan: Spans, tokenizer: Tokenizer, s: spec.Model, seed: int) -> None:
        super().__init__(tokenizer, s, seed)
        self.plan = plan
        self.gaps = np.array([self.signs.id(name) for name in sentinels(plan.sentinels)])

    def pair(self, body: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        noise = gaps(len(body), self.plan.share, self.plan.mean, rng)
        return left_out(body, noise, self.gaps, self.signs.end)


def gaps(length: int, share: float, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Mark what is left out, T5's random_spans_noise_mask: -> (length,) bool, beginning with a token that stays."""
    noise = min(max(1, round(length * share)), length - 1)
    count = min(max(1, round(noise / mean)), noise, length - noise)
    out, stay = cut(noise, count, rng), cut(length - noise, count, rng)
    sizes = np.stack([stay, out], 1).reshape(-1)
    return np.repeat(np.arange(2 * count) % 2 == 1, sizes)


def cut(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Cut `total` into `parts` of one or more, every way equally likely: -> (parts,)."""
    at = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], at, [total]]))


def left_out(body: np.ndarray, noise: np.ndarray, signs: np.ndarray, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the text with a sentinel for each gap, and the gaps after their sentinels; both end with `end`."""
    begins = noise & ~np.concatenate([[False], noise[:-1]])
    count = int(begins.sum())
    if count > len(signs):
        raise TerakoyaError("objective.sentinels", given=len(signs), allowed=f"{count} or more for pieces this long")
    number = np.cumsum(begins) - 1
    source = np.where(begins, signs[np.minimum(number, len(signs) - 1)], body)[~noise | begins]
    target: list[np.ndarray] = []
    for i in range(count):
        target += [signs[i : i + 1], body[noise & (number == i)]]
    return np.append(source, end), np.append(np.concatenate(target), end)
