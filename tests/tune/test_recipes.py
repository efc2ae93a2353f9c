"""Every recipe reads, and every method and its recipe run a few steps (the runs themselves: test_run)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from terakoya import sandbox
from terakoya.tune import distil
from terakoya.tune.chain import is_chain
from terakoya.tune.checks import Tests
from terakoya.tune.methods import Distil, Gkd, Grpo, Method, Ppo, Sft
from terakoya.tune.plans import Bias
from terakoya.tune.recipe import load
from terakoya.tune.rollout import Rollout
from terakoya.tune.run import Tuner
from terakoya.zoo import convert
from tests.tune.test_run import judge, judged, tuner
from tests.tune.tune_fakes import folder, jsonl, lessons, tokenizer
from tests.tune.tune_fakes import small as small_model

EVERY = sorted((Path(__file__).parents[2] / "recipes").glob("tune-*.toml"))
ENDED = Rollout((1,), (0.0,), "はい。", True)
RECIPES = [p for p in EVERY if not is_chain(p)]  # those of stages: test_chain


def rows_for(plan: Method, form: str) -> list[dict[str, Any]]:
    """A few rows of the kind that a method learns from."""
    if isinstance(plan, Grpo):
        tests = "assert one() == 1"
        return [{"question": f"{i}?", "answer": f"so\n#### {i}", "tests": tests} for i in range(12)]
    if form == "text":
        return [{"text": f"{i}は寺子屋。" * 9} for i in range(12)]
    return lessons() if isinstance(plan, Sft | Distil | Gkd) else judged()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = folder(tmp_path / "base")
    asked = load(path)
    plan = asked.method
    if isinstance(asked.adapter, Bias):  # the model that the others learn on has none
        convert.save(convert.Loaded(small_model(family="qwen2"), tokenizer(), "qwen2"), base)
    if isinstance(plan, Distil) and plan.words == "teacher":  # a model that knows nothing ends no answer
        monkeypatch.setattr(distil, "drawn", lambda model, tok, asked, *_, **__: [[ENDED]] * len(asked))
    if isinstance(plan, Grpo) and any(isinstance(c, Tests) for c in plan.checks) and sandbox.missing():
        pytest.skip(f"no sandbox here: {sandbox.missing()}")
    small = "budget.steps=2 rows.micro=1 rows.count=2 rows.context=128 show.count=1 show.tokens=4"
    changes = [f"model={base}", *small.split()]
    if asked.data.source.endswith(".jsonl"):
        changes.append(f"data.source={jsonl(tmp_path / 'rows.jsonl', rows_for(plan, asked.data.format))}")
    if isinstance(plan, Distil | Gkd):
        changes.append(f"method.teacher={base}")
    if isinstance(plan, Ppo):
        changes.append(f"method.reward={judge(tmp_path)}")
    if isinstance(plan, Distil | Gkd | Grpo | Ppo):
        changes.append("method.tokens=6")
    made: Tuner = tuner(tmp_path / "run", load(path, changes))
    made.before()
    assert made.train()
    assert made.after()["scores"]
