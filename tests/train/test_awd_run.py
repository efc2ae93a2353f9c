"""AWD-LSTM and ULMFiT as a user has them: three recipes, one after another, each resumed bit for bit; and bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as tensors

from terakoya.cli.awd import begun
from terakoya.cli.main import main
from terakoya.config import load, load_file
from terakoya.model.awd import AwdLstm
from terakoya.models import open_model
from terakoya.train.awd import AwdRecipe
from terakoya.train.optim import Optimizer
from terakoya.train.run import Run, read_lines
from terakoya.train.schedule import Slanted, factor
from tests.train.run_fakes import everything, silent

TEXT = ["猫が庭で眠っている。", "犬が道を走る。", "ｶﾅと絵文字👩‍🏫も読む。", "The cat sat on the mat."]
SMALL = "{ dim = 8, hidden = 12, depth = 2 }"
ADAM = 'optim = { kind = "adamw", lr = 1e-2, weight_decay = 0.0 }\n'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("awd")
    rows = [json.dumps({"text": "\n".join(TEXT[i:] + TEXT[:i]) * 3}, ensure_ascii=False) for i in range(4)] * 10
    (home / "text.jsonl").write_text("\n".join(rows), encoding="utf-8")
    common = (
        f'corpus = {{ source = "{home / "text.jsonl"}", holdout = 0.1 }}\nrows = {{ count = 4, context = 24 }}\n'
        f"keep = {{ save = 3, evaluate = 1 }}\nawd = {SMALL}\nbudget = {{ steps = 6 }}\n"
    )
    (home / "lm.toml").write_text(common + "tokenizer = { size = 320 }\n" + ADAM, encoding="utf-8")
    (home / "target.toml").write_text(
        f'start = "{home / "lm"}"\ndecay = 2.6\n' + common + ADAM.replace("1e-2", "0.5"), encoding="utf-8"
    )
    labelled = [{"text": t, "label": "ja" if ord(t[0]) > 255 else "en"} for t in TEXT for _ in range(4)]
    (home / "rows.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in labelled), encoding="utf-8")
    (home / "head.toml").write_text(
        f'model = "{home / "target"}"\ngradual = true\ndecay = 2.6\n'
        'head = { kind = "classify", pool = "concat", hidden = 5 }\nschedule = { kind = "slanted" }\n'
        f'data = {{ source = "{home / "rows.jsonl"}", holdout = 0.3 }}\nrows = {{ count = 4, context = 48 }}\n'
        "budget = { epochs = 4 }\nkeep = { save = 1, count = 99 }\n" + ADAM,
        encoding="utf-8",
    )
    (home / "ngram.toml").write_text(
        f'ngram = {{ order = 2 }}\ncorpus = {{ source = "{home / "text.jsonl"}" }}\n', encoding="utf-8"
    )
    main(["train", str(home / "ngram.toml"), "--run", str(home / "ngram"), "tokenizer.size=300", "corpus.holdout=0.1"])
    main(["train", str(home / "lm.toml"), "--run", str(home / "lm")])
    main(["train", str(home / "target.toml"), "--run", str(home / "target")])
    main(["tune", str(home / "head.toml"), "--run", str(home / "head")])
    return home


def test_the_first_stage_is_scored_continued_and_shown(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(read_lines(home / "lm" / "metrics.jsonl"))
    assert [row["factor"] for row in rows] == [factor(Slanted(), k, 6) for k in range(6)]
    assert rows[-1]["heldout_bits_per_byte"] < rows[0]["heldout_bits_per_byte"]
    loaded = open_model(str(home / "lm"))
    assert isinstance(loaded.model, AwdLstm)
    main(["eval", str(home / "lm")])
    bits = float(capsys.readouterr().out.split("│")[-3])  # of whole documents, not of rows
    assert bits == pytest.approx(rows[-1]["heldout_bits_per_byte"], abs=0.4)
    main(["generate", str(home / "lm"), "猫", "--max-tokens", "4", "--temperature", "0"])
    assert capsys.readouterr().out.strip()
    main(["show", str(home / "lm")])
    assert load(AwdRecipe, capsys.readouterr().out) == load_file(AwdRecipe, home / "lm.toml")


@pytest.mark.parametrize(
    "optim", [["optim.kind=adamw"], ["optim.kind=muon"], ["optim.kind=ntasgd", "optim.patience=1", "optim.lr=500"]]
)
def test_resuming_continues_bit_for_bit(home: Path, tmp_path: Path, optim: list[str]) -> None:
    for name in ("whole", "cut"):
        main(["train", str(home / "lm.toml"), "--run", str(tmp_path / name), *optim])
    shutil.rmtree(tmp_path / "cut" / "steps" / "step-00000006")
    main(["train", str(tmp_path / "cut")])
    assert everything(tmp_path / "whole") == everything(tmp_path / "cut")
    last = list(read_lines(tmp_path / "whole" / "metrics.jsonl"))[-1]
    if "optim.kind=ntasgd" not in optim:
        return
    assert last["averaging"]  # rate and patience are such that the cut lies behind the trigger
    averages = open_model(str(tmp_path / "whole")).model.state_dict()
    state = Run.open(tmp_path / "whole").checkpoints().latest()
    assert state is not None
    kept = state.tensors("optimizer")
    assert any(not torch.equal(kept[f"average/{n}"], t) for n, t in averages.items() if f"average/{n}" in kept)


def test_the_second_stage_goes_on_with_lower_rates_below(home: Path, tmp_path: Path) -> None:
    asked = load_file(AwdRecipe, home / "target.toml")
    fresh = begun(Run.create(tmp_path / "run", asked), asked, silent)
    before = open_model(str(home / "lm")).model.state_dict()
    assert all(torch.equal(t, before[n]) for n, t in fresh.model.state_dict().items())
    assert isinstance(fresh.optimizer, Optimizer)
    assert fresh.optimizer.adam is not None
    groups = fresh.optimizer.adam.param_groups
    rates = {fresh.optimizer.names[p]: g["lr"] for g in groups for p in g["params"]}
    assert rates["layers.1.h.weight"] == rates["head.bias"] == 0.5
    assert rates["layers.0.h.weight"] == pytest.approx(0.5 / 2.6)
    assert rates["token.weight"] == pytest.approx(0.5 / 2.6**2)
    after = open_model(str(home / "target")).model.state_dict()
    assert all(not torch.equal(t, before[n]) for n, t in after.items())
    shutil.copytree(home / "target", tmp_path / "target")
    shutil.rmtree(tmp_path / "target" / "steps" / "step-00000006")
    text = (tmp_path / "target" / "recipe.toml").read_text(encoding="utf-8")
    gone = text.replace(str(home / "lm"), str(tmp_path / "gone"))
    (tmp_path / "target" / "recipe.toml").write_text(gone, encoding="utf-8")
    main(["train", str(tmp_path / "target")])  # a run that has a model of its own does not ask for the first
    again = open_model(str(tmp_path / "target")).model.state_dict()
    assert all(torch.equal(t, after[n]) for n, t in again.items())


def test_the_third_stage_wakes_the_layers_from_the_top(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = open_model(str(home / "target")).model.state_dict()
    checkpoints = sorted((home / "head" / "steps").iterdir())
    steps = len(checkpoints) // 4
    awake = list[set[str]]()
    for done in (1, 2, 3):
        now = tensors(checkpoints[done * steps - 1] / "model" / "model.safetensors")
        awake.append({n.split(".h.")[0].split(".x.")[0] for n, t in before.items() if not torch.equal(t, now[n])})
    assert awake[0] == set()
    assert awake[1] == {"layers.1"}  # the words' bias learns nothing from labels
    assert awake[2] == {"layers.1", "layers.0"}
    capsys.readouterr()
    main(["classify", str(home / "head"), TEXT[0]])
    assert "ja" in capsys.readouterr().out
    main(["tune", str(home / "head")])  # opens what it has kept, and has nothing left to do


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["awd.drops.word=1"], "awd.drops.word"),
        (["awd.depth=0"], "awd.depth"),
        (["ar=-1"], "ar: -1.0 is not"),
        (["clip=0"], "clip"),
        (["decay=0.5"], "decay"),
        (["optim.kind=muon"], "rates by layer are AdamW's"),
        (["optim.kind=ntasgd", "decay=1", "keep.evaluate=0"], "keep.evaluate"),
        (["optim.kind=ntasgd", "decay=1", "optim.patience=0"], "patience"),
        (["schedule.kind=slanted", "schedule.cut=1"], "schedule.cut"),
        (["awd.hidden=13"], "awd.hidden"),
        (["tokenizer.size=400"], "leave this table out"),
        (["init.std=0.2"], "init"),
        (["start=HOME/no"], "no such file"),
        (["start=HOME/ngram"], "is no AWD-LSTM"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    home: Path, tmp_path: Path, changes: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [c.replace("HOME", str(home)) for c in changes]
    with pytest.raises(SystemExit) as ended:
        main(["train", str(home / "target.toml"), "--run", str(tmp_path / "run"), *changes])
    found = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2
    assert said in found
    assert "Traceback" not in found
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["probe=true"], "leave out gradual and decay"),
        (["rows.count=1"], "batch normalisation"),
        (["optim.kind=muon"], "rates by layer"),
        (["head.hidden=-1"], "head.hidden"),
        (["head.hidden=0", "head.drop=0.1"], "a layer between"),
    ],
)
def test_a_classifier_that_cannot_be_is_told(
    home: Path, tmp_path: Path, changes: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tune", str(home / "head.toml"), "--run", str(tmp_path / "run"), *changes])
    found = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2
    assert said in found
