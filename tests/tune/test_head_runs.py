"""Every recipe of a head runs, resumes bit for bit, and what it leaves is opened by the one API."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from terakoya import understand
from terakoya.config import kind
from terakoya.errors import TerakoyaError
from terakoya.models import open_model
from terakoya.train.run import Run, read_lines
from terakoya.tune.heads.kinds import Embed, Translate
from terakoya.tune.heads.recipe import Fit, load
from terakoya.tune.heads.run import Fitter, prepare
from tests.train.run_fakes import everything
from tests.train.test_objective_recipes import run as pretrained
from tests.tune.test_heads import rows_of, written

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("head-*.toml"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory):
    @cache
    def made(name: str) -> Path:
        more = ["objective.sentinels=24"] if name == "t5-ja-nano" else []
        return pretrained(FOLDER / f"{name}.toml", tmp_path_factory.mktemp(name), "rows.context=60", *more).folder

    return made


def asked(path: Path, base, folder: Path, *more: str) -> Fit:
    plain = load(path)
    model = base("t5-ja-nano" if isinstance(plain.head, Translate) else "bert-ja-nano")
    rows = written(folder, rows_of(plain.head))
    small = ["budget.steps=4", "rows.count=4", "rows.context=60", "keep.save=2", "device=cpu", "data.heldout=none"]
    return load(path, [f"model={model}", f"data.source={rows}", *small, *more])


def begun(folder: Path, recipe: Fit) -> Fitter:
    return prepare(Run.create(folder, recipe), recipe, open_model(recipe.model))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_run_that_was_cut_in_two_is_the_run(path: Path, base, tmp_path: Path) -> None:
    recipe = asked(path, base, tmp_path)
    assert begun(tmp_path / "whole", recipe).train()
    first = begun(tmp_path / "parts", recipe)

    def stop(seen) -> None:
        first._stop = seen.step == 2

    assert not first.train(stop)
    second = begun(tmp_path / "parts", recipe)
    assert second.start == 2
    assert second.train()
    assert everything(tmp_path / "whole") == everything(tmp_path / "parts")
    last = list(read_lines(tmp_path / "whole" / "metrics.jsonl"))[-1]
    assert any(name.startswith("heldout_") for name in last)
    reading = understand.open(str(tmp_path / "whole"))
    assert reading.card is not None
    assert kind(reading.card.kind) == kind(recipe.head)
    if isinstance(recipe.head, Translate):
        assert len(understand.translate(reading, ["猫"], max_tokens=4)) == 1
    if isinstance(recipe.head, Embed):
        assert understand.embed(reading, ["猫", "犬"]).shape == (2, reading.model.spec.dim)


def test_a_probe_moves_the_head_alone(base, tmp_path: Path) -> None:
    recipe = asked(FOLDER / "head-jnli.toml", base, tmp_path, "probe=true")
    before = open_model(recipe.model).model.state_dict()
    fitter = begun(tmp_path / "run", recipe)
    head = fitter.model.get_submodule("extra").state_dict()
    start = {n: t.clone() for n, t in head.items()}
    assert fitter.train()
    after = understand.open(str(tmp_path / "run")).model.state_dict()
    assert all((after[n] == t).all() for n, t in before.items())
    assert any((head[n] != t).any() for n, t in start.items())


def test_where_no_layer_is_put_on_none_can_wake_the_others(base, tmp_path: Path) -> None:
    recipe = asked(FOLDER / "head-embed.toml", base, tmp_path, "gradual=true")
    with pytest.raises(TerakoyaError, match="gradual"):
        begun(tmp_path / "run", recipe)
