"""Pairs of sentences beside masked tokens: does the second follow (Devlin 2018), or were they swapped (Lan 2019)?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.objective import Outcome
from terakoya.train.objectives.mask import Masking, Mlm, named
from terakoya.train.objectives.rows import Piece, laid, pieces_of
from terakoya.train.objectives.task import EXTRA, Plan, Sort, Task, rich

SHORTEST = 4  # tokens of a piece that is cut in two


@dataclass(frozen=True)
class _Pairs(Plan):
    """`pool = "first"` reads the answer off [CLS], as BERT does; "segments" off the means of A and of B."""

    pool: Literal["first", "segments"] = "first"
    mlm: Mlm = field(default_factory=Mlm)

    sorts: ClassVar[tuple[Sort, ...]] = ("encoder",)

    @property
    def marks(self) -> tuple[str, ...]:
        return self.mlm.marks

    def room(self, context: int, joined: bool) -> int:
        return context + 3


@dataclass(frozen=True)
class Nsp(_Pairs):
    """Masked tokens, and whether B follows A or comes from another row of the step (Devlin 2018, §3.1)."""

    rows: ClassVar[int] = 2

    def task(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> Task:
        return _Follows(self, tokenizer, s, seed)


@dataclass(frozen=True)
class Sop(_Pairs):
    """Masked tokens, and whether A and B stand in their order or swapped (Lan 2019, ALBERT)."""

    def task(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> Task:
        return _Swapped(self, tokenizer, s, seed)


class PairHead(nn.Module):
    """Pool the first token and tell two classes apart: first (N, D) -> (N, 2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense, self.pair = nn.Linear(dim, dim), nn.Linear(dim, 2)

    def forward(self, first: Tensor) -> Tensor:
        return self.pair(torch.tanh(self.dense(first)))


class SegmentHead(nn.Module):
    """Tell two classes apart by the means u and v of both segments: u, v (N, D) -> (N, 2).

    Reads [u, v, |u - v|, u * v] (Conneau 2017, InferSent). What two texts have in common then need not be gathered in
    [CLS] first, which a short training does not come to.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense, self.pair = nn.Linear(4 * dim, dim), nn.Linear(dim, 2)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return self.pair(torch.tanh(self.dense(compared(u, v))))


class _Pairing(Masking):
    """What both have in common: [CLS] A [SEP] B [SEP], masked, with one label a pair."""

    def __init__(self, plan: _Pairs, tokenizer: Tokenizer, s: spec.Model, seed: int) -> None:
        super().__init__(plan.mlm, tokenizer, seed)
        self.pool = plan.pool
        if s.pool is None or not s.pool.classes:
            return
        if s.pool.classes != 2:
            raise TerakoyaError("model.pool.classes", given=s.pool.classes, allowed="2: does B follow A or not")
        if plan.pool != "first":
            hint = "model.pool.classes=0 leaves it out"
            raise TerakoyaError("objective.pool", "the model's own pair head reads [CLS]", given=plan.pool, hint=hint)

    def companion(self, s: spec.Model) -> nn.Module | None:
        if s.pool is not None and s.pool.classes:
            return None
        return PairHead(s.dim) if self.pool == "first" else SegmentHead(s.dim)

    @abstractmethod
    def pair(
        self, a: np.ndarray, b: np.ndarray, others: Sequence[np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Return what stands first and second, and the label: 1 where it was tampered with."""

    def arrange(self, batch: Batch, step: int) -> Batch:
        texts = [[b for b in map(self.signs.body, row) if len(b) >= SHORTEST] for row in pieces_of(batch)]
        rows: list[list[Piece]] = []
        for number, bodies in enumerate(texts):
            rng = self.thrown(bodies, step, number)
            others = [b for i, row in enumerate(texts) if i != number for b in row]
            rows.append([self._piece(body, others, rng) for body in bodies])
        pieces = [p for row in rows for p in row]
        share = float(sum(p.weights.sum() for p in pieces)) / max(
            len(pieces), 1
        )  # both losses weigh the same in a step
        shared = [[_with(p, "pair_weight", np.array([share], np.float32)) for p in row] for row in rows]
        return laid(shared)

    def _piece(self, body: np.ndarray, others: Sequence[np.ndarray], rng: np.random.Generator) -> Piece:
        cut = int(rng.integers(len(body) // 4, len(body) - len(body) // 4)) or 1
        first, second, label = self.pair(body[:cut], body[cut:], others, rng)
        before, after = self.signs.frame
        parts = [before, first, after or before, second, after]
        ids = np.concatenate([np.asarray(p, np.int64) for p in parts])
        head = len(before) + len(first) + len(after or before)
        segments = (np.arange(len(ids)) >= head).astype(np.int64)
        return _with(_with(self.piece(ids, rng), "segments", segments), "label", np.array([label]))

    def loss(self, model: Model, batch: Batch) -> Outcome:
        given = rich(batch)
        ctx = Packed(batch.cu.diff().tolist(), batch.tokens.device, segments=given["segments"])
        hidden = model(batch.tokens, ctx)
        masked = named(model, hidden, batch)
        if model.pool is not None and model.pool.pair is not None:
            scores = model.pool.pair(model.pool(hidden, ctx))
        elif self.pool == "first":
            scores = model.get_submodule(EXTRA)(hidden[batch.cu[:-1].long()])
        else:
            scores = model.get_submodule(EXTRA)(*means(hidden, batch.cu, given["segments"]))
        labels, weights = given["label"], given["pair_weight"]
        pair = (F.cross_entropy(scores.float(), labels, reduction="none") * weights).sum()
        right = ((scores.argmax(-1) == labels).float() * weights).sum().item()
        seen = {"pair_loss": pair.item(), "pair_accuracy": right, "mlm_loss": masked.loss.item()}
        return Outcome(masked.loss + pair, masked.metrics | seen)


def means(hidden: Tensor, cu: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """Average both segments of each piece: hidden (T, D), cu (N+1,), segments (T,) of 0 and 1 -> (N, D), (N, D)."""
    count = len(cu) - 1
    owner = torch.repeat_interleave(torch.arange(count, device=hidden.device), cu.diff().long()) + count * segments
    sums = hidden.new_zeros(2 * count, hidden.shape[1]).index_add(0, owner, hidden)
    both = sums / torch.bincount(owner, minlength=2 * count)[:, None]
    return both[:count], both[count:]


def compared(u: Tensor, v: Tensor) -> Tensor:
    """Lay out what two vectors have in common: u, v (N, D) -> (N, 4D), from vectors of one length (Conneau 2017)."""
    u, v = (F.rms_norm(x, x.shape[-1:]) for x in (u, v))
    return torch.cat([u, v, (u - v).abs(), u * v], -1)


class _Follows(_Pairing):
    compares = True

    def pair(
        self, a: np.ndarray, b: np.ndarray, others: Sequence[np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, int]:
        if rng.random() < 0.5 or not others:  # a last row that is alone has no false second sentence
            return a, b, 0
        enough = [o for o in others if len(o) >= len(b)] or others
        other = enough[int(rng.integers(len(enough)))]
        at = int(rng.integers(len(other) - len(b) + 1)) if len(other) > len(b) else 0
        return a, other[at : at + len(b)], 1


class _Swapped(_Pairing):
    def pair(
        self, a: np.ndarray, b: np.ndarray, others: Sequence[np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, int]:
        return (a, b, 0) if rng.random() < 0.5 else (b, a, 1)


def _with(piece: Piece, name: str, value: np.ndarray) -> Piece:
    return replace(piece, more={**piece.more, name: value})
