"""Pairs by the package's loop: bit-exact resume, a task learnt to the end, the verbs, and a picture."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from terakoya import config
from terakoya.errors import TerakoyaError
from terakoya.model.build import Init
from terakoya.model.seq2seq import Pair
from terakoya.train.kept import Steps
from terakoya.train.optim import AdamW
from terakoya.train.pairs import PairFile, held_out, texts
from terakoya.train.recipe import Keep, Vocabulary
from terakoya.train.run import Run
from terakoya.train.translate import PairRecipe, open_translator, prepare
from tests.cli.conftest import say

WORDS = {
    "cat": "猫",
    "dog": "犬",
    "sees": "見る",
    "bird": "鳥",
    "fish": "魚",
    "eats": "食べる",
    "a": "一",
    "big": "大きい",
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences and, word for word from the end, what they are in Japanese."""
    rng, path = random.Random(0), tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = []
    for _ in range(400):
        said = [rng.choice(list(WORDS)) for _ in range(rng.randint(1, 4))]
        rows.append({"en": " ".join(said), "ja": "".join(WORDS[w] for w in reversed(said))})
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def recipe(file: Path, steps: int = 6, **more: object) -> PairRecipe:
    plain = PairRecipe(
        pairs=Pair("luong", 24, 1), file=PairFile(file, holdout=0.1), tokenizer=Vocabulary(size=300), rows=16,
        budget=Steps(steps), keep=Keep(save=3), device="cpu",
    )  # fmt: skip
    return replace(plain, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["sutskever", "bahdanau", "luong"])
def test_resuming_continues_bit_for_bit(kind: str, file: Path, tmp_path: Path) -> None:
    asked = recipe(file, pairs=Pair(kind, 16, 2))  # type: ignore[arg-type]
    whole = prepare(Run.create(tmp_path / "whole", asked), asked)
    whole.train()
    cut = prepare(Run.create(tmp_path / "cut", asked), asked)
    batches = type(cut).batches

    def ending(step: int) -> object:
        cut._stop = step == 2
        return batches(cut, step)

    cut.batches = ending  # type: ignore[method-assign, assignment]
    assert not cut.train()
    again = prepare(Run.open(tmp_path / "cut"), asked)
    assert again.start == 3
    again.train()
    for (name, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    lines = [(tmp_path / n / "metrics.jsonl").read_text("utf-8") for n in ("whole", "cut")]
    assert lines[0] == lines[1]


def test_it_learns_to_turn_words_round(file: Path, tmp_path: Path) -> None:
    asked = recipe(file, 240, pairs=Pair("luong", 32, 1, dropout=0.0), init=Init(std=0.2, out="plain"))
    asked = replace(asked, optim=AdamW(lr=1e-2, weight_decay=0.0))
    made = prepare(Run.create(tmp_path / "run", asked), asked)
    made.train()
    model, tokenizer = open_translator(tmp_path / "run")
    end, right = min(tokenizer.stops), 0
    unseen = [p for p in texts(asked.file) if held_out(p[0], 0.1)]
    for source, target in unseen:
        ids, looks = model.write(torch.tensor(tokenizer.encode(source)), end, end, 40, beam=2)
        right += tokenizer.decode(ids) == target
        assert looks is not None
    assert right / len(unseen) > 0.8


def test_the_verbs_and_the_picture(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Path("t.toml").write_text(config.dump(recipe(file, 3)), encoding="utf-8")
    assert say("show", "t.toml").code == 0
    said = say("train", "t.toml", "pairs.kind=bahdanau", "pairs.score=dot", "--run", "run")
    assert (said.code, said.err.count("\n")) == (2, 1) and "pairs.score" in said.err
    said = say("train", "t.toml", "pairs.kind=bahdanau", "--run", "run")
    assert said.code == 0, said.err
    said = say("translate", "run", "a cat", "--map", "map.png", "--max-tokens", 5)
    assert said.code == 0, said.err
    assert Path("map.png").read_bytes()[:4] == b"\x89PNG"
    for words, problem in (
        (["translate", "run", ""], "is empty"),
        (["translate", "run", "x", "--beam", 0], "--beam"),
        (["translate", "nowhere", "x"], "is no run"),
        (["fill", "run", "[MASK]"], "terakoya translate"),
        (["eval", "run"], "terakoya translate"),
        (["train", "t.toml", "file.path=none.jsonl", "--run", "new"], "none.jsonl"),
        (["train", "t.toml", "pairs.dim=0", "--run", "new"], "pairs.dim"),
        (["train", "t.toml", "file.read=de", "--run", "new"], "'de'"),
    ):
        bad = say(*words)
        assert (bad.code, bad.err.count("\n")) == (2, 1), bad.err
        assert problem in bad.err
        assert not Path("new").exists()


def test_the_same_source_is_always_on_the_same_side(file: Path) -> None:
    share = sum(held_out(f"text {i}", 0.25) for i in range(4000)) / 4000
    assert share == pytest.approx(0.25, abs=0.03)
    with pytest.raises(TerakoyaError, match=r"file\.holdout"):
        PairFile(file, holdout=0)
