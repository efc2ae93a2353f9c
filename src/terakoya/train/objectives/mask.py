"""Masked language modelling: hide some tokens, let the model see both sides and name them (Devlin 2018, §3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.objective import Outcome, context_of, cross_entropy
from terakoya.train.objectives.rows import Piece, dice, laid, pieces_of
from terakoya.train.objectives.signs import CLS, MASK, SEP, Signs
from terakoya.train.objectives.task import Plan, Sort, Task
from terakoya.train.objectives.words import cutter, starts


@dataclass(frozen=True)
class Mlm(Plan):
    """Masked language model (Devlin 2018).

    `copies = 0` draws new masks at every step (RoBERTa, Liu 2019); n > 0 lets each row have n masks and no more (BERT
    made ten). `unit` chooses single tokens, or whole words cut by script or by MeCab (Cui 2019; Japanese BERTs).
    """

    share: float = 0.15  # of the tokens to be named
    mask: float = 0.8  # of these: hidden; the rest after `random` stay as they are
    random: float = 0.1  # of these: another token
    unit: Literal["token", "script", "mecab"] = "token"
    copies: int = 0

    sorts: ClassVar[tuple[Sort, ...]] = ("encoder",)

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise TerakoyaError("objective.share", given=self.share, allowed="a share between 0 and 1, both excluded")
        if self.mask < 0 or self.random < 0 or self.mask + self.random > 1:
            given = f"mask={self.mask}, random={self.random}"
            raise TerakoyaError("objective.mask", given=given, allowed="0 or more, together at most 1")
        if self.copies < 0:
            raise TerakoyaError("objective.copies", given=self.copies, allowed="0 (always new) or more")

    @property
    def marks(self) -> tuple[str, ...]:
        return (CLS, SEP, MASK)

    def room(self, context: int, joined: bool) -> int:
        return context + 2

    def task(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> Task:
        return Masking(self, tokenizer, seed)


class Masking(Task):
    """Mlm at work."""

    def __init__(self, plan: Mlm, tokenizer: Tokenizer, seed: int) -> None:
        super().__init__(tokenizer, seed)
        self.plan = plan
        self.cut = None if plan.unit == "token" else cutter(plan.unit)
        self.signs.mask  # noqa: B018 - a vocabulary without it is told now

    def arrange(self, batch: Batch, step: int) -> Batch:
        rows = []
        for number, pieces in enumerate(pieces_of(batch)):
            rng = self.thrown(pieces, step, number)
            bodies = [self.signs.body(p) for p in pieces]
            rows.append([self.piece(self.signs.framed(b), rng) for b in bodies if len(b)])
        return laid(rows)

    def thrown(self, pieces: list[np.ndarray], step: int, row: int) -> np.random.Generator:
        """Return the dice of a row: of its place in training, or of its text where masks are static."""
        if not self.plan.copies:
            return self.dice(step, row)
        return dice(self.seed, step % self.plan.copies, b"".join(p.astype("<i8").tobytes() for p in pieces))

    def piece(self, ids: np.ndarray, rng: np.random.Generator) -> Piece:
        """Corrupt one piece; control tokens in it stay."""
        begins = None if self.cut is None else starts(ids, self.signs.tokenizer, self.cut)
        tokens, chosen = corrupt(ids, self.plan, self.signs, rng, begins)
        return Piece(tokens, ids, chosen.astype(np.float32))

    def loss(self, model: Model, batch: Batch) -> Outcome:
        return named(model, model(batch.tokens, context_of(batch)), batch)


def named(model: Model, hidden: Tensor, batch: Batch) -> Outcome:
    """Score the tokens that count: hidden (T, D) -> Σ w · -log p(target), and how many are named rightly."""
    counted = batch.weights != 0
    hidden, targets, weights = hidden[counted], batch.targets[counted], batch.weights[counted]
    with torch.no_grad():
        right = (model.head(hidden).argmax(-1) == targets).float() if not torch.is_grad_enabled() else None
    metrics = {} if right is None else {"accuracy": (right * weights).sum().item()}
    return Outcome(cross_entropy(model, hidden, targets, weights), metrics)


def corrupt(
    ids: np.ndarray, plan: Mlm, signs: Signs, rng: np.random.Generator, begins: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Hide a share of the ordinary tokens: ids (n,) -> (tokens (n,), which are to be named (n,) bool).

    `begins` (n,) marks the tokens at which a word begins; words are then hidden whole, as many as fit in the share.
    """
    chosen = choose(~signs.special[ids], plan.share, rng, begins)
    at = np.flatnonzero(chosen)
    fate = rng.random(len(at))
    other = signs.ordinary[rng.integers(len(signs.ordinary), size=len(at))]
    tokens = ids.copy()
    hidden, swapped = fate < plan.mask, (fate >= plan.mask) & (fate < plan.mask + plan.random)
    tokens[at[hidden]] = signs.mask
    tokens[at[swapped]] = other[swapped]
    return tokens, chosen


def choose(allowed: np.ndarray, share: float, rng: np.random.Generator, begins: np.ndarray | None = None) -> np.ndarray:
    """Choose about a share of the allowed tokens, one at least: allowed (n,) bool -> (n,) bool."""
    chosen = np.zeros(len(allowed), bool)
    at = np.flatnonzero(allowed)
    if not len(at):
        return chosen
    want = max(1, round(share * len(at)))
    if begins is None:
        chosen[rng.permutation(at)[:want]] = True
        return chosen
    first = begins[at] | np.append(True, at[1:] != at[:-1] + 1)
    words = np.split(at, np.flatnonzero(first)[1:])
    left = want
    for i in rng.permutation(len(words)).tolist():
        if len(words[i]) <= left or left == want:  # the first word always fits: a row without a target teaches nothing
            chosen[words[i]] = True
            left -= len(words[i])
        if left <= 0:
            break
    return chosen
