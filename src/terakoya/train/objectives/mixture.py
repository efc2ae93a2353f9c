"""Mixture of denoisers: short gaps, long gaps and continuations, each announced by a mode token (Tay 2022, UL2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.tokenizer import Tokenizer
from terakoya.train.objectives.seq2seq import Denoising, Rewriting
from terakoya.train.objectives.signs import CLS, MODES, SEP, sentinels
from terakoya.train.objectives.spans import gaps, left_out
from terakoya.train.objectives.task import Task

# UL2's seven (Tay 2022, table 1): mode token, mean length of a gap, share of the text; mean 0: one gap at the end
DENOISERS = (
    (MODES[0], 3.0, 0.15), (MODES[0], 8.0, 0.15), (MODES[2], 0.0, 0.25), (MODES[1], 3.0, 0.5), (MODES[1], 8.0, 0.5),
    (MODES[1], 64.0, 0.15), (MODES[1], 64.0, 0.5),
)  # fmt: skip


@dataclass(frozen=True)
class Ul2(Rewriting):
    """Mixture of denoisers (Tay 2022): R [NLU] short gaps, S [S2S] continuation, X [NLG] many or long gaps."""

    sentinels: int = 100

    def __post_init__(self) -> None:
        if self.sentinels < 1:
            raise TerakoyaError("objective.sentinels", given=self.sentinels, allowed="1 or more")

    @property
    def marks(self) -> tuple[str, ...]:
        return (CLS, SEP, *MODES, *sentinels(self.sentinels))

    def room(self, context: int, joined: bool) -> int:
        most = max(round(context * share / mean) + 1 for _, mean, share in DENOISERS if mean)
        return context + 2 * most + 4 if joined else context + most + 4

    def task(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> Task:
        return _Mixed(self, tokenizer, s, seed)


class _Mixed(Denoising):
    def __init__(self, plan: Ul2, tokenizer: Tokenizer, s: spec.Model, seed: int) -> None:
        super().__init__(tokenizer, s, seed)
        self.gaps = np.array([self.signs.id(name) for name in sentinels(plan.sentinels)])
        self.modes = {name: self.signs.id(name) for name in MODES}

    def pair(self, body: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        mode, mean, share = DENOISERS[rng.integers(len(DENOISERS))]
        if mean:
            noise = gaps(len(body), share, mean, rng)
        else:
            noise = np.arange(len(body)) >= len(body) - min(max(1, round(len(body) * share)), len(body) - 1)
        source, target = left_out(body, noise, self.gaps, self.signs.end)
        return np.concatenate([[self.modes[mode]], source]), target
