"""A run whose adapter cannot be merged, opened: the base it was trained on, with the adapter on it."""

from __future__ import annotations

from pathlib import Path

from terakoya.models import open_model
from terakoya.train.run import Run
from terakoya.tune import peft
from terakoya.tune.recipe import load
from terakoya.zoo.convert import Loaded


def opened(name: str) -> Loaded | None:
    """Open the run `name` as base and adapter; None where it is no run, or has a model of its own."""
    path = Path(name).expanduser()
    if not (path / "recipe.toml").is_file():
        return None
    last = Run.open(path).checkpoints().latest()
    if last is None or (last.path / "model").exists() or not (last.path / "adapter").exists():
        return None
    loaded = open_model(load(path / "recipe.toml").model)
    peft.load(loaded.model, loaded.family, last.path / "adapter")
    return loaded
