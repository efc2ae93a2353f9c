"""Several methods one after another, each from what the one before has made: SFT, a reward model, PPO (Ouyang 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terakoya import config
from terakoya.errors import TerakoyaError, nearest
from terakoya.tune.methods import Ppo
from terakoya.tune.recipe import Tune, assign

LIST = "stages"


@dataclass(frozen=True)
class Stage:
    """One run of a chain: its folder beside the others', and its recipe."""

    name: str
    folder: Path
    recipe: Tune


def is_chain(path: Path) -> bool:
    """Say whether a recipe file names stages."""
    return LIST in config.read_table(path)


def load(path: Path, folder: Path, assignments: Sequence[str] = ()) -> list[Stage]:
    """Read a recipe of stages, to be run below `folder`.

    `stages = ["sft", "ppo"]` names tables that are laid over what stands outside of them. `@sft` as a model is what
    stage sft made. An assignment that begins with a stage's name is for that stage, any other for all.
    """
    table = config.read_table(path)
    names = table.pop(LIST)
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n.isidentifier() for n in names):
        raise TerakoyaError(f"{path}: {LIST}", given=names, allowed="a list of names of tables")
    if len(set(names)) < len(names):
        raise TerakoyaError(f"{path}: {LIST}", "names a stage twice", given=names)
    own: dict[str, dict[str, Any]] = {}
    for name in names:
        own[name] = table.pop(name, {})
        if not isinstance(own[name], dict):
            raise TerakoyaError(f"{path}: {name}", "must be a table: a stage of this recipe", given=own[name])
    made: list[Stage] = []
    for number, name in enumerate(names, 1):
        known = {stage.name: stage.folder for stage in made}
        place = f"{path}: {name}"
        recipe = config.build(Tune, config.merge(table, own[name]), place=place)
        recipe = assign(recipe, _for(name, names, assignments))
        changes = {"model": _resolved(recipe.model, known, f"{place}.model")}
        if isinstance(recipe.method, Ppo):
            changes["method.reward"] = _resolved(recipe.method.reward, known, f"{place}.method.reward")
        made.append(Stage(name, folder / f"{number}-{name}", config.override(recipe, changes)))
    return made


def _for(name: str, names: Sequence[str], assignments: Sequence[str]) -> list[str]:
    """Return the assignments of one stage: its own, and those of all."""
    own = f"{name}."
    return [
        a.removeprefix(own) for a in assignments if a.startswith(own) or a.partition(".")[0] not in names
    ]  # fmt: skip


def _resolved(model: str, known: dict[str, Path], place: str) -> str:
    if not model.startswith("@"):
        return model
    if model[1:] not in known:
        hint = nearest(model[1:], known)
        raise TerakoyaError(place, given=model, allowed=[f"@{n}" for n in known] or "no stage stands before", hint=hint)
    return str(known[model[1:]])
