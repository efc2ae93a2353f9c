"""Fill in the middle: a causal model learns to write between two parts by moving the middle last (Bavarian 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.objective import Outcome, causal
from terakoya.train.objectives.rows import Piece, laid, pieces_of
from terakoya.train.objectives.signs import FIM
from terakoya.train.objectives.task import Plan, Sort, Task


@dataclass(frozen=True)
class Fim(Plan):
    """Fill in the middle (Bavarian 2022), after packing: "context level", cut between tokens.

    A share of the pieces becomes prefix-suffix-middle, of which `spm` suffix-prefix-middle in the joint layout; every
    token counts, and the end of the middle is told by the end of text.
    """

    share: float = 0.5
    spm: float = 0.5

    sorts: ClassVar[tuple[Sort, ...]] = ("decoder",)
    leftward: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in (("share", self.share), ("spm", self.spm)):
            if not 0 <= value <= 1:
                raise TerakoyaError(f"objective.{name}", given=value, allowed="0 to 1")

    @property
    def marks(self) -> tuple[str, ...]:
        return FIM

    def room(self, context: int, joined: bool) -> int:
        return context + 4

    def task(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> Task:
        return _Moving(self, tokenizer, seed)


class _Moving(Task):
    def __init__(self, plan: Fim, tokenizer: Tokenizer, seed: int) -> None:
        super().__init__(tokenizer, seed)
        self.plan, self.signs_of = plan, tuple(self.signs.id(name) for name in FIM)

    def arrange(self, batch: Batch, step: int) -> Batch:
        rows = []
        for number, pieces in enumerate(pieces_of(batch)):
            rng = self.dice(step, number)
            rows.append([self._piece(ids, rng) for ids in pieces if len(ids) > 1])
        return laid(rows)

    def _piece(self, ids: np.ndarray, rng: np.random.Generator) -> Piece:
        whole, body = ids, self.signs.body(ids)
        if rng.random() < self.plan.share and len(body) > 1:
            head = ids[: len(ids) - len(body)] if self.signs.special[ids[0]] else ids[:0]
            a, b = np.sort(rng.integers(len(body) + 1, size=2))
            parts = (body[:a], body[a:b], body[b:])
            moved = middle_last(*parts, self.signs_of, self.signs.end, spm=rng.random() < self.plan.spm)
            whole = np.concatenate([head, moved])
        return Piece(whole[:-1], whole[1:], np.ones(len(whole) - 1, np.float32))

    def loss(self, model: Model, batch: Batch) -> Outcome:
        return causal(model, batch)


def middle_last(
    prefix: np.ndarray, middle: np.ndarray, suffix: np.ndarray, signs: tuple[int, ...], end: int, *, spm: bool
) -> np.ndarray:
    """Return PRE prefix SUF suffix MID middle end, or PRE SUF suffix MID prefix middle end; signs: PRE, MID, SUF."""
    pre, mid, suf = signs
    parts = ([pre, suf], suffix, [mid], prefix, middle) if spm else ([pre], prefix, [suf], suffix, [mid], middle)
    return np.concatenate([*(np.asarray(p, np.int64) for p in parts), [end]])
