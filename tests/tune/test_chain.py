"""One recipe of stages: examples, a reward model, PPO with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from terakoya.cli.main import main
from terakoya.errors import TerakoyaError
from terakoya.tune import chain
from terakoya.tune.methods import Ppo, Reward, Sft
from tests.tune.test_run import judged
from tests.tune.tune_fakes import folder, jsonl, lessons

RECIPE = Path(__file__).parents[2] / "recipes" / "tune-instructgpt.toml"


def test_stages_are_recipes_of_their_own(tmp_path: Path) -> None:
    stages = chain.load(RECIPE, tmp_path, ["seed=3", "sft.budget.steps=7", "ppo.method.beta=0.2"])
    assert [s.name for s in stages] == ["sft", "reward", "ppo"]
    assert [type(s.recipe.method) for s in stages] == [Sft, Reward, Ppo]
    assert [s.recipe.seed for s in stages] == [3, 3, 3]
    assert stages[0].recipe.budget.steps == 7
    assert stages[1].recipe.model == stages[2].recipe.model == str(tmp_path / "1-sft")
    plan = stages[2].recipe.method
    assert isinstance(plan, Ppo)
    assert (plan.reward, plan.beta) == (str(tmp_path / "2-reward"), 0.2)
    assert chain.is_chain(RECIPE)
    assert not chain.is_chain(RECIPE.with_name("tune-ja.toml"))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("stages = []", "stages"),
        ('stages = ["a", "a"]', "twice"),
        ('stages = ["a"]\na = 3', "must be a table"),
        ('stages = ["a", "b"]\nmodel = "x"\n[a]\n[b]\nmodel = "@c"', "allowed: @a"),
        ('stages = ["a"]\n[a]\nmodel = "@a"', "no stage stands before"),
        ('stages = ["a"]\n[a]\nmodl = "x"', "did you mean 'model'"),
    ],
)
def test_mistakes_are_named(text: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TerakoyaError, match=word):
        chain.load(path, tmp_path)


def test_the_whole_way_runs_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = folder(tmp_path / "base")
    pairs = jsonl(tmp_path / "pairs.jsonl", judged())
    changes = [
        "device=cpu", "show.count=1", "show.tokens=4", "data.holdout=0.2", f"sft.model={base}",
        f"sft.data.source={jsonl(tmp_path / 'a.jsonl', lessons())}", f"reward.data.source={pairs}",
        f"ppo.data.source={pairs}", "ppo.method.tokens=5", "rows.count=4", "rows.context=128", "budget.steps=2",
    ]  # fmt: skip
    run = tmp_path / "run"
    main(["tune", str(RECIPE), "--run", str(run), *changes])
    assert sorted(p.name for p in run.iterdir()) == ["1-sft", "2-reward", "3-ppo"]
    for name in ("1-sft", "2-reward", "3-ppo"):
        assert json.loads((run / name / "after.json").read_text(encoding="utf-8"))["scores"]
    row = json.loads((run / "3-ppo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert {"score", "kl", "entropy", "length"} <= row.keys()
    first = {p: p.read_bytes() for p in run.rglob("metrics.jsonl")}
    main(["tune", str(RECIPE), "--run", str(run), *changes])  # nothing is left to do, and nothing changes
    assert {p: p.read_bytes() for p in run.rglob("metrics.jsonl")} == first
    said = " ".join(capsys.readouterr().out.split())
    assert "stage 3 of 3: ppo" in said
    assert re.search(r"AdamW's states: [\d,]+ MiB; with every weight learning in fp32: [\d,]+ MiB", said)
    assert re.search(r"peak memory of this process: \d+\.\d GiB", said)
    assert (run / "3-ppo" / "curves.png").read_bytes().startswith(b"\x89PNG")
