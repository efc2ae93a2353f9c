"""terakoya show, for recipes of `terakoya tune`; terakoya train says whose they are."""

from __future__ import annotations

from pathlib import Path

from terakoya import config
from terakoya.cli import show as screen
from terakoya.errors import TerakoyaError
from terakoya.tune import chain, recipe
from terakoya.tune.heads import recipe as heads


def train(file: Path, overrides: list[str], folder: Path) -> None:
    """Say which verb takes such a recipe."""
    raise TerakoyaError(str(file), "tunes a model that is there", hint=f"terakoya tune {file}")


def show(file: Path, overrides: list[str]) -> None:
    """Print a recipe as TOML; of a chain, that of each stage."""
    if "head" in config.read_table(file):
        _print(config.dump(heads.load(file, overrides)))
        return
    if not chain.is_chain(file):
        _print(config.dump(recipe.load(file, overrides)))
        return
    for stage in chain.load(file, Path("runs") / file.stem, overrides):
        _print(f"# {stage.name}\n{config.dump(stage.recipe)}")


def _print(text: str) -> None:
    screen.console.out(text.rstrip(), highlight=False)
