"""What an objective is: a plan (data, in the recipe) and the task that it makes of a vocabulary and a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import nn

from terakoya.config import kind
from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.objective import Outcome, causal
from terakoya.train.objectives.rows import Rich, dice
from terakoya.train.objectives.signs import Signs

Sort = Literal["decoder", "encoder", "encoder-decoder"]
EXTRA = "extra"  # the module beside the model that an objective needs and the finished model does not


class Task(ABC):
    """An objective at work. `arrange` is a pure function of (batch, step), so resuming continues bit for bit."""

    compares: ClassVar[bool] = False  # True: rows are held against each other, so those of one page are a harder test

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.signs, self.seed = Signs(tokenizer), seed

    @abstractmethod
    def arrange(self, batch: Batch, step: int) -> Batch:
        """Turn the text of a step into what the model reads and must say."""

    @abstractmethod
    def loss(self, model: Model, batch: Batch) -> Outcome:
        """Return Σ weight · loss of an arranged batch; metrics are sums of the same weights."""

    def companion(self, s: spec.Model) -> nn.Module | None:
        """Make what learns beside the model: heads, a generator."""
        return None

    def joined(self, model: Model) -> Model:
        """Put the companion beside a model that was just built."""
        beside = self.companion(model.spec)
        if beside is not None:
            model.add_module(EXTRA, beside)
        return model

    def dice(self, step: int, row: int) -> np.random.Generator:
        """Return the random numbers of one row of one step."""
        return dice(self.seed, step, row)


@dataclass(frozen=True)
class Plan:
    """An objective as data. Its numbers are its fields; its name is its class."""

    sorts: ClassVar[tuple[Sort, ...]] = ("decoder", "encoder")  # of models that can learn this way
    masks: ClassVar[bool] = False  # True: brings a mask of its own, which only plain attention heeds
    worded: ClassVar[bool] = True  # False: asks for no words, so the model needs no head that scores them
    leftward: ClassVar[bool] = False  # True: what comes of it continues texts, so bits per byte can be measured
    whole: ClassVar[bool] = False  # True: rows learn from each other, so a step cannot be split
    rows: ClassVar[int] = 1  # of a step, at least

    @property
    def marks(self) -> tuple[str, ...]:
        """Control tokens that the vocabulary must have; a tokenizer trained for this objective gets them."""
        return ()

    def room(self, context: int, joined: bool) -> int:
        """Return the most positions that `context` tokens take; `joined`: in a decoder that reads sources too."""
        return context

    def task(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> Task:
        """Set the objective to work."""
        raise NotImplementedError

    def check(self, s: spec.Model) -> None:
        """Raise where the model cannot learn this way."""
        if s.sort not in self.sorts:
            raise TerakoyaError(
                f"objective {kind(self)}", "cannot train this model", given=s.sort, allowed=list(self.sorts)
            )
        if self.worded and s.head.scores != "words":
            problem = "names words, and this model has no head for them"
            raise TerakoyaError(f"objective {kind(self)}", problem, hint="model = bert/nano, say")
        if self.masks and s.sort != "encoder-decoder" and (deaf := heedless(s)):
            problem = "brings a mask of its own, which not all layers would heed"
            plain = "attention without windows, chunks, patterns, sinks or soft caps"
            raise TerakoyaError(f"objective {kind(self)}", problem, given=", ".join(deaf), allowed=plain)


def heedless(s: spec.Model) -> list[str]:
    """Return the kinds of layers that mix tokens by rules of their own, whatever mask a context brings."""
    mixers = [m for block in s.layers() for branch in block.branches for m in branch.mix]
    deaf = [m for m in mixers if not isinstance(m, spec.Latent | spec.MLP | spec.MoE | spec.GLU) and not _plain(m)]
    return list(dict.fromkeys(kind(m.reach if isinstance(m, spec.Attention) else m) for m in deaf))


def _plain(mixer: spec.Mixer) -> bool:
    if not isinstance(mixer, spec.Attention):
        return False
    return isinstance(mixer.reach, spec.Full) and not mixer.sinks and mixer.softcap is None


@dataclass(frozen=True)
class Causal(Plan):
    """Predict each token from those before it (GPT, Radford 2018)."""

    sorts: ClassVar[tuple[Sort, ...]] = ("decoder",)
    leftward: ClassVar[bool] = True

    def task(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> Task:
        return _Causal(tokenizer, seed)


class _Causal(Task):
    def arrange(self, batch: Batch, step: int) -> Batch:
        return batch

    def loss(self, model: Model, batch: Batch) -> Outcome:
        return causal(model, batch)


def rich(batch: Batch) -> Rich:
    """Return an arranged batch as what it is."""
    assert isinstance(batch, Rich)
    return batch
