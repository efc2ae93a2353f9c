"""fill, embed, classify, eval and translate as their user types them, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from terakoya.cli.main import main
from terakoya.tune.heads.kinds import Classify
from tests.train.test_objective_recipes import run as pretrained
from tests.tune.test_heads import rows_of, written

FOLDER = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(FOLDER / "bert-ja-nano.toml", tmp_path_factory.mktemp("bert"), "rows.context=60").folder


def said(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    main([str(w) for w in words])
    return capfd.readouterr().out


def wrong(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as end:
        main([str(w) for w in words])
    assert end.value.code == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_fill(bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "probability" in said(capfd, "fill", bert, "今日は[MASK]です", "--top", 3)
    assert "no gap to fill" in wrong(capfd, "fill", bert, "今日は")
    assert "--top" in wrong(capfd, "fill", bert, "[MASK]", "--top", 0)


def test_embed(bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in said(capfd, "embed", bert, "猫", "👩🏽‍🏫").splitlines()]
    assert [row["text"] for row in rows] == ["猫", "👩🏽‍🏫"]
    assert all(len(row["vector"]) == 128 for row in rows)
    assert "cosine" in said(capfd, "embed", bert, "猫", "犬", "--near")


def test_eval_flags_what_is_no_likelihood(bert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text("いろは", encoding="utf-8")
    shown = said(capfd, "eval", bert, "--text", tmp_path / "t.txt")
    assert "pseudo-perplexity" in shown
    assert "not a likelihood" in " ".join(shown.split())


def test_recipes_come_with_the_package(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A reader's folder has no recipes/ of its own: `tune head-jnli` finds the package's, as `train` does."""
    rows = written(tmp_path, rows_of(Classify()))
    monkeypatch.chdir(tmp_path)
    for name in ("head-jnli", "jnli"):
        shown = said(capfd, "tune", name, f"model={bert}", f"data.source={rows}", "rows.context=60", "budget.steps=1",
                     "device=cpu", "--run", tmp_path / name)  # fmt: skip
        assert "heldout_accuracy" in shown
    assert "did you mean 'head-jnli'" in wrong(capfd, "tune", "head-jnly")


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.toml")))
def test_every_recipe_can_be_shown(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    shown = said(capfd, "show", name)
    assert "seed = 0" in shown
    tuned = name.startswith(("head-", "tune-"))
    assert tuned == ("[data]" in shown)
    if tuned:
        assert "terakoya tune" in wrong(capfd, "train", name)


def test_what_encoders_and_their_kin_cannot_do(bert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "two or more" in wrong(capfd, "embed", bert, "猫", "--near")
    (tmp_path / "t.txt").write_text("いろは", encoding="utf-8")
    assert "window" in wrong(capfd, "eval", bert, "--text", tmp_path / "t.txt", "--window", 0)
    grams = tmp_path / "grams"
    text = tmp_path / "t.jsonl"
    text.write_text("".join(f'{{"text": "いろはにほへと{i}"}}\n' for i in range(60)), encoding="utf-8")
    said(capfd, "train", "ngram", f"corpus.source={text}", "tokenizer.type=bytes", "--run", grams)
    assert "no vectors" in wrong(capfd, "embed", grams, "猫")
    rows = written(tmp_path, rows_of(Classify()))
    asked = (f"model={grams}", f"data.source={rows}", "rows.context=60", "budget.steps=1", "device=cpu")
    assert "counts" in wrong(capfd, "tune", FOLDER / "head-jnli.toml", *asked, "--run", tmp_path / "probe")
    assert not (tmp_path / "probe").exists()


def test_tune_a_head_and_classify(bert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = written(tmp_path, rows_of(Classify()))
    small = (f"model={bert}", f"data.source={rows}", "budget.steps=2", "rows.count=4", "rows.context=60", "device=cpu")
    shown = said(capfd, "tune", FOLDER / "head-jnli.toml", *small, "--run", tmp_path / "run")
    assert "accuracy" in shown
    assert "probability" in said(capfd, "classify", tmp_path / "run", "猫がいる", "猫")
    assert "has no head" in wrong(capfd, "classify", bert, "猫")
