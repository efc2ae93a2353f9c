"""terakoya train and show, for recipes of ELMo."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from terakoya.cli import kept
from terakoya.train.elmo import ElmoRecipe, prepare


def train(recipe: Path, overrides: list[str], folder: Path) -> None:
    """Train both language models to the end of the recipe, or on from where the run stands."""
    kept.fit(ElmoRecipe, prepare, recipe, overrides, folder)


show = partial(kept.show, ElmoRecipe)
