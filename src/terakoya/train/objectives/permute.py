"""Permutation language modelling: name the last tokens of a random order from those before them (Yang 2019, XLNet)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.objective import Outcome
from terakoya.train.objectives.mask import named
from terakoya.train.objectives.rows import Piece, laid, pieces_of
from terakoya.train.objectives.sight import ordered
from terakoya.train.objectives.signs import CLS, MASK, SEP
from terakoya.train.objectives.task import Plan, Task, rich


@dataclass(frozen=True)
class Permute(Plan):
    """Permutation language model (Yang 2019, §2.3), with partial prediction of short spans.

    Both streams run as one: behind each piece stand queries, [MASK] tokens (or the vector that the family has for
    asking) at the positions of the targets, that see what comes earlier in the order. The content stream sees its own
    tokens too, and nobody sees a query.
    """

    share: float = 1 / 6  # of the tokens to be named: XLNet's 1 / K with K = 6
    span: int = 5  # tokens named together at most

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise TerakoyaError("objective.share", given=self.share, allowed="a share between 0 and 1, both excluded")
        if self.span < 1:
            raise TerakoyaError("objective.span", given=self.span, allowed="1 or more")

    masks: ClassVar[bool] = True

    @property
    def marks(self) -> tuple[str, ...]:
        return (CLS, SEP, MASK)

    def room(self, context: int, joined: bool) -> int:
        return context + 2  # queries stand at positions that are there already

    def task(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> Task:
        return _Permuting(self, tokenizer, seed)


class _Permuting(Task):
    def __init__(self, plan: Permute, tokenizer: Tokenizer, seed: int) -> None:
        super().__init__(tokenizer, seed)
        self.plan = plan

    def arrange(self, batch: Batch, step: int) -> Batch:
        rows = []
        for number, pieces in enumerate(pieces_of(batch)):
            rng = self.dice(step, number)
            framed = [self.signs.framed(b) for b in map(self.signs.body, pieces) if len(b) > 1]
            rows.append([self._piece(ids, rng) for ids in framed])
        return laid(rows)

    def _piece(self, ids: np.ndarray, rng: np.random.Generator) -> Piece:
        at = spans(~self.signs.special[ids], self.plan.share, self.plan.span, rng)
        rank = np.zeros(len(ids), np.int64)  # what is not named comes first, and sees itself as a whole
        rank[at] = 1 + rng.permutation(len(at))
        tokens = np.concatenate([ids, np.full(len(at), self.signs.mask)])
        more = {"rank": np.concatenate([rank, rank[at]]), "query": np.arange(len(tokens)) >= len(ids)}
        targets = np.concatenate([ids, ids[at]])
        positions = np.concatenate([np.arange(len(ids)), at])
        return Piece(tokens, targets, more["query"].astype(np.float32), positions, more)

    def loss(self, model: Model, batch: Batch) -> Outcome:
        given = rich(batch)
        ctx = ordered(batch, given["rank"], given["query"])
        if (asks := model.embed.asks) is not None:  # XLNet has a vector for it, and needs no [MASK]
            at = given["query"].nonzero()[:, 0]
            ctx.share("vectors", lambda: (at, asks[0].expand(len(at), -1)))
        return named(model, model(batch.tokens, ctx), batch)


def spans(allowed: np.ndarray, share: float, longest: int, rng: np.random.Generator) -> np.ndarray:
    """Choose stretches of 1 to `longest` allowed tokens, about a share of them in all: allowed (n,) bool -> (m,)."""
    at = np.flatnonzero(allowed)
    want = min(max(1, round(share * len(at))), len(at) - 1)
    taken = np.zeros(len(at), bool)
    while (left := want - int(taken.sum())) > 0:
        length = min(int(rng.integers(1, longest + 1)), left)
        begin = int(rng.integers(len(at) - length + 1))
        taken[begin : begin + length] = True
    return at[taken]
