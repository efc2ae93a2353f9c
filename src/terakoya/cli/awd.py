"""terakoya train and show, for recipes of AWD-LSTM."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from terakoya.cli import kept
from terakoya.models import open_model
from terakoya.train.awd import AwdRecipe, AwdTrainer, prepare
from terakoya.train.run import Run


def train(recipe: Path, overrides: list[str], folder: Path) -> None:
    """Train the language model to the end of the recipe, or on from where the run stands."""
    kept.fit(AwdRecipe, begun, recipe, overrides, folder)


def begun(run: Run, asked: AwdRecipe, say: Callable[[str], None]) -> AwdTrainer:
    """Open the model to go on from, where the run has none of its own yet."""
    fresh = asked.start is not None and run.checkpoints().latest() is None
    return prepare(run, asked, say, open_model(asked.start) if fresh and asked.start else None)


show = partial(kept.show, AwdRecipe)
