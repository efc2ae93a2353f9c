"""terakoya train and show, for recipes that count n-grams."""

from __future__ import annotations

from pathlib import Path

from terakoya import config
from terakoya.cli import show as screen
from terakoya.cli.folder import kept_if_whole
from terakoya.ngram import run as counting
from terakoya.train.run import Run


def train(recipe: Path, overrides: list[str], folder: Path) -> None:
    """Count the corpus, or look at what is counted already."""
    asked = counting.load(recipe, overrides)
    with kept_if_whole(folder):
        counting.train(Run.create(folder, asked), asked, lambda text: screen.console.print(text, markup=False))
    screen.console.print(f"everything is in {folder}", markup=False)


def show(recipe: Path, overrides: list[str]) -> None:
    """Print the recipe as TOML."""
    screen.console.out(config.dump(counting.load(recipe, overrides)).rstrip(), highlight=False)
