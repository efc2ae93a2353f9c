"""A recipe: what to do, as data. TOML with `extends`, and `path=value` on the command line, all through `override`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from terakoya import config
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.build import Init
from terakoya.train.objectives import Causal, Objective
from terakoya.train.optim import AdamW, Muon, Optim
from terakoya.train.schedule import Schedule, Stable
from terakoya.train.writers import Track
from terakoya.zoo import lineage


@dataclass(frozen=True)
class Corpus:
    """Where the text comes from."""

    source: str = "python-stdlib"  # or a path: folder, .txt, .jsonl(.zst), .parquet
    holdout: float = 0.02  # share of the documents never trained on
    limit: int | None = None  # bytes of text at most; None: all

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 1:
            raise TerakoyaError("corpus.holdout", given=self.holdout, allowed="a share between 0 and 1, both excluded")
        _least(1, "corpus", limit=self.limit)


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer: trained on the corpus, or loaded from `path`."""

    type: Literal["bpe", "unigram", "bytes", "chars"] = "bpe"
    size: int = 8192
    path: Path | None = None
    sample: int = 16_000_000  # bytes of text to train it on

    def __post_init__(self) -> None:
        _least(1, "tokenizer", size=self.size, sample=self.sample)


@dataclass(frozen=True)
class Rows:
    """The batch: `count` rows of `context` tokens a step, in `micro` parts whose gradients are summed."""

    count: int = 8
    context: int = 256
    micro: int = 1

    def __post_init__(self) -> None:
        _least(1, "rows", count=self.count, context=self.context, micro=self.micro)
        if self.micro > self.count:
            raise TerakoyaError("rows.micro", given=self.micro, allowed=f"at most rows.count={self.count}")


@dataclass(frozen=True)
class Budget:
    """How long: `steps`, or `minutes` of training measured on this machine and turned into steps at the start."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            given = f"steps={self.steps}, minutes={self.minutes}"
            raise TerakoyaError("budget", f"needs either steps or minutes, not {given}", hint='or write steps = "none"')
        _least(1, "budget", steps=self.steps)
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise TerakoyaError("budget.minutes", given=self.minutes, allowed="more than 0")


@dataclass(frozen=True)
class Keep:
    """Checkpoints and looks at the held-out text, in steps; 0: only at the end."""

    save: int = 0
    evaluate: int = 0
    count: int = 2  # checkpoints kept
    evaluate_bytes: int = 400_000  # held-out text scored at each look on the way; the last look scores all

    def __post_init__(self) -> None:
        _least(0, "keep", save=self.save, evaluate=self.evaluate)
        _least(1, "keep", count=self.count, evaluate_bytes=self.evaluate_bytes)


def _least(least: int, place: str, **given: int | None) -> None:
    for name, value in given.items():
        if value is not None and value < least:
            raise TerakoyaError(f"{place}.{name}", given=value, allowed=f"{least} or more")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run."""

    model: str | spec.Model = "smollm2/nano"  # family, family/size, family/scale, or a whole spec
    family: str = ""  # names the checkpoint's weights; empty: that of `model`
    depth: int | None = None  # the one dial: dim = 64 * depth, rates follow
    corpus: Corpus = field(default_factory=Corpus)
    tokenizer: Vocabulary = field(default_factory=Vocabulary)
    objective: Objective = field(default_factory=Causal)
    rows: Rows = field(default_factory=Rows)
    budget: Budget = field(default_factory=lambda: Budget(steps=1000))
    init: Init = field(default_factory=Init)
    optim: Optim = field(default_factory=Muon)
    schedule: Schedule = field(default_factory=Stable)
    clip: float | None = 1.0
    keep: Keep = field(default_factory=Keep)
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False  # of the blocks; losses agree with the plain ones to 1e-5 (test_compile.py)
    seed: int = 0
    track: tuple[Track, ...] = ()  # boards that show the metrics too

    def __post_init__(self) -> None:
        _least(1, "recipe", depth=self.depth)
        if self.clip is not None and not self.clip > 0:
            raise TerakoyaError("clip", given=self.clip, allowed="more than 0, or none")
        if self.objective.whole and self.rows.micro > 1:
            raise TerakoyaError(
                "rows.micro", "this objective compares all rows of a step", given=self.rows.micro, allowed=1
            )
        _least(self.objective.rows, "rows", count=self.rows.count)


def load(path: Path, assignments: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and lay `path=value` texts over it."""
    return assign(config.load_file(Recipe, path), assignments)


def assign(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """Apply `path=value` texts; `model.depth=6` opens a model given by name, `budget.minutes=2` replaces the steps."""
    for text in assignments:
        if text.startswith("budget.steps="):
            recipe = replace(recipe, budget=Budget(steps=1))
        if text.startswith("budget.minutes="):
            recipe = replace(recipe, budget=Budget(minutes=1))
        if text.startswith("model.") and isinstance(recipe.model, str):
            recipe = opened(recipe)
        recipe = config.assign(recipe, [text])
    return recipe


def opened(recipe: Recipe) -> Recipe:
    """Replace a model's name by its spec, remembering the family."""
    if not isinstance(recipe.model, str):
        return recipe
    family = recipe.family or recipe.model.partition("/")[0]
    return replace(recipe, model=lineage.sized(recipe.model), family=family)


def resolve(recipe: Recipe, vocab: int) -> Recipe:
    """Derive every number that follows from others: the spec at this vocabulary and context, rates from the dial."""
    recipe = opened(recipe)
    s = recipe.model
    assert isinstance(s, spec.Model)
    if not recipe.family:
        raise TerakoyaError("family", "a model given as a table must name the family that says where weights are kept")
    lineage.family(recipe.family)
    if recipe.depth is not None:
        dim = 64 * recipe.depth
        s = lineage.rescale(s, dim, recipe.depth, min(64, dim))
        recipe = replace(recipe, optim=_rates_for(recipe.optim, dim), depth=None)
    context = recipe.objective.room(max(recipe.rows.context, 1), s.encoder is None)
    encoder = s.encoder and replace(s.encoder, vocab=vocab, context=context)
    s = replace(s, vocab=vocab, context=context, encoder=encoder)
    recipe.objective.check(s)
    return replace(recipe, model=s)


def _rates_for(optim: Optim, dim: int) -> Optim:
    """Scale AdamW's rates with 1 / sqrt(width), from the width 256 they were tuned at; Muon's need no change."""
    gain = (256 / dim) ** 0.5
    match optim:
        case AdamW():
            return replace(optim, lr=optim.lr * gain)
        case Muon():
            return replace(optim, embed_lr=optim.embed_lr * gain, head_lr=optim.head_lr * gain)
