"""Every recipe reads, and every method and its recipe run a few steps (the runs themselves: test_run)."""

from __future__ import annotations

from pathlib import Path

import pytest

from terakoya.tune.methods import Cpo, Ipo, Orpo, Simpo
from terakoya.tune.recipe import load
from terakoya.tune.run import Tuner
from tests.tune.test_run import judged, tuner
from tests.tune.tune_fakes import folder, jsonl, lessons

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("tune-*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_runs(path: Path, tmp_path: Path) -> None:
    base = folder(tmp_path / "base")
    asked = load(path)
    on_text = type(asked.method).__name__ in ("Sft", "Distil")
    changes = [f"model={base}", "budget.steps=2", "rows.count=2", "rows.context=128", "show.count=1", "show.tokens=4"]
    if asked.data.source.endswith(".jsonl"):
        changes.append(f"data.source={jsonl(tmp_path / 'rows.jsonl', lessons() if on_text else judged())}")
    if type(asked.method).__name__ == "Distil":
        changes.append(f"method.teacher={base}")
    made: Tuner = tuner(tmp_path / "run", load(path, changes))
    made.before()
    assert made.train()
    assert made.after()["scores"]


def test_methods_without_a_recipe_of_their_own_differ_by_a_word(tmp_path: Path) -> None:
    path = next(p for p in RECIPES if p.stem == "tune-dpo")
    for kind in (Ipo, Orpo, Simpo, Cpo):
        assert isinstance(load(path, [f"method={kind.__name__.lower()}"]).method, kind)
