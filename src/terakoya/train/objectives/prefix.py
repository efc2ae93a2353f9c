"""Prefix language modelling: the first part of a text is seen both ways, the rest is continued (Raffel 2019, §3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from terakoya.data.batch import Batch
from terakoya.model import spec
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.objective import Outcome
from terakoya.train.objectives.mask import named
from terakoya.train.objectives.rows import Piece, laid, pieces_of
from terakoya.train.objectives.sight import prefixed
from terakoya.train.objectives.task import Plan, Task, rich


@dataclass(frozen=True)
class Prefix(Plan):
    """Prefix language model (Raffel 2019; Dong 2019): cut each piece at random, see the first part whole."""

    masks: ClassVar[bool] = True

    def task(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> Task:
        return _Prefixing(tokenizer, seed)


class _Prefixing(Task):
    def arrange(self, batch: Batch, step: int) -> Batch:
        rows = []
        for number, pieces in enumerate(pieces_of(batch)):
            rng = self.dice(step, number)
            rows.append([_piece(ids, int(rng.integers(1, len(ids)))) for ids in pieces if len(ids) > 1])
        return laid(rows)

    def loss(self, model: Model, batch: Batch) -> Outcome:
        return named(model, model(batch.tokens, prefixed(batch, rich(batch)["prefix"])), batch)


def _piece(ids: np.ndarray, prefix: int) -> Piece:
    counts = np.arange(1, len(ids)) >= prefix  # the last token of the prefix predicts the first after it
    return Piece(ids[:-1], ids[1:], counts.astype(np.float32), more={"prefix": np.array([prefix])})
