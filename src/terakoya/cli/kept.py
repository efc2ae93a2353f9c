"""train and show, for the kinds of recipes whose runs are kept under their own names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from terakoya import config
from terakoya.cli import show as screen
from terakoya.cli.folder import kept_if_whole
from terakoya.train.kept import Kept
from terakoya.train.run import Run

R = TypeVar("R")
K = TypeVar("K", bound=Kept)


def fit(
    kind: type[R],
    prepare: Callable[[Run, R, Callable[[str], None]], K],
    recipe: Path,
    overrides: list[str],
    folder: Path,
) -> K | None:
    """Train to the end of a recipe, or on from where the run stands; None where a signal ended it early."""
    asked = read(kind, recipe, overrides)
    with kept_if_whole(folder):
        made = prepare(Run.create(folder, asked), asked, lambda text: screen.console.print(text, markup=False))
    count = sum(p.numel() for p in made.model.parameters())
    screen.console.print(f"model: {made.said()['model_type']}, {count / 1e6:.1f} M parameters; {made.steps:,} steps")
    with screen.progress(made.steps, made.start, 1.0) as watch:
        done = made.train(watch)
    said = f"everything is in {folder}" if done else f"stopped; continue: terakoya train {folder}"
    screen.console.print(said, markup=False)
    return made if done else None


def show(kind: type[R], recipe: Path, overrides: list[str]) -> None:
    """Print a recipe as TOML."""
    screen.console.out(config.dump(read(kind, recipe, overrides)).rstrip(), highlight=False)


def read(kind: type[R], recipe: Path, overrides: list[str]) -> R:
    """Read a recipe and lay `path=value` texts over it."""
    return config.assign(config.load_file(kind, recipe), overrides)
