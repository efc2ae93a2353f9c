"""CLIP as a user has it: files to a run, a run to names for pictures; and what is said where files are wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from terakoya.cli.main import main
from terakoya.errors import TerakoyaError
from terakoya.train.captions import CaptionFile, held_out, rows
from terakoya.train.clip import open_clip
from terakoya.train.objectives.contrast import clip
from tests.cli.conftest import say

Image = pytest.importorskip("PIL.Image")
COLOURS = {"赤": (220, 30, 30), "青": (30, 30, 220), "白": (250, 250, 250)}
SHAPES = {"縦の棒": (20, 5), "横の棒": (5, 20), "四角": (12, 12)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings of nine kinds, each with one of two wordings, and a recipe for them."""
    home, rng, found = tmp_path_factory.mktemp("clip"), np.random.default_rng(0), []
    (home / "png").mkdir()
    for i in range(270):
        colour, shape = list(COLOURS)[i % 3], list(SHAPES)[i // 3 % 3]
        x = rng.integers(90, 140, (32, 32, 3), dtype=np.uint8)
        high, wide = (n + int(rng.integers(3)) for n in SHAPES[shape])
        top, left = int(rng.integers(32 - high)), int(rng.integers(32 - wide))
        x[top : top + high, left : left + wide] = COLOURS[colour]
        Image.fromarray(x).save(home / "png" / f"{i}.png")
        found.append({"file": f"png/{i}.png", "says": f"{colour}い{shape}" if i % 2 else f"{shape}、{colour}色"})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    (home / "captions.jsonl").write_text(text, encoding="utf-8")
    (home / "clip.toml").write_text(
        f'rows = 36\nkeep = {{ save = 60 }}\ndevice = "cpu"\nbudget = {{ steps = 120 }}\ntokenizer = {{ size = 300 }}\n'
        f'captions = {{ path = "{home / "captions.jsonl"}", image = "file", text = "says", holdout = 0.1 }}\n'
        "towers = { width = 24, head = 16, patch = 8, image_dim = 48, image_depth = 2, text_dim = 32 }\n"
        'optim = { kind = "adamw", lr = 3e-3 }\n',
        encoding="utf-8",
    )
    torch.set_num_threads(1)
    main(["train", str(home / "clip.toml"), "--run", str(home / "run")])
    return home


def test_pictures_that_were_never_seen_find_their_captions(home: Path) -> None:
    last = json.loads((home / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert last["step"] == 120
    assert last["heldout_image_to_text"] > 2 * last["heldout_commonest"]
    kept = [row for row in rows(CaptionFile(home / "captions.jsonl", "file", "says")) if held_out(row, 0.1)]
    names = sorted({row.text for row in kept})
    chances = open_clip(home / "run").name([row.image for row in kept], names)
    torch.testing.assert_close(chances.sum(1), torch.ones(len(kept)))
    right = [names[i] == row.text for i, row in zip(chances.argmax(1).tolist(), kept, strict=True)]
    assert np.mean(right) == pytest.approx(last["heldout_image_to_text"]), "the file opened is the model measured"


def test_resuming_continues_bit_for_bit(home: Path, tmp_path: Path) -> None:
    short = ["budget.steps=8", "keep.save=4"]
    main(["train", str(home / "clip.toml"), "--run", str(tmp_path / "whole"), *short])
    main(["train", str(home / "clip.toml"), "--run", str(tmp_path / "cut"), *short])
    shutil.rmtree(tmp_path / "cut" / "steps" / "step-00000008")
    main(["train", str(tmp_path / "cut")])
    one, other = (open_clip(tmp_path / name).model.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(t, other[name]) for name, t in one.items())


def test_equal_captions_pull_as_one() -> None:
    """Two pictures with one caption: the gradient is that of a loss which takes both as right."""
    g = torch.Generator().manual_seed(0)
    image, text = torch.randn(4, 8, generator=g, requires_grad=True), torch.randn(3, 8, generator=g, requires_grad=True)
    places = torch.tensor([0, 1, 2, 1])
    right = torch.tensor([[1, 0, 0, 0], [0, 0.5, 0, 0.5], [0, 0, 1, 0], [0, 0.5, 0, 0.5]])
    clip(image, text[places], 10.0).backward()
    found = [t.grad.clone() for t in (image, text) if t.grad is not None]
    image.grad = text.grad = None
    scores = 10 * F.normalize(image, dim=1) @ F.normalize(text[places], dim=1).T
    both = [-(right * s.log_softmax(1)).sum(1).mean() / 2 for s in (scores, scores.T)]
    sum(both, torch.tensor(0.0)).backward()
    assert len(found) == 2
    for mine, t in zip(found, (image, text), strict=True):
        torch.testing.assert_close(mine, t.grad)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"file": "png/none.png", "says": "猫"}, "3: names a picture that cannot be read"),
        ({"file": "captions.jsonl", "says": "猫"}, "is no picture that can be read"),
        ({"file": "png/0.png"}, "needs texts under 'file' and 'says'"),
    ],
)
def test_wrong_rows_are_named(home: Path, row: dict[str, str], expected: str) -> None:
    lines = (home / "captions.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    bad = home / "bad.jsonl"
    bad.write_text("\n".join([*lines, json.dumps(row, ensure_ascii=False)]), encoding="utf-8")
    said = say("train", home / "clip.toml", "--run", home / "no", f"captions.path={bad}")
    assert said.code == 2
    assert expected in " ".join(said.err.split())
    assert not (home / "no").exists()


def test_a_caption_too_long_is_refused(home: Path) -> None:
    with pytest.raises(TerakoyaError, match="too long"):
        open_clip(home / "run").name([home / "png" / "0.png"], ["長" * 200])
