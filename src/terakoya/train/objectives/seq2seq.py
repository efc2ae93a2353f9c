"""One text from another: an encoder reads the source; a decoder alone reads it as a prefix seen both ways."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from terakoya.data.batch import Batch
from terakoya.model import spec
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.objective import Outcome
from terakoya.train.objectives.mask import named
from terakoya.train.objectives.rows import Piece, laid, pieces_of
from terakoya.train.objectives.sight import prefixed
from terakoya.train.objectives.task import Plan, Sort, Task, rich


def paired(source: np.ndarray, target: np.ndarray, start: int, joined: bool) -> Piece:
    """Lay out one pair; `joined` is for a decoder alone, which reads source and target as one piece."""
    if joined:
        tokens = np.concatenate([source, target[:-1]])
        silent = len(source) - 1
        targets = np.concatenate([source[1:], target])
        weights = (np.arange(len(tokens)) >= silent).astype(np.float32)
        return Piece(tokens, targets, weights, more={"prefix": np.array([len(source)])})
    tokens = np.concatenate([[start], target[:-1]])
    more = {"source": source, "length": np.array([len(source)])}
    return Piece(tokens, target, np.ones(len(target), np.float32), more=more)


def seq2seq(model: Model, batch: Batch) -> Outcome:
    """Predict each target token from its source and the tokens before it."""
    given = rich(batch)
    if "prefix" in given.more:
        return named(model, model(batch.tokens, prefixed(batch, given["prefix"])), batch)
    source = model.encode(given["source"], given["length"].tolist())
    ctx = Packed(batch.cu.diff().tolist(), batch.tokens.device, source=source)
    return named(model, model(batch.tokens, ctx), batch)


@dataclass(frozen=True)
class Rewriting(Plan):
    """A plan that makes sources and targets: for an encoder and decoder, or for one stack that reads both."""

    sorts: ClassVar[tuple[Sort, ...]] = ("decoder", "encoder", "encoder-decoder")
    masks: ClassVar[bool] = True


class Denoising(Task):
    """Spoil a text, then say what it was."""

    def __init__(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> None:
        super().__init__(tokenizer, seed)
        self.joined_up = s.encoder is None
        self.start = self.signs.start

    @abstractmethod
    def pair(self, body: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return source and target of a piece of two tokens or more."""

    def arrange(self, batch: Batch, step: int) -> Batch:
        rows = []
        for number, pieces in enumerate(pieces_of(batch)):
            rng = self.dice(step, number)
            pairs = [self.pair(b, rng) for b in map(self.signs.body, pieces) if len(b) > 1]
            rows.append([paired(*pair, self.start, self.joined_up) for pair in pairs])
        return laid(rows)

    def loss(self, model: Model, batch: Batch) -> Outcome:
        return seq2seq(model, batch)
