"""A recipe for a head: a model by name, what is to be said, examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from terakoya import config
from terakoya.errors import TerakoyaError
from terakoya.train.optim import AdamW, Optim
from terakoya.train.recipe import Keep, Rows
from terakoya.train.schedule import Cosine, Schedule
from terakoya.tune.heads.kinds import Classify, Kind
from terakoya.tune.heads.work import Source
from terakoya.tune.recipe import Budget


@dataclass(frozen=True)
class Fit:
    """Everything that decides the training of a head."""

    model: str = "runs/bert-ja-nano"  # as everywhere: a run, a folder, a name
    head: Kind = field(default_factory=Classify)
    data: Source = field(default_factory=Source)
    probe: bool = False  # True: the model stays as it is and only the head learns (a linear probe)
    gradual: bool = False  # True: at first only the head learns, then a layer more at each epoch, from the top
    decay: float = 1.0  # the rate is divided by it from each layer to the one below (2.6: Howard and Ruder 2018)
    rows: Rows = field(default_factory=lambda: Rows(count=16, context=128))  # count: examples of a step
    budget: Budget = field(default_factory=lambda: Budget(epochs=3.0))
    optim: Optim = field(default_factory=lambda: AdamW(lr=3e-4, betas=(0.9, 0.999), weight_decay=0.01))
    schedule: Schedule = field(default_factory=lambda: Cosine(warmup=0.1, final=0.0))
    clip: float | None = 1.0
    keep: Keep = field(default_factory=Keep)
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise TerakoyaError("clip", given=self.clip, allowed="more than 0, or none")
        if self.probe and (self.gradual or self.decay != 1):
            raise TerakoyaError("probe", "leaves the layers as they are", hint="leave out gradual and decay")
        if self.rows.micro > 1 and getattr(self.head, "loss", "") == "contrast":
            raise TerakoyaError(
                "rows.micro", "a contrast compares all rows of a step", given=self.rows.micro, allowed=1
            )


def load(path: Path, assignments: Sequence[str] = ()) -> Fit:
    """Read a recipe file and lay `path=value` texts over it."""
    recipe = config.load_file(Fit, path)
    for text in assignments:
        if text.startswith(("budget.steps=", "budget.epochs=")):
            blank = Budget(steps=1) if text.startswith("budget.steps=") else Budget(epochs=1.0)
            recipe = replace(recipe, budget=config.assign(blank, [text.removeprefix("budget.")]))
        else:
            recipe = config.assign(recipe, [text])
    return recipe
