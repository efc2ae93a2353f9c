"""A full disk, an empty or unreadable corpus: one clear line, nothing half-written, and the same command goes on."""

from __future__ import annotations

import logging
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from terakoya.errors import TerakoyaError
from terakoya.train.recipe import Recipe
from terakoya.train.run import Lines, Run, read_lines
from tests.train import run_fakes
from tests.train.run_fakes import everything, tiny, trainer


@pytest.fixture(scope="module", autouse=True)
def _no_power_failure() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Let the system itself refuse to write more: every write beyond `size` bytes of a file fails half done."""
    with restored():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        yield


@contextmanager
def restored() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def failed(folder: Path, recipe: Recipe) -> str:
    """Train; return the one line of the error, or nothing."""
    said = ""
    try:
        trainer(folder, recipe).train()
    except TerakoyaError as error:
        said = str(error)
    assert "\n" not in said
    return said


def half_written(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*")]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_fakes.corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert trainer(folder, tiny(texts)).train()
    return folder


def test_a_full_disk_at_every_stage(tmp_path: Path, texts: Path, whole: Path) -> None:
    """The limit grows, and the same run gets further each time; freed at last, it ends as if nothing had been."""
    folder, said = tmp_path / "run", []
    for size in (0, 100, 3_000, 4_000, 13_000, 50_000):
        if size == 4_000:  # the tokenizer is larger than the text it cuts: give it, or the text is never reached
            shutil.copytree(whole / "tokenizer", folder / "tokenizer")
        with no_file_larger_than(size):
            said.append(failed(folder, tiny(texts)))
        assert "File too large" in said[-1], size
        assert half_written(tmp_path) == [], size
    stages = ["recipe.toml", "tokenizer", "data/train", "steps"]
    assert all(any(stage in line for line in said) for stage in stages), said
    assert "step 2 could not be saved" in said[-1]
    assert failed(folder, tiny(texts)) == ""
    assert everything(folder) == everything(whole)


def test_a_disk_that_fills_while_training(tmp_path: Path, texts: Path, whole: Path) -> None:
    """Lines that do not fit end the run; the checkpoint before them stands."""
    folder = tmp_path / "run"
    current = trainer(folder, tiny(texts))
    with restored(), pytest.raises(TerakoyaError, match=r"cannot be written: File too large") as caught:
        current.train(lambda progress: _shrink(folder, progress.step))
    assert "metrics.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert half_written(folder) == []
    assert trainer(folder, tiny(texts)).start == 2
    assert failed(folder, tiny(texts)) == ""
    assert everything(folder) == everything(whole)


def _shrink(folder: Path, step: int) -> None:
    """After step 3, when the last checkpoint holds two, leave room for half a line."""
    if step == 3:
        size = (folder / "metrics.jsonl").stat().st_size + 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_lines_on_a_full_device(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "metrics.jsonl", after=0)
    lines.write({"step": 1})
    lines._file = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(TerakoyaError, match=r"metrics\.jsonl: cannot be written: No space left on device"):
        lines.write({"step": 2})
    lines.close()
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [1]


def test_write_is_all_or_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write("a.toml", "old")
    with no_file_larger_than(2), pytest.raises(TerakoyaError, match=r"a\.toml: cannot be written"):
        run.write("a.toml", "newer")
    assert (tmp_path / "a.toml").read_text(encoding="utf-8") == "old"
    assert half_written(tmp_path) == []


def bad_corpora(folder: Path) -> Iterator[tuple[Path, str]]:
    yield folder / "nowhere", "nowhere: does not exist"
    (folder / "empty").mkdir()
    yield folder / "empty", "empty: holds no document"
    run_fakes.corpus(folder / "blank", {"a.txt": " \n\n", "b.txt": ""})
    yield folder / "blank", r"blank: holds no document \(2 passed over\)"
    (folder / "latin.txt").write_bytes("größer".encode("latin-1"))
    yield folder / "latin.txt", r"latin\.txt: .*UTF-8"
    mixed = run_fakes.corpus(folder / "mixed")
    (mixed / "終.txt").write_bytes("寺子屋".encode("shift_jis"))
    yield mixed, r"終\.txt: .*UTF-8"
    (folder / "image.png").write_bytes(b"\x89PNG")
    yield folder / "image.png", "not a kind of file"
    (folder / "rows.jsonl").write_text('{"text": "あ"}\n{"txt": "b"}\n', encoding="utf-8")
    yield folder / "rows.jsonl", r"rows\.jsonl:2: has no field 'text'"


@pytest.mark.parametrize("number", range(7))
def test_bad_corpora(tmp_path: Path, number: int) -> None:
    source, said = list(bad_corpora(tmp_path))[number]
    folder = tmp_path / "run"
    with pytest.raises(TerakoyaError, match=said) as caught:
        trainer(folder, tiny(source))
    assert "\n" not in str(caught.value)
    assert {path.name for path in folder.iterdir()} <= {"recipe.toml", "data"}
    assert half_written(folder) == []


def test_a_mended_corpus_goes_through(tmp_path: Path) -> None:
    source, folder = tmp_path / "texts", tmp_path / "run"
    with pytest.raises(TerakoyaError):
        trainer(folder, tiny(source))
    run_fakes.corpus(source)
    assert failed(folder, tiny(source)) == ""


def test_too_little_text_is_one_line(tmp_path: Path) -> None:
    source = run_fakes.corpus(tmp_path / "texts", {"a.txt": "短い"})
    said = failed(tmp_path / "run", tiny(source))
    assert "holdout" in said or "no document" in said or "fewer than one row" in said, said
    assert half_written(tmp_path) == []


def test_limit_takes_the_beginning(tmp_path: Path, texts: Path) -> None:
    small, large = (trainer(tmp_path / n, tiny(texts, f"corpus.limit={n}")) for n in ("700", "100000"))
    assert small.loader.mix.parts[0].documents < large.loader.mix.parts[0].documents


@pytest.mark.parametrize("change", ["attention.heads=5", "model.attention.kv_heads=3", "device=cuda:9", "device=tpu"])
def test_a_recipe_that_cannot_be_built(tmp_path: Path, texts: Path, change: str) -> None:
    folder = tmp_path / "run"
    said = failed(folder, tiny(texts, "device=cpu", change))
    assert said
    assert not (folder / "resolved.toml").exists()
    assert half_written(folder) == []


def test_places_where_no_run_can_be(tmp_path: Path, texts: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    for name, said in (("file", "is a file, not a folder"), ("full", "is not empty and holds no run")):
        before = everything(tmp_path)
        assert said in failed(tmp_path / name, tiny(texts))
        assert everything(tmp_path) == before
    with pytest.raises(TerakoyaError, match="is no run"):
        Run.open(tmp_path / "full")


def test_what_killed_lives_left_is_swept(tmp_path: Path, texts: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    for name in ("tokenizer", "data"):
        shutil.copytree(whole / name, folder / name)
    shutil.copy(whole / "recipe.toml", folder)
    for name in (".tokenizer.123", "data/.train.partial-77", "steps/.tmp-2-9"):
        (folder / name).mkdir(parents=True)
        (folder / name / "half").write_bytes(b"half")
    (folder / ".metrics.jsonl.partial").write_bytes(b"half")
    assert failed(folder, tiny(texts)) == ""
    assert everything(folder) == everything(whole)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / ".recipe.toml.partial").write_bytes(b"mod")
    assert trainer(fresh, tiny(texts)).start == 0


def test_broken_checkpoints_are_passed_over_aloud(
    tmp_path: Path, texts: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "steps" / "step-00000008" / "model" / "config.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert trainer(folder, tiny(texts)).start == 6
    assert "config.json" in caplog.text
