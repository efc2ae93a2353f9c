"""terakoya tune."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from terakoya import config, device
from terakoya.cli import show as screen
from terakoya.cli.folder import kept_if_whole
from terakoya.cli.train import RECIPES
from terakoya.errors import TerakoyaError, nearest
from terakoya.model.build import count
from terakoya.models import find, open_model
from terakoya.train.run import Run
from terakoya.tune import adapters, chain, recipe
from terakoya.tune.methods import Distil, Gkd, Ppo, Reward
from terakoya.tune.plans import Added
from terakoya.tune.recipe import Tune
from terakoya.tune.reward import open_reward
from terakoya.tune.run import Tuner, prepare
from terakoya.zoo.convert import Loaded


def tune(args: argparse.Namespace) -> None:
    """Tune a model by the recipe, or go on from where the run stands; then compare before and after."""
    path, folder = _found(args.recipe)
    if "head" in config.read_table(path):
        from terakoya.cli import head

        head.fit(path, folder, args.overrides, args.run)
        return
    folder = Path(args.run) if args.run else folder or Path("runs") / Path(args.recipe).stem
    if not chain.is_chain(path):
        _one(folder, recipe.load(path, args.overrides), f"terakoya tune {folder}")
        return
    stages = chain.load(path, folder, args.overrides)
    for number, stage in enumerate(stages, 1):
        screen.console.print(f"stage {number} of {len(stages)}: {stage.name}", style="bold")
        if not _one(stage.folder, stage.recipe, f"terakoya tune {args.recipe} --run {folder}"):
            return


def _one(folder: Path, asked: Tune, again: str) -> bool:
    """Run one recipe to its end; False where a signal ended it early."""
    tuner = start(folder, asked)
    _introduce(tuner)
    before = tuner.before()
    peak = device.measured_peak(tuner.place)
    with screen.progress(tuner.steps, tuner.start, peak) as watch:
        done = tuner.train(watch)
    if tuner.skipped:
        screen.console.print(f"{tuner.skipped} steps were skipped: loss or gradient not finite")
    if not done:
        screen.console.print(f"stopped; continue with: {again}", markup=False)
        return False
    compare(before, tuner.after())
    screen.console.print(f"peak memory of this process: {device.peak_memory(tuner.place) / 2**30:.1f} GiB")
    if drawn := screen.curves(folder / "metrics.jsonl", folder / "curves.png"):
        screen.console.print(drawn, markup=False)
    hint = "" if isinstance(asked.method, Reward) else f"; talk to it: terakoya chat {folder}"
    screen.console.print(f"everything is in {folder}{hint}", markup=False)
    return True


def start(folder: Path, asked: Tune) -> Tuner:
    """Open the model and the examples; a folder begun here goes away again where the recipe is at fault."""
    device.choose(asked.device, asked.precision)
    with kept_if_whole(folder):
        run = Run.create(folder, asked)
        return prepare(run, asked, open_model(asked.model), second(asked))


def second(asked: Tune) -> Loaded | None:
    """Open the model that a method names beside the one it trains: who teaches, or who judges."""
    match asked.method:
        case Distil(teacher) | Gkd(teacher):
            return open_model(teacher)
        case Ppo(reward):
            return open_reward(find(reward))
        case _:
            return None


def _introduce(tuner: Tuner) -> None:
    for note in tuner.work.notes:
        screen.console.print(note, markup=False)
    learns = sum(p.numel() for p in adapters.trained(tuner.model).values())
    whole = sum(p.numel() for p in tuner.model.parameters())
    screen.console.print(
        f"model: {tuner.recipe.model}, {whole / 1e6:.1f} M parameters, {learns / 1e6:.2f} M of them learn; "
        f"{tuner.steps:,} steps ({tuner.steps / tuner.work.steps_per_epoch:.1f} epochs); "
        f"{tuner.place.name} {tuner.place.precision}",
        markup=False,
    )
    held = sum(t.nbytes for t in (*tuner.model.parameters(), *tuner.model.buffers()))
    screen.console.print(
        f"weights, gradients and AdamW's states: {(held + 12 * learns) / 2**20:,.0f} MiB; "
        f"with every weight learning in fp32: {16 * count(tuner.loaded.spec) / 2**20:,.0f} MiB"
    )
    if isinstance(tuner.recipe.adapter, Added) and (left := adapters.passed_over(tuner.model)):
        screen.console.print(f"experts have no adapters: {left / 1e6:.1f} M parameters in them stay as they are")
    if tuner.start:
        screen.console.print(f"resumed at step {tuner.start:,}")


def compare(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print scores and answers, before and after."""
    rows = [[name, f"{value:.4f}", f"{after['scores'][name]:.4f}"] for name, value in before["scores"].items()]
    if before["answers"]:
        rows.append(["Japanese characters in answers", *(f"{_share(side):.0%}" for side in (before, after))])
    screen.table("before and after", ["", "before", "after"], rows)
    if (kl := after.get("merge_divergence")) is not None:
        screen.console.print(f"merging the adapter moves the model by {kl:.1e} nats a token (KL)")
    if "unmerged" in after:
        screen.console.print(f"the adapter {after['unmerged']}", markup=False)
    for old, new in zip(before["answers"], after["answers"], strict=True):
        for mark, text in (("?", old["prompt"]), ("before", old["answer"]), ("after", new["answer"])):
            screen.console.print(f"{mark:>6}: {' '.join(text.split())[:300]}", markup=False)
        screen.console.print()


def _share(side: dict[str, Any]) -> float:
    return sum(a["japanese"] for a in side["answers"]) / len(side["answers"])


def _found(name: str) -> tuple[Path, Path | None]:
    """Find a recipe by file, by name, or in a run's folder (then the folder is returned too)."""
    path = Path(name)
    if (path / "recipe.toml").is_file():
        return path / "recipe.toml", path
    if path.suffix == ".toml" or path.is_file():
        return path, None
    homes = reversed(RECIPES)
    known = {p.stem: p for home in homes for kind in ("tune", "head") for p in sorted(home.glob(f"{kind}-*.toml"))}
    for key in (name, f"tune-{name}", f"head-{name}"):
        if key in known:
            return known[key], None
    raise TerakoyaError(
        "recipe", "no such file, run or recipe", given=name, allowed=list(known) or "a .toml file",
        hint=nearest(name, known),
    )  # fmt: skip
