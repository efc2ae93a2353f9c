"""ELMo as a user has it: a recipe to a run, a run to a head on mixed layers, and what is said where files lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from terakoya.cli.main import main
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.model.elmo import ElmoVectors
from terakoya.models import find, open_model
from terakoya.train.elmo import open_elmo

TEXT = ["猫が庭で眠っている。", "犬が道を走る。", "ｶﾅと絵文字👩‍🏫も読む。", "The cat sat on the mat."]
SMALL = "{ dim = 8, cells = 12, letters = 4, filters = [[1, 4], [2, 4]], highways = 1, longest = 12 }"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("elmo")
    rows = [json.dumps({"text": "\n".join(TEXT[i:] + TEXT[:i]) * 3}, ensure_ascii=False) for i in range(4)] * 10
    (home / "text.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (home / "elmo.toml").write_text(
        f'elmo = {SMALL}\ncorpus = {{ source = "{home / "text.jsonl"}", holdout = 0.1 }}\n'
        "tokenizer = { size = 320 }\nrows = { count = 4, context = 24 }\nbudget = { steps = 6 }\n"
        'optim = { kind = "adamw", lr = 1e-2 }\n',
        encoding="utf-8",
    )
    main(["train", str(home / "elmo.toml"), "--run", str(home / "run")])
    return home


def test_a_run_learns_in_both_directions_and_opens(run: Path) -> None:
    last = json.loads((run / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert last["step"] == 6
    assert 0 < last["heldout_bits_per_byte"] < 8
    assert 0 < last["heldout_bits_per_byte_back"] < 8
    loaded = open_model(str(run / "run"))
    assert isinstance(loaded.model, ElmoVectors) and loaded.tokenizer is not None
    ids = loaded.tokenizer.encode(TEXT[0])
    whole = loaded.model(torch.tensor(ids), Packed([len(ids)]))
    assert whole.shape == (len(ids), 16)
    cut = loaded.model(torch.tensor(ids[:-1]), Packed([len(ids) - 1]))
    assert torch.allclose(whole[0, :8], cut[0, :8], atol=1e-6)  # the past does not see the end,
    assert not torch.allclose(whole[0, 8:], cut[0, 8:], atol=1e-6)  # what is read from the right does


def test_it_does_not_continue_texts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", str(run / "run"), "猫"])
    assert "does not continue a text" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("probe", [True, False])
def test_a_head_learns_a_mixture_of_its_layers_and_is_kept(run: Path, probe: bool) -> None:
    name = f"head-{probe}"
    rows = [{"text": t, "label": "ja" if ord(t[0]) > 255 else "en"} for t in TEXT for _ in range(4)]
    data = run / f"{name}.jsonl"
    data.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    (run / f"{name}.toml").write_text(
        f'model = "{run / "run"}"\nprobe = {str(probe).lower()}\nhead = {{ kind = "classify" }}\n'
        f'data = {{ source = "{data}", holdout = 0.3 }}\nrows = {{ count = 4, context = 48 }}\n'
        'budget = { steps = 4 }\noptim = { kind = "adamw", lr = 1e-2 }\n',
        encoding="utf-8",
    )
    main(["tune", str(run / f"{name}.toml"), "--run", str(run / name)])
    before, after = open_model(str(run / "run")).model.state_dict(), open_model(str(run / name)).model.state_dict()
    moved = {n for n in after if not torch.equal(before[n], after[n])}
    assert {"mix.s", "mix.gamma"} <= moved
    assert any(n.startswith("elmo.layers") for n in moved) is not probe
    main(["tune", str(run / name)])  # opens what it has kept, and has nothing left to do
    main(["classify", str(run / name), TEXT[0]])


def test_files_that_do_not_fit_are_told(run: Path, tmp_path: Path) -> None:
    shutil.copytree(find(str(run / "run")), tmp_path / "model")
    said = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "model" / "config.json").write_text(json.dumps(said | {"cells": 13}), encoding="utf-8")
    with pytest.raises(TerakoyaError, match="holds other weights"):
        open_elmo(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(said | {"vocab_size": 3}), encoding="utf-8")
    with pytest.raises(TerakoyaError, match="vocab_size"):
        open_elmo(tmp_path / "model")
