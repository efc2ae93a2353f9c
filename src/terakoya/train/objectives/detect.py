"""Replaced-token detection: a small generator fills the gaps, the model says which tokens are not the author's.

Clark 2020 (ELECTRA): loss = MLM of the generator + 50 · binary cross-entropy over all tokens of the discriminator.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.config import select
from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.objective import Outcome, context_of, cross_entropy
from terakoya.train.objectives.mask import Masking, Mlm
from terakoya.train.objectives.rows import Piece, Rich, laid, pieces_of, word_of
from terakoya.train.objectives.task import EXTRA, Plan, Sort, Task, rich
from terakoya.zoo import lineage


@dataclass(frozen=True)
class Rtd(Plan):
    """Replaced-token detection (Clark 2020). The model trained is the discriminator; the generator stays in the run."""

    generator: float = 0.25  # width of the generator, as a share of the model's
    tied: bool = False  # True: the model is its own generator, with a head for each task (§3.2, "tying all weights")
    weight: float = 50.0  # of the discriminator's loss
    mlm: Mlm = field(default_factory=lambda: Mlm(mask=1.0, random=0.0))

    sorts: ClassVar[tuple[Sort, ...]] = ("encoder",)
    worded: ClassVar[bool] = False  # but see `tied`

    def __post_init__(self) -> None:
        if not 0 < self.generator <= 1:
            raise TerakoyaError("objective.generator", given=self.generator, allowed="more than 0, at most 1")
        if not self.weight > 0:
            raise TerakoyaError("objective.weight", given=self.weight, allowed="more than 0")

    @property
    def marks(self) -> tuple[str, ...]:
        return self.mlm.marks

    def room(self, context: int, joined: bool) -> int:
        return context + 2

    def check(self, s: spec.Model) -> None:
        super().check(s)
        if self.tied and s.head.scores != "words":
            hint = "model = bert/nano, or objective.tied=false"
            raise TerakoyaError("objective.tied", "the model must name tokens too", given=s.head.scores, hint=hint)

    def task(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> Task:
        return _Detecting(self, tokenizer, seed)


class Adversary(nn.Module):
    """The generator, which reads through the discriminator's token table, and a head where the model has none.

    `share` None: no generator, the model fills its own gaps.
    """

    def __init__(self, s: spec.Model, share: float | None) -> None:
        super().__init__()
        self.generator = None if share is None else Model(generator_of(s, share))
        own = s.head.scores != "replaced"
        self.detect = nn.Sequential(nn.Linear(s.dim, s.dim), nn.GELU(), nn.Linear(s.dim, 1)) if own else None


def generator_of(s: spec.Model, share: float) -> spec.Model:
    """Return the generator's spec: as deep, narrower, with the discriminator's token table."""
    heads = select(s, "attention")
    width = spec.head_dim(s, heads[0]) if heads else s.dim
    dim = max(width, round(s.dim * share / width) * width)
    small = lineage.rescale(s, dim, s.depth, width) if dim != s.dim else s
    head = replace(s.head, scores="words", tied=True)
    return replace(small, embed=replace(s.embed, factor=s.embed.factor or s.dim), head=head, pool=None)


class _Detecting(Masking):
    def __init__(self, plan: Rtd, tokenizer: Tokenizer, seed: int) -> None:
        super().__init__(plan.mlm, tokenizer, seed)
        self.share, self.weight = None if plan.tied else plan.generator, plan.weight

    def companion(self, s: spec.Model) -> nn.Module:
        return Adversary(s, self.share)

    def joined(self, model: Model) -> Model:
        super().joined(model)
        adversary = model.get_submodule(EXTRA)
        assert isinstance(adversary, Adversary)
        if adversary.generator is not None:
            adversary.generator.embed.token = model.embed.token
            adversary.generator.head.weight = model.embed.token.weight
        return model

    def arrange(self, batch: Batch, step: int) -> Batch:
        rows: list[list[Piece]] = []
        for number, pieces in enumerate(pieces_of(batch)):
            rng = self.thrown(pieces, step, number)
            made = [self.piece(self.signs.framed(b), rng) for b in map(self.signs.body, pieces) if len(b)]
            key = word_of(rng)
            rows.append([self._counted(p, key if i == 0 else key[:0]) for i, p in enumerate(made)])
        return _balanced(laid(rows))

    def _counted(self, piece: Piece, key: np.ndarray) -> Piece:
        """Let every ordinary token count for the discriminator, and the hidden ones for the generator."""
        ordinary = (~self.signs.special[piece.targets]).astype(np.float32)
        return replace(piece, weights=ordinary, more={"hidden": piece.weights, "key": key})

    def loss(self, model: Model, batch: Batch) -> Outcome:
        given = rich(batch)
        adversary = model.get_submodule(EXTRA)
        assert isinstance(adversary, Adversary)
        at = given["hidden"] != 0
        generator = model if adversary.generator is None else adversary.generator
        guess = generator(batch.tokens, context_of(batch))[at]
        truth, weights = batch.targets[at], given["hidden"][at]
        mlm = cross_entropy(generator, guess, truth, weights)
        shown = batch.targets.clone()
        shown[at] = _sampled(generator, guess, int(given["key"][0]))
        replaced = (shown != batch.targets).float()
        hidden = model(shown, context_of(batch))
        scores = (model.head(hidden) if adversary.detect is None else adversary.detect(hidden))[:, 0].float()
        rtd = (F.binary_cross_entropy_with_logits(scores, replaced, reduction="none") * batch.weights).sum()
        right = (((scores > 0) == (replaced > 0)).float() * batch.weights).sum().item()
        seen = {"mlm_loss": mlm.item(), "rtd_loss": rtd.item(), "rtd_accuracy": right}
        seen["replaced"] = (replaced * batch.weights).sum().item()
        return Outcome(mlm + self.weight * rtd, seen)


@torch.no_grad()
def _sampled(generator: Model, hidden: Tensor, key: int) -> Tensor:
    """Draw a token at each gap from the generator's distribution: hidden (M, D) -> (M,)."""
    rng = torch.Generator(hidden.device).manual_seed(key)
    return torch.multinomial(generator.head(hidden).float().softmax(-1), 1, generator=rng)[:, 0]


def _balanced(batch: Rich) -> Rich:
    """Scale the generator's weights so that both losses are means over their own tokens."""
    hidden = batch.more["hidden"]
    scale = batch.weight / max(hidden.values.sum().item(), 1.0)
    return replace(batch, more={**batch.more, "hidden": replace(hidden, values=hidden.values * scale)})
