"""A recipe for post-training: a model by name, a method, examples, and what of the model learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from terakoya import config
from terakoya.errors import TerakoyaError
from terakoya.train.optim import AdamW, Optim
from terakoya.train.recipe import Keep, Rows
from terakoya.train.schedule import Cosine, Schedule
from terakoya.tune.formats import Format
from terakoya.tune.methods import Method, Sft
from terakoya.tune.plans import Adapter, Lora
from terakoya.tune.samples import Overlong


@dataclass(frozen=True)
class Data:
    """Where the examples come from, and what is done to them."""

    source: str = "examples.jsonl"  # a .jsonl(.zst) or .parquet file, or a folder of them; hf://datasets/OWNER/NAME
    format: Format | Literal["auto"] = "auto"  # auto: by the fields of the first row
    template: str | None = None  # chat template; none: the model's own
    overlong: Overlong = "error"
    holdout: float = 0.05  # share of the prompts never trained on
    limit: int | None = None  # rows read at most

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 1:
            raise TerakoyaError("data.holdout", given=self.holdout, allowed="a share between 0 and 1, both excluded")
        if self.limit is not None and self.limit < 2:
            raise TerakoyaError("data.limit", given=self.limit, allowed="2 or more")


@dataclass(frozen=True)
class Budget:
    """How long: `steps`, or `epochs` (passes over the examples)."""

    steps: int | None = None
    epochs: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            given = f"steps={self.steps}, epochs={self.epochs}"
            raise TerakoyaError("budget", f"needs either steps or epochs, not {given}", hint='or write steps = "none"')
        if self.steps is not None and self.steps < 1:
            raise TerakoyaError("budget.steps", given=self.steps, allowed="1 or more")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise TerakoyaError("budget.epochs", given=self.epochs, allowed="more than 0")

    def counted(self, steps_per_epoch: int) -> int:
        """Return the steps."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * steps_per_epoch))


@dataclass(frozen=True)
class Show:
    """Answers to held-out prompts, before and after, side by side."""

    count: int = 4
    tokens: int = 96

    def __post_init__(self) -> None:
        if self.count < 0 or self.tokens < 1:
            raise TerakoyaError("show", given=(self.count, self.tokens), allowed="count 0 or more, tokens 1 or more")


@dataclass(frozen=True)
class Tune:
    """Everything that decides a tuning run."""

    model: str = "smollm2-135m-instruct"  # as everywhere: a run, a folder, a .gguf file, a name
    method: Method = field(default_factory=Sft)
    data: Data = field(default_factory=Data)
    adapter: Adapter | None = field(default_factory=Lora)  # none: every weight learns
    quantise: Literal["none", "nf4", "int8"] = "none"  # how the frozen base is kept
    rows: Rows = field(default_factory=lambda: Rows(count=8, context=512))
    budget: Budget = field(default_factory=lambda: Budget(epochs=1.0))
    optim: Optim = field(default_factory=lambda: AdamW(lr=2e-4, betas=(0.9, 0.999), weight_decay=0.0))
    schedule: Schedule = field(default_factory=lambda: Cosine(warmup=0.05, final=0.1))
    clip: float | None = 1.0
    keep: Keep = field(default_factory=Keep)
    show: Show = field(default_factory=Show)
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    recompute: bool = False  # compute each block again going back: less memory, about a third more time
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise TerakoyaError("clip", given=self.clip, allowed="more than 0, or none")


def load(path: Path, assignments: Sequence[str] = ()) -> Tune:
    """Read a recipe file and lay `path=value` texts over it."""
    return assign(config.load_file(Tune, path), assignments)


def assign(recipe: Tune, assignments: Sequence[str]) -> Tune:
    """Apply `path=value` texts; `budget.epochs=2` replaces the steps, `method=dpo` and `adapter=none` whole tables."""
    for text in assignments:
        key, _, value = text.partition("=")
        if key in ("budget.steps", "budget.epochs"):
            blank = Budget(steps=1) if key == "budget.steps" else Budget(epochs=1.0)
            recipe = replace(recipe, budget=config.assign(blank, [text.removeprefix("budget.")]))
        elif key in ("method", "adapter", "optim", "schedule") and value != config.NOTHING:
            recipe = replace(recipe, **{key: config.build(config.hints(Tune)[key], {"kind": value}, key)})
        else:
            recipe = config.assign(recipe, [text])
    return recipe
