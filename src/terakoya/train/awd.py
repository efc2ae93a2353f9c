"""Train an AWD-LSTM on a text, or go on from one on a task's text (ULMFiT's second stage); keep and open it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from terakoya import config, device
from terakoya.data import Loader, Shards
from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.awd import AwdLstm, AwdPlan
from terakoya.model.build import Init, initialise
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.kept import Kept, KeptRecipe, reopened
from terakoya.train.loop import evaluate
from terakoya.train.ntasgd import Averaged, NtAsgd
from terakoya.train.optim import AdamW, Muon, Optimizer, Stepping
from terakoya.train.prepare import prepare_data
from terakoya.train.recipe import Corpus, Recipe, Rows, Vocabulary
from terakoya.train.run import Run
from terakoya.train.schedule import Schedule, Slanted
from terakoya.train.step import Objective, Stepped
from terakoya.train.ulmfit import awd, by_layer
from terakoya.zoo.convert import Loaded

MODEL_TYPE = "awd"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AwdRecipe(KeptRecipe):
    """Everything that decides a run."""

    awd: AwdPlan = field(default_factory=AwdPlan)
    start: str | None = None  # a run or folder: the AWD-LSTM to go on from, with its tokenizer
    corpus: Corpus = field(default_factory=Corpus)
    tokenizer: Vocabulary = field(default_factory=Vocabulary)
    rows: Rows = field(default_factory=lambda: Rows(count=32, context=64))
    init: Init = field(default_factory=lambda: Init(std=0.05))
    optim: AdamW | Muon | NtAsgd = field(default_factory=lambda: AdamW(lr=4e-3, weight_decay=0.0))
    decay: float = 1.0  # the rate is divided by it from each layer to the one below (2.6: Howard and Ruder 2018)
    schedule: Schedule = field(default_factory=Slanted)
    ar: float = 2.0  # penalty on the top states' size,
    tar: float = 1.0  # and on their change along time
    clip: float | None = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ar", "tar"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TerakoyaError(name, given=getattr(self, name), allowed="0 or more")


@dataclass(kw_only=True)
class AwdTrainer(Kept[AwdRecipe]):
    """A run of the language model. With NT-ASGD the averages are what is scored and saved."""

    loader: Loader
    heldout: Shards

    @property
    def network(self) -> AwdLstm:
        assert isinstance(self.model, AwdLstm)
        return self.model

    @property
    def fingerprint(self) -> str:
        return self.loader.fingerprint

    def batches(self, step: int) -> Sequence[Batch]:
        self.network.noise.begin(self.recipe.seed, step)
        return self.loader.batch(step).split(self.recipe.rows.micro)

    def look(self, limit: int | None) -> dict[str, float]:
        self.network.noise.end()
        with self._averages():
            bits = evaluate(self.model, self.heldout, self.recipe.rows, self.place, limit)
        return {"heldout_bits_per_byte": bits}

    def row(self, done: int, result: Stepped, micros: Sequence[Batch]) -> dict[str, Any]:
        nats, size = result.metrics["nats"] * result.weight, sum(m.bytes for m in micros)
        tokens = done * self.recipe.rows.count * self.recipe.rows.context
        return {"loss": result.loss, "bits_per_byte": nats / math.log(2) / max(size, 1), "tokens": tokens}

    def said(self) -> dict[str, Any]:
        return said(self.network)

    def save(self, done: int) -> Path:
        with self._averages():  # then the weights stand where the averages do, in the optimiser's state
            return super().save(done)

    def resume(self) -> None:
        super().resume()
        if isinstance(self.optimizer, Averaged):
            self.optimizer.swap()

    def _step(self, forward: Objective, micros: Sequence[Batch], rate: float) -> Stepped:
        result = super()._step(forward, micros, rate)
        return replace(result, metrics={k: v / (result.weight or 1.0) for k, v in result.metrics.items()})

    def _look(self, done: int, row: dict[str, Any]) -> float | None:
        found = super()._look(done, row)
        if found is not None and isinstance(self.optimizer, Averaged):
            self.optimizer.observe(found)
            row["averaging"] = self.optimizer.averaging
        return found

    @contextmanager
    def _averages(self) -> Iterator[None]:
        if not isinstance(self.optimizer, Averaged):
            yield
            return
        with self.optimizer.on_average():
            yield


def prepare(
    run: Run, recipe: AwdRecipe, say: Callable[[str], None] = log.info, start: Loaded | None = None
) -> AwdTrainer:
    """Make tokenizer and shards where they are missing, and build or resume the model.

    `start` is the model that the recipe names, where it names one and the run has no checkpoint yet.
    """
    device.keep_memory()
    place = device.choose(recipe.device, "fp32")
    if isinstance(recipe.optim, NtAsgd) and not recipe.keep.evaluate:
        raise TerakoyaError("keep.evaluate", "NT-ASGD goes by these looks", given=0, allowed="1 or more steps")
    resumes = run.checkpoints().latest() is not None
    base = None if recipe.start is None or resumes else based(recipe, start)
    if base is not None and not run.tokenizer.exists():
        base[1].save(run.tokenizer)
    text = Recipe(corpus=recipe.corpus, tokenizer=recipe.tokenizer, rows=recipe.rows, seed=recipe.seed)
    tokenizer = prepare_data(run, text, say)
    train = Shards.open(run.train, tokenizer.hash(), verify=True)
    heldout = Shards.open(run.heldout, tokenizer.hash(), verify=True)
    model = initialise(AwdLstm(recipe.awd, tokenizer.vocab_size), recipe.seed, recipe.init).to(place.name)
    if base is not None:
        model.load_state_dict(base[0].state_dict())
    made = AwdTrainer(
        run=run, recipe=recipe, model=model, optimizer=_optimizer(model, recipe), place=place,
        loader=Loader(train, rows=recipe.rows.count, context=recipe.rows.context, seed=recipe.seed),
        heldout=heldout, tokenizer=tokenizer, objective=partial(awd, ar=recipe.ar, tar=recipe.tar),
    )  # fmt: skip
    made.resume()
    return made


def based(recipe: AwdRecipe, start: Loaded | None) -> tuple[AwdLstm, Tokenizer]:
    """Return the model that a recipe goes on from, and its tokenizer; an error where they do not fit the recipe."""
    if start is None:
        raise TerakoyaError("start", "must be opened first", given=recipe.start)
    if not isinstance(start.model, AwdLstm) or start.tokenizer is None:
        raise TerakoyaError("start", "is no AWD-LSTM", given=recipe.start, hint="train recipes/awd-ja-nano.toml first")
    if recipe.tokenizer != Vocabulary():
        raise TerakoyaError("tokenizer", "is that of `start`; leave this table out")
    if recipe.init != AwdRecipe().init:
        raise TerakoyaError("init", "is for a model from nothing; leave this table out where there is a `start`")
    sizes = replace(start.model.plan, drops=recipe.awd.drops)
    if other := config.diff(sizes, recipe.awd, "awd"):
        name, (its, given) = next(iter(other.items()))
        raise TerakoyaError(name, "is not that of `start`", given=given, allowed=its)
    return start.model, start.tokenizer


def _optimizer(model: Model, recipe: AwdRecipe) -> Stepping:
    gains = by_layer(model, recipe.optim, recipe.decay)
    if isinstance(recipe.optim, NtAsgd):
        return Averaged(model, recipe.optim)
    return Optimizer(model, recipe.optim, gains)


def said(model: AwdLstm) -> dict[str, Any]:
    """Return what config.json says."""
    return {"model_type": MODEL_TYPE, "vocab_size": model.spec.vocab, **asdict(model.plan)}


def open_awd(folder: Path) -> tuple[AwdLstm, Tokenizer]:
    """Read a model and its tokenizer."""
    return reopened(folder, AwdPlan, lambda plan, tokenizer: AwdLstm(plan, tokenizer.vocab_size))
