"""Entity-aware masked language modelling: hidden words, and hidden entities behind them (Yamada 2020, LUKE, §3.3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.entities import Mentioned, Mentions
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.objective import Outcome, context_of
from terakoya.train.objectives.mask import Masking, Mlm, named
from terakoya.train.objectives.rows import Piece, laid, pieces_of
from terakoya.train.objectives.task import Plan, Sort, Task, rich

RESERVED = 3  # rows of the entities' table before the first name: padding, unknown, hidden (LUKE's)
HIDDEN = 2


@dataclass(frozen=True)
class Entity(Plan):
    """Masked words and masked entities (LUKE). An entity stands wherever its name does, the longest name first.

    LUKE learnt from Wikipedia's links, whose words stay readable; a list of names would give its answers away, so the
    words of a hidden entity are hidden too, unless `words = false`.
    """

    names: tuple[str, ...]  # name i is row i + 3 of the entities' table
    share: float = 0.3  # of the entities that are hidden; LUKE: 0.15
    words: bool = True
    mlm: Mlm = field(default_factory=Mlm)

    sorts: ClassVar[tuple[Sort, ...]] = ("encoder",)

    def __post_init__(self) -> None:
        if not self.names or not all(self.names) or len({*self.names}) < len(self.names):
            raise TerakoyaError("objective.names", given=self.names[:3], allowed="names, each once, none empty")
        if not 0 < self.share <= 1:
            raise TerakoyaError("objective.share", given=self.share, allowed="a share above 0, at most 1")

    @property
    def marks(self) -> tuple[str, ...]:
        return self.mlm.marks

    def room(self, context: int, joined: bool) -> int:
        return context + 2

    def check(self, s: spec.Model) -> None:
        super().check(s)
        rows, need = s.embed.entities.count if s.embed.entities else 0, len(self.names) + RESERVED
        if rows < need or s.head.scores != "words":
            hint = "model = luke/nano; model.embed.entities.count sets the rows"
            raise TerakoyaError("model.embed.entities", given=rows, allowed=f"{need} rows or more", hint=hint)

    def task(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> Task:
        return _Naming(self, tokenizer, seed)


class _Naming(Masking):
    def __init__(self, plan: Entity, tokenizer: Tokenizer, seed: int) -> None:
        super().__init__(plan.mlm, tokenizer, seed)
        self.entity = plan
        longest = sorted((name.encode() for name in plan.names), key=len, reverse=True)
        self.pattern = re.compile(b"|".join(map(re.escape, longest)))
        self.rows = {name.encode(): RESERVED + i for i, name in enumerate(plan.names)}

    def arrange(self, batch: Batch, step: int) -> Batch:
        rows: list[list[Piece]] = []
        for number, pieces in enumerate(pieces_of(batch)):
            rng = self.thrown(pieces, step, number)
            bodies = [self.signs.body(p) for p in pieces]
            rows.append([self._piece(self.signs.framed(b), rng) for b in bodies if len(b)])
        found = [p for row in rows for p in row]
        hidden = sum(float(p.more["asked"].sum()) for p in found)
        share = float(sum(p.weights.sum() for p in found)) / max(hidden, 1.0)  # both losses weigh the same in a step
        return laid([[_weighed(p, share) for p in row] for row in rows])

    def _piece(self, ids: np.ndarray, rng: np.random.Generator) -> Piece:
        mentions = self.mentions(ids)
        made = self.piece(ids, rng)
        asked = rng.random(len(mentions)) < self.entity.share
        tokens, weights = made.tokens.copy(), made.weights.copy()
        if self.entity.words:
            for (_, words), hide in zip(mentions, asked, strict=True):
                if hide:
                    tokens[words], weights[words] = self.signs.mask, 1.0
        count = len(mentions)
        row = np.array([r for r, _ in mentions], np.int64)
        more = {
            "entities": np.array([count]),
            "entity": np.where(asked, HIDDEN, row).astype(np.int64),
            "answer": row,
            "asked": asked.astype(np.float32),
            "mentioned": np.concatenate([np.zeros(0, np.int64), *(w for _, w in mentions)]),
            "length": np.array([len(w) for _, w in mentions], np.int64),
        }
        return Piece(
            np.concatenate([tokens, np.zeros(count, np.int64)]),
            np.concatenate([made.targets, np.zeros(count, np.int64)]),
            np.concatenate([weights, np.zeros(count, np.float32)]),
            more=more,
        )

    def mentions(self, ids: Sequence[int] | np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Find names in a piece: for each its row in the entities' table, and the tokens that hold it."""
        pieces = [b"" if self.signs.special[int(i)] else self.signs.tokenizer.token_bytes(int(i)) for i in ids]
        ends = np.cumsum([len(p) for p in pieces])
        begins = ends - [len(p) for p in pieces]
        found = []
        for match in self.pattern.finditer(b"".join(pieces)):
            words = np.flatnonzero((begins < match.end()) & (ends > match.start()))
            found.append((self.rows[match[0]], words))
        return found

    def loss(self, model: Model, batch: Batch) -> Outcome:
        given, device = rich(batch), batch.tokens.device
        if not len(given["entity"]):
            return named(model, model(batch.tokens, context_of(batch)), batch)
        ends, counts = batch.cu[1:].tolist(), given["entities"].tolist()
        at = torch.cat([torch.arange(end - n, end, device=device) for end, n in zip(ends, counts, strict=True)])
        owner = torch.repeat_interleave(torch.arange(len(at), device=device), given["length"])
        mentions = Mentions(at, given["entity"], given["mentioned"], owner)
        hidden = model(batch.tokens, Mentioned(batch.cu.diff().tolist(), device, mentions))
        words = named(model, hidden, batch)
        asked = given["asked"] != 0
        assert model.entities is not None
        scores = model.entities(hidden[at[asked]]).float()
        answers, weights = given["answer"][asked], given["asked"][asked]
        lost = (F.cross_entropy(scores, answers, reduction="none") * weights).sum()
        right = ((scores.argmax(-1) == answers).float() * weights).sum().item()
        seen = {"entity_loss": lost.item(), "entity_accuracy": right, "mlm_loss": words.loss.item()}
        return Outcome(words.loss + lost, words.metrics | seen)


def _weighed(piece: Piece, share: float) -> Piece:
    return replace(piece, more={**piece.more, "asked": piece.more["asked"] * np.float32(share)})
