"""terakoya train, terakoya show."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from types import ModuleType

from terakoya import config, device
from terakoya.cli import show as screen
from terakoya.cli.folder import kept_if_whole
from terakoya.errors import TerakoyaError, nearest
from terakoya.model.build import build
from terakoya.models import open_model
from terakoya.train import loop, prepare, recipe, writers
from terakoya.train.objectives.taught import Distil
from terakoya.train.recipe import Recipe
from terakoya.train.run import Run

# The reader's own folder first, then those that came with the package: beside the code in a wheel, above it in a clone.
RECIPES = (Path("recipes"), Path(__file__).parents[1] / "recipes", Path(__file__).parents[3] / "recipes")


# Recipes of another kind than a network's, by the key that only they have: the module here that knows them.
OTHERS = {"ngram": "ngram", "pairs": "translate", "elmo": "elmo", "awd": "awd", "captions": "clip"}
OTHERS |= dict.fromkeys(("head", "method", "stages"), "tuned")


def train(args: argparse.Namespace) -> None:
    """Train to the end of the recipe, or on from where the run stands."""
    file, folder = _file(args.recipe)
    folder = Path(args.run) if args.run else folder or Path("runs") / Path(args.recipe).stem
    if other := _other(file):
        other.train(file, args.overrides, folder)
        return
    asked = recipe.load(file, args.overrides)
    if not fit(folder, asked):
        screen.console.print(f"stopped; continue with: terakoya train {folder}", markup=False)


def start(folder: Path, asked: Recipe) -> loop.Trainer:
    """Prepare text, tokenizer and model; a folder begun here goes away again where the recipe is at fault."""
    device.choose(asked.device, asked.precision)
    writers.check(asked.track)
    likely = recipe.resolve(asked, asked.tokenizer.size)  # tell mistakes before minutes of work
    assert not isinstance(likely.model, str)
    build(likely.model, device="meta")
    with kept_if_whole(folder):
        run = Run.create(folder, asked)
        teacher = open_model(asked.objective.teacher) if isinstance(asked.objective, Distil) else None
        prepare.prepare_data(run, asked, screen.console.print)
        trainer = loop.prepare(run, asked, teacher)
        trainer.loader.batch(trainer.start)  # a text shorter than a row is told here, not after the first words
        return trainer


def fit(folder: Path, asked: Recipe) -> bool:
    """Prepare and train a run, with a bar; False where a signal ended it early."""
    trainer = start(folder, asked)
    resolved = trainer.recipe
    assert not isinstance(resolved.model, str)
    peak = device.measured_peak(trainer.place)
    count = sum(p.numel() for p in trainer.model.parameters())
    screen.console.print(
        f"model: {resolved.family}, {count / 1e6:.1f} M parameters, "
        f"{resolved.model.depth} layers of {resolved.model.dim}; "
        f"{trainer.steps:,} steps of {resolved.rows.count * resolved.rows.context:,} tokens "
        f"({trainer.steps / trainer.loader.steps_per_epoch:.1f} epochs); {trainer.place.name} "
        f"{trainer.place.precision}, measured peak {peak / 1e9:,.0f} GFLOP/s"
    )
    if trainer.start:
        screen.console.print(f"resumed at step {trainer.start:,}")
    with screen.progress(trainer.steps, trainer.start, peak) as watch:
        done = trainer.train(watch)
    if trainer.skipped:
        screen.console.print(f"{trainer.skipped} steps were skipped: loss or gradient not finite")
    screen.console.print(f"everything is in {folder}", markup=False)
    return done


def show(args: argparse.Namespace) -> None:
    """Print the resolved recipe as TOML; its keys are the documentation."""
    file, folder = _file(args.recipe)
    if other := _other(file):
        other.show(file, args.overrides)
        return
    asked = recipe.load(file, args.overrides)
    if folder is not None and (folder / "resolved.toml").exists() and not args.overrides:
        asked = config.load_file(Recipe, folder / "resolved.toml")
    else:
        asked = recipe.resolve(asked, asked.tokenizer.size)
    screen.console.out(config.dump(asked).rstrip(), highlight=False)


def _other(file: Path) -> ModuleType | None:
    """Return the module for a recipe of another kind, None for a network's."""
    table = config.read_table(file)
    return next((import_module(f"terakoya.cli.{module}") for key, module in OTHERS.items() if key in table), None)


def _file(name: str) -> tuple[Path, Path | None]:
    """Find a recipe by file, by name, or in a run's folder (then the folder is returned too)."""
    path = Path(name)
    if (path / "recipe.toml").is_file():
        return path / "recipe.toml", path
    if path.suffix == ".toml" or path.is_file():
        return path, None
    known = {p.stem: p for home in reversed(RECIPES) for p in sorted(home.glob("*.toml"))}
    if name in known:
        return known[name], None
    raise TerakoyaError(
        "recipe",
        "no such file, run or recipe",
        given=name,
        allowed=list(known) or "a .toml file",
        hint=nearest(name, known),
    )
