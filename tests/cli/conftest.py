"""One tiny corpus, recipe and finished run for all tests of the command line, and a way to type a command."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from terakoya.cli.main import main

JAPANESE = "寺子屋は、庶民の学校である。読み書きと算盤を教えた。ｶﾅも絵文字👩‍👩‍👧もある。\n"
ENGLISH = "A school is a place where people learn to read, write and count.\nThe teacher sat in front.\n"
RECIPE = """\
model = "llama2/nano"
rows = {{ count = 4, context = 64 }}
budget = {{ steps = 5 }}
tokenizer = {{ size = 300 }}
keep = {{ save = 2 }}
device = "cpu"

[corpus]
source = "{corpus}"
holdout = 0.1
"""
SMALL = ("model.dim=32", "model.depth=2", "model.mlp.hidden=64")


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


Terakoya = Callable[..., Said]


def say(*arguments: object, stdin: bytes = b"") -> Said:
    """Run one command in this process."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    old, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = 0
            try:
                main([str(a) for a in arguments])
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0
            out.flush()
            err.flush()
    finally:
        sys.stdin = old
    return Said(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in a folder of one's own; do not measure the machine, do not ask the network."""
    monkeypatch.setattr("terakoya.device.measured_peak", lambda place: 1e11)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def terakoya() -> Terakoya:
    return say


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(6):
        text = (JAPANESE * (i + 1) + ENGLISH) * 12
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def recipe(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE.format(corpus=corpus), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of five steps; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    said = say("train", recipe, *SMALL, "--run", folder)
    assert said.code == 0, said.err
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged at will."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="session")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run as a Hugging Face folder; not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    said = say("convert", finished, folder)
    assert said.code == 0, said.err
    return folder
