"""Contrastive learning: two views of one text close, other texts far (van den Oord 2018; Gao 2021; Izacard 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.model import NAMES, Block, Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.objective import Outcome, context_of
from terakoya.train.objectives.rows import Piece, laid, pieces_of, word_of
from terakoya.train.objectives.signs import CLS, SEP
from terakoya.train.objectives.task import Plan, Task, rich

Pool = Literal["mean", "first", "last", "max"]
SHORTEST = 4  # tokens of a text


@dataclass(frozen=True)
class Contrast(Plan):
    """Tell a text's second view among those of all texts of the step.

    `views = "dropout"`: the same text twice, under two draws of dropout (SimCSE, Gao 2021). `views = "crops"`: two
    stretches of it (Contriever, Izacard 2021).
    """

    views: Literal["dropout", "crops"] = "dropout"
    length: int = 32  # tokens of a text
    dropout: float = 0.1
    temperature: float = 0.05
    pool: Pool = "mean"

    whole: ClassVar[bool] = True
    worded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.length < 2 * SHORTEST:
            raise TerakoyaError("objective.length", given=self.length, allowed=f"{2 * SHORTEST} tokens or more")
        if not 0 <= self.dropout < 1:
            raise TerakoyaError("objective.dropout", given=self.dropout, allowed="0 or more, less than 1")
        if self.views == "dropout" and self.dropout == 0:
            raise TerakoyaError("objective.dropout", "0 makes both views equal", hint='or views = "crops"')
        if not self.temperature > 0:
            raise TerakoyaError("objective.temperature", given=self.temperature, allowed="more than 0")

    @property
    def marks(self) -> tuple[str, ...]:
        return (CLS, SEP)

    def room(self, context: int, joined: bool) -> int:
        return max(context, self.length) + 2

    def task(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> Task:
        return _Contrasting(self, tokenizer, seed)


class _Contrasting(Task):
    compares = True

    def __init__(self, plan: Contrast, tokenizer: Tokenizer, seed: int) -> None:
        super().__init__(tokenizer, seed)
        self.plan = plan

    def arrange(self, batch: Batch, step: int) -> Batch:
        rows: list[list[Piece]] = []
        for number, pieces in enumerate(pieces_of(batch)):
            rng = self.dice(step, number)
            size = self.plan.length
            bodies = map(self.signs.body, pieces)
            texts = [b[i : i + size] for b in bodies for i in range(0, len(b), size) if len(b) - i >= SHORTEST]
            key = word_of(rng)
            row: list[Piece] = []
            for text in texts:
                for view, counts in ((self._view(text, rng), 1.0), (self._view(text, rng), 0.0)):
                    row.append(self._piece(view, counts, key if not row else key[:0]))
            rows.append(row)
        return laid(rows)

    def _view(self, text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.plan.views == "dropout":
            return text
        size = max(2, int(len(text) * rng.uniform(0.4, 0.8)))
        at = int(rng.integers(len(text) - size + 1))
        return text[at : at + size]

    def _piece(self, body: np.ndarray, counts: float, key: np.ndarray) -> Piece:
        ids = self.signs.framed(body)
        weights = np.zeros(len(ids), np.float32)
        weights[0] = counts  # one for each pair
        return Piece(ids, ids, weights, more={"key": key})

    def loss(self, model: Model, batch: Batch) -> Outcome:
        with dropped(model, self.plan.dropout, int(rich(batch)["key"][0])):
            hidden = model(batch.tokens, context_of(batch))
        vectors = pooled(hidden, batch.cu, self.plan.pool)
        losses, right = info_nce(vectors[0::2], vectors[1::2], self.plan.temperature)
        return Outcome(losses.sum(), {"retrieval_accuracy": right.sum().item(), "texts": float(len(losses)) ** 2})


def info_nce(a: Tensor, b: Tensor, temperature: float, negatives: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tell each a's own b among all b, and hard negatives where there are: a, b (N, E), negatives (M, E).

    Returns the losses (N,) and whether the own b is nearest (N,), by cosine (van den Oord 2018; supervised SimCSE).
    """
    others = b if negatives is None else torch.cat([b, negatives])
    scores = F.normalize(a.float(), dim=-1) @ F.normalize(others.float(), dim=-1).T / temperature
    own = torch.arange(len(a), device=a.device)
    return F.cross_entropy(scores, own, reduction="none"), (scores.argmax(-1) == own).float()


def clip(image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Mean of both directions: image, text (N, E) -> (); `scale` multiplies the cosines (Radford 2021, figure 3)."""
    scores = scale * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
    own = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def pooled(hidden: Tensor, cu: Tensor, pool: Pool) -> Tensor:
    """Make one vector of each piece: hidden (T, D), cu (N+1,) -> (N, D)."""
    begins, ends = cu[:-1].long(), cu[1:].long()
    match pool:
        case "first":
            return hidden[begins]
        case "last":
            return hidden[ends - 1]
        case "mean":
            owner = torch.repeat_interleave(torch.arange(len(begins), device=hidden.device), ends - begins)
            sums = hidden.new_zeros(len(begins), hidden.shape[1]).index_add(0, owner, hidden)
            return sums / (ends - begins)[:, None]
        case "max":
            return torch.stack([hidden[a:b].amax(0) for a, b in zip(begins.tolist(), ends.tolist(), strict=True)])


@contextmanager
def dropped(model: nn.Module, rate: float, key: int) -> Iterator[None]:
    """Drop values after the embedding and each mixer, by dice of their own: the same key drops the same."""
    if not rate:
        yield
        return
    device = next(model.parameters()).device
    rng = torch.Generator(device).manual_seed(key)

    def drop(module: nn.Module, given: Any, out: Tensor) -> Tensor:
        kept = torch.rand(out.shape, generator=rng, device=device) >= rate
        return out * kept / (1 - rate)

    names = set(NAMES.values())
    mixers = [m for b in model.modules() if isinstance(b, Block) for n, m in b.named_children() if n in names]
    embed = model.get_submodule("embed")
    hooks = [m.register_forward_hook(drop) for m in (embed, *mixers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
