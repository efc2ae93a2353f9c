"""Every recipe of an objective runs a few steps on a small text."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from terakoya.models import open_model
from terakoya.train.loop import prepare
from terakoya.train.objectives import Causal, Distil, Objective
from terakoya.train.prepare import prepare_data
from terakoya.train.recipe import load
from terakoya.train.run import Run, read_lines
from tests.train.run_fakes import corpus, silent

OTHERS = ("tune-", "head-", "ngram", "translate", "elmo", "awd", "clip")
FOUND = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
PATHS = [p for p in FOUND if not p.name.startswith(OTHERS)]
SMALL = (
    "tokenizer.type=bpe", "tokenizer.size=460", "rows.count=4", "rows.context=24", "budget.steps=2", "keep.evaluate=0",
    "corpus.holdout=0.1", "device=cpu",
)  # fmt: skip


def objectives() -> list[Path]:
    return [p for p in PATHS if not isinstance(load(p).objective, Causal)]


def run(path: Path, folder: Path, *more: str) -> Run:
    source = corpus(folder / "texts")
    recipe = load(path, [*SMALL, f"corpus.source={source}", *more])
    made = Run.create(folder / "run", recipe)
    prepare_data(made, recipe, silent)
    teacher = open_model(recipe.objective.teacher) if isinstance(recipe.objective, Distil) else None
    assert prepare(made, recipe, teacher).train()
    return made


@pytest.mark.parametrize("path", objectives(), ids=lambda p: p.stem)
def test_a_recipe_runs_and_its_model_opens(path: Path, tmp_path: Path) -> None:
    more: list[str] = []
    if path.stem in ("t5-ja-nano", "ul2-ja-nano"):
        more.append("objective.sentinels=24")
    if path.stem == "distil-ja-nano":
        teacher = run(path.with_name("bert-ja-nano.toml"), tmp_path / "teacher")
        more = [f"objective.teacher={teacher.folder}", f"tokenizer.path={teacher.tokenizer}"]
    made = run(path, tmp_path, *more)
    rows = list(read_lines(made.folder / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[-1]["heldout_loss"] > 0
    loaded = open_model(str(made.folder))
    assert loaded.tokenizer is not None
    assert loaded.spec.vocab == loaded.tokenizer.vocab_size


def test_every_objective_has_a_recipe() -> None:
    kinds = {type(load(p).objective).__name__.lower() for p in PATHS}
    members = {member.__name__.lower() for member in get_args(Objective)}
    assert kinds == members
