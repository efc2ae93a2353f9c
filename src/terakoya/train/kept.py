"""Checkpoints of networks that have no words in Hugging Face's formats: their own names, and a config.json of ours."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from terakoya import config
from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer, train
from terakoya.train.checkpoint import Checkpoint
from terakoya.train.loop import Loop
from terakoya.train.recipe import Keep, Vocabulary
from terakoya.train.run import Run
from terakoya.train.schedule import Cosine, Schedule
from terakoya.zoo.convert import read_json
from terakoya.zoo.weights import open_weights

CONFIG = "config.json"
P = TypeVar("P")
M = TypeVar("M", bound=Model)


@dataclass(frozen=True)
class Steps:
    """How long: always counted in steps."""

    steps: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise TerakoyaError("budget.steps", given=self.steps, allowed="1 or more")


@dataclass(frozen=True, kw_only=True)
class KeptRecipe:
    """What the recipes of such networks have in common."""

    budget: Steps = field(default_factory=Steps)
    schedule: Schedule = field(default_factory=Cosine)
    clip: float | None = 1.0
    keep: Keep = field(default_factory=Keep)
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise TerakoyaError("clip", given=self.clip, allowed="more than 0, or none")

    @property
    def compile(self) -> bool:
        return False


R = TypeVar("R", bound=KeptRecipe)


@dataclass(kw_only=True)
class Kept(Loop, Generic[R]):
    """A run whose model is saved as it is: weights, settings, tokenizer, optimiser."""

    recipe: R
    tokenizer: Tokenizer

    @property
    def plan(self) -> R:
        return self.recipe

    @property
    def steps(self) -> int:
        return self.recipe.budget.steps

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the data and its order."""

    @property
    def network(self) -> nn.Module:
        """What is saved: the model, or a module around it by whose names it will be opened."""
        return self.model

    @abstractmethod
    def said(self) -> dict[str, Any]:
        """Return what config.json says: `model_type`, and all that is needed to build the network."""

    def save(self, done: int) -> Path:
        """Write a checkpoint of `done` steps."""
        extra = {f"model/{CONFIG}": written(self.said())}
        extra |= {f"model/{p.name}": p.read_bytes() for p in sorted(self.run.tokenizer.iterdir()) if p.is_file()}
        tensors = {
            "model/model": {n: t.contiguous().cpu() for n, t in self.network.state_dict().items()},
            "optimizer": {n: t.cpu() for n, t in self.optimizer.state().items()},
        }
        meta = {"step": done, "skipped": self.skipped, "data": self.fingerprint}
        checkpoints = self.run.checkpoints(self.plan.keep.count)
        path = checkpoints.save(done, tensors, meta, extra)
        checkpoints.prune()
        return path

    def resume(self) -> None:
        """Continue from the newest checkpoint of this run, where there is one."""
        checkpoint = self.run.checkpoints(self.plan.keep.count).latest()
        if checkpoint is None:
            return
        if checkpoint.meta.get("data") != self.fingerprint:
            raise TerakoyaError(str(checkpoint.path), "was trained on other data or in another order")
        self.network.load_state_dict(checkpoint.tensors("model/model"))
        self.optimizer.load(checkpoint.tensors("optimizer"))
        self.start = checkpoint.step
        skipped = checkpoint.meta.get("skipped", 0)
        self.skipped = skipped if isinstance(skipped, int) else 0


def vocabulary(run: Run, plan: Vocabulary, texts: Iterable[str]) -> Tokenizer:
    """Return the run's tokenizer; learn it from the texts, or load it, where there is none yet."""
    if not run.tokenizer.exists():
        made = Tokenizer.load(plan.path) if plan.path else train(texts, plan.type, plan.size)
        made.save(run.tokenizer)
    return Tokenizer.load(run.tokenizer)


def written(said: dict[str, Any]) -> bytes:
    """Return the contents of config.json."""
    return (json.dumps(said, indent=2) + "\n").encode()


def newest(folder: Path, kind: str, recipe: str) -> tuple[Checkpoint, dict[str, Any]]:
    """Return the newest checkpoint of a run of this kind, and what its config.json says beside `model_type`."""
    checkpoint = Run.open(folder).checkpoints().latest()
    if checkpoint is None:
        raise TerakoyaError(str(folder), "is a run without a checkpoint yet", hint=f"terakoya train {folder}")
    told = read_json(checkpoint.path / "model" / CONFIG)
    if told.pop("model_type", None) != kind:
        raise TerakoyaError(str(folder), f"is no run of {kind}", hint=f"train one: terakoya train {recipe}")
    return checkpoint, told


def reopened(folder: Path, plan: type[P], build: Callable[[P, Tokenizer], M]) -> tuple[M, Tokenizer]:
    """Read a model's folder: settings, tokenizer, weights."""
    told, tokenizer = read_json(folder / CONFIG), Tokenizer.load(folder)
    told.pop("model_type", None)
    if (vocab := told.pop("vocab_size", None)) != tokenizer.vocab_size:
        allowed = f"the tokenizer's {tokenizer.vocab_size}"
        raise TerakoyaError(f"{folder / CONFIG}: vocab_size", given=vocab, allowed=allowed)
    model = build(config.build(plan, told, place=str(folder / CONFIG)), tokenizer)
    weights = open_weights(folder)
    restore(model, {name: weights.get(name) for name in weights}, str(folder))
    return model, tokenizer


def restore(model: Model, weights: Mapping[str, Tensor], place: str) -> None:
    """Copy in what `save`, or a task's run, has kept; a mixture that no task has learnt yet may be missing."""
    own = model.state_dict()
    lost = sorted(n for n in own if n not in weights and not n.startswith("mix."))
    strange = sorted(n for n in weights if n not in own or weights[n].shape != own[n].shape)
    if lost or strange:
        given = ", ".join((lost + strange)[:4])
        raise TerakoyaError(place, "holds other weights than its config.json says", given=given)
    model.load_state_dict(own | dict(weights))
