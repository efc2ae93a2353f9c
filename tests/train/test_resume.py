"""A run that is stopped and gone on with is the run that never stopped, file by file; other runs are refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from terakoya import config, corpus, data
from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer, train
from terakoya.train import loop
from terakoya.train.loop import Progress, Trainer
from terakoya.train.objective import Outcome, causal
from terakoya.train.recipe import Recipe
from terakoya.train.run import Run, read_lines
from terakoya.zoo import convert
from tests.train import run_fakes
from tests.train.run_fakes import STEPS, everything, silent, tiny, trainer


class Killed(BaseException):
    """The end of the process, as far as a run can tell."""


@pytest.fixture(scope="module", autouse=True)
def _no_power_failure() -> Iterator[None]:
    """Here processes end, not machines: waiting for the disk proves nothing and costs minutes on a busy one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_fakes.corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert trainer(folder, tiny(texts)).train()
    return folder


@pytest.fixture
def ready(tmp_path: Path, whole: Path) -> Path:
    """A run with its data made and nothing trained."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("tokenizer", "data"):
        shutil.copytree(whole / name, folder / name)
    shutil.copy(whole / "recipe.toml", folder)
    return folder


def killed_at(step: int) -> Callable[[Progress], None]:
    def watch(progress: Progress) -> None:
        if progress.step == step:
            raise Killed

    return watch


def test_files_of_a_run(whole: Path) -> None:
    names = {*everything(whole, ())}
    assert {"recipe.toml", "resolved.toml", "spec.toml", "environment.json", "metrics.jsonl", "timing.jsonl"} <= names
    assert sorted(path.name for path in (whole / "steps").iterdir()) == ["step-00000006", "step-00000008"]
    assert not [name for name in names if "/." in f"/{name}"]
    rows = list(read_lines(whole / "metrics.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if "heldout_bits_per_byte" in row] == [3, 6, 8]
    assert [row["tokens"] for row in rows] == [128 * (i + 1) for i in range(STEPS)]
    assert rows[-1]["loss"] < rows[0]["loss"]
    loaded = convert.load(whole / "steps" / "step-00000008" / "model")
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.vocab_size == loaded.spec.vocab
    resolved = config.load_file(Recipe, whole / "resolved.toml")
    assert resolved.model == loaded.spec == config.load_file(type(loaded.spec), whole / "spec.toml")


@pytest.mark.parametrize("optim", ["muon", "adamw"])
def test_stopped_and_gone_on_is_never_stopped(tmp_path: Path, texts: Path, whole: Path, optim: str) -> None:
    """Killed after steps 1 (nothing saved yet), 4 (just saved) and 7; the lines after the save are taken back."""
    recipe = tiny(texts) if optim == "muon" else tiny(texts, "optim={kind='adamw'}")
    if optim == "adamw":
        assert trainer(tmp_path / "other", recipe).train()
        whole = tmp_path / "other"
    folder = tmp_path / "run"
    for begins, step in ((0, 1), (0, 4), (2, 7)):
        current = trainer(folder, recipe)
        assert current.start == begins
        with pytest.raises(Killed):
            current.train(killed_at(step))
        with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write('{"step": 9, "lo')  # a kill may leave half a line
    current = trainer(folder, recipe)
    assert current.start == 6
    assert current.train()
    assert everything(folder) == everything(whole)
    finished = everything(folder, ())
    assert trainer(folder, recipe).train(), "a finished run is finished"
    assert everything(folder, ()) == finished


def test_a_run_goes_on_without_its_corpus(tmp_path: Path, whole: Path) -> None:
    source = run_fakes.corpus(tmp_path / "corpus")
    recipe = tiny(source)
    with pytest.raises(Killed):
        trainer(tmp_path / "run", recipe).train(killed_at(4))
    shutil.rmtree(source)
    assert trainer(tmp_path / "run", recipe).train()
    mine, other = everything(tmp_path / "run"), everything(whole)
    weights = "steps/step-00000008/model/model.safetensors"
    assert mine[weights] == other[weights]


def test_another_seed_is_another_run(tmp_path: Path, texts: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    assert trainer(folder, tiny(texts, "seed=1")).train()
    mine, other = everything(folder), everything(whole)
    for name in ("metrics.jsonl", "steps/step-00000008/model/model.safetensors"):
        assert mine[name] != other[name]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_lines(folder / "metrics.jsonl")]


def test_micro_batches_change_almost_nothing(tmp_path: Path, texts: Path, whole: Path) -> None:
    for micro in (2, 3, 4):
        folder = tmp_path / str(micro)
        assert trainer(folder, tiny(texts, f"rows.micro={micro}")).train()
        assert losses(folder) == pytest.approx(losses(whole), rel=1e-3)


def objective_that_asks(phase: str, calls: int) -> Callable[[Model, Batch], Outcome]:
    """The causal objective; its `calls`-th call gets SIGTERM before or after its work."""
    count = 0

    def objective(model: Model, batch: Batch) -> Outcome:
        nonlocal count
        count += 1
        if count == calls and phase == "before":
            os.kill(os.getpid(), signal.SIGTERM)
        outcome = causal(model, batch)
        if count == calls and phase == "after":
            os.kill(os.getpid(), signal.SIGTERM)
        return outcome

    return objective


@pytest.mark.parametrize("phase", ["before", "after", "watch", "save", "saved", "look"])
def test_sigterm_saves_the_exact_step_and_resumes_equal(
    ready: Path, texts: Path, whole: Path, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    recipe = tiny(texts)
    current, expected = trainer(ready, recipe), 3
    if phase in ("before", "after"):
        current.objective = objective_that_asks(phase, 3)
    original_save, original_look = Trainer.save, loop.evaluate

    def save(self: Trainer, done: int) -> Path:
        if phase == "save":
            os.kill(os.getpid(), signal.SIGTERM)
        path = original_save(self, done)
        if phase == "saved":
            os.kill(os.getpid(), signal.SIGTERM)
        return path

    def look(*given: object) -> float:
        if phase == "look":
            os.kill(os.getpid(), signal.SIGTERM)
        return original_look(*given)  # type: ignore[arg-type]

    def watch(progress: Progress) -> None:
        if phase == "watch" and progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "save", save)
    monkeypatch.setattr(loop, "evaluate", look)
    assert current.train(watch) is False
    monkeypatch.undo()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    found = Run.open(ready).checkpoints().latest()
    assert found is not None
    assert found.step == expected, "what was done must be saved, and nothing begun after the signal"
    assert [row["step"] for row in read_lines(ready / "metrics.jsonl")] == [1, 2, 3]
    assert trainer(ready, recipe).train()
    assert everything(ready) == everything(whole)


def test_a_second_interrupt_does_not_wait(ready: Path, texts: Path) -> None:
    def watch(progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        if progress.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer(ready, tiny(texts)).train(watch)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert trainer(ready, tiny(texts)).start == 0


def refused(folder: Path, recipe: Recipe, said: str) -> str:
    """What `terakoya train` says; it must be one line, and the run untouched but for what may be made anew."""
    before = everything(folder)
    with pytest.raises(TerakoyaError, match=said) as caught:
        trainer(folder, recipe).train()
    assert "\n" not in str(caught.value)
    assert everything(folder) == before
    return str(caught.value)


@pytest.fixture
def trained(tmp_path: Path, whole: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


def test_another_recipe_is_refused(trained: Path, texts: Path) -> None:
    assert "--run" in refused(
        trained, tiny(texts, "optim.lr=0.5", "seed=4"), r"another recipe \(differs in optim\.lr, seed\)"
    )


def test_other_data_is_refused(trained: Path, texts: Path) -> None:
    shutil.rmtree(trained / "data" / "train")
    tokenizer = Tokenizer.load(trained / "tokenizer")
    data.build([corpus.Document("まったく別の話。" * 90, "別")], tokenizer, trained / "data" / "train")
    refused(trained, tiny(texts), "other data or in another order")


def test_tokenizer_of_another_model_is_refused(trained: Path, texts: Path) -> None:
    shutil.rmtree(trained / "tokenizer")
    train(["ほかの語彙 other words"] * 3, "bpe", 300).save(trained / "tokenizer")
    refused(trained, tiny(texts), "made with another tokenizer")


def test_damaged_shards_are_refused(trained: Path, texts: Path) -> None:
    file = next((trained / "data" / "train").glob("*.bin"), None) or _largest(trained / "data" / "train")
    good = file.read_bytes()
    for bad, said in (
        (bytes([good[0] ^ 1]) + good[1:], "is damaged: its checksum"),
        (good[:-2], "bytes instead of"),
    ):
        file.write_bytes(bad)
        refused(trained, tiny(texts), said)
    file.unlink()
    refused(trained, tiny(texts), "is missing")


def _largest(folder: Path) -> Path:
    return max(folder.iterdir(), key=lambda path: path.stat().st_size)


def test_damaged_checkpoint_falls_back_and_ends_equal(
    trained: Path, whole: Path, texts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = trained / "steps" / "step-00000008" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 16
    file.write_bytes(data)
    current = trainer(trained, tiny(texts))
    assert current.start == 6
    assert "optimizer.safetensors" in caplog.text
    assert current.train()
    assert everything(trained) == everything(whole)


def test_no_whole_checkpoint_is_refused(trained: Path, texts: Path) -> None:
    for folder in (trained / "steps").iterdir():
        file = folder / "model" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    refused(trained, tiny(texts), "no checkpoint is whole")


def test_damaged_lines_are_refused(trained: Path, texts: Path) -> None:
    file = trained / "metrics.jsonl"
    for line in ("not json", "[1]", '{"loss": 1}', "[" * 100_000):
        file.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n', encoding="utf-8")
        refused(trained, tiny(texts), r"metrics\.jsonl:2: is damaged")


def test_steps_that_are_not_finite_are_counted_and_end_the_run(ready: Path, texts: Path) -> None:
    count = 0

    def objective(model: Model, batch: Batch) -> Outcome:
        nonlocal count
        count += 1
        outcome = causal(model, batch)
        return Outcome(outcome.loss * float("nan")) if count in (2, 3, 5) else outcome

    current = trainer(ready, tiny(texts))
    current.objective = objective
    assert current.train()
    assert current.skipped == 3
    rows = list(read_lines(ready / "metrics.jsonl"))
    assert [row["step"] for row in rows if row.get("skipped")] == [2, 3, 5]
    assert rows[1]["loss"] is None, "JSON has no NaN"
    assert "NaN" not in (ready / "metrics.jsonl").read_text(encoding="utf-8")
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    checkpoint = Run.open(ready).checkpoints().latest()
    assert checkpoint is not None
    assert checkpoint.meta["skipped"] == 3
    assert trainer(ready, tiny(texts)).skipped == 3


def test_a_run_that_cannot_go_on_says_so(tmp_path: Path, texts: Path) -> None:
    current = trainer(tmp_path / "run", tiny(texts, "budget.steps=30"))
    current.objective = lambda model, batch: Outcome(causal(model, batch).loss * float("inf"))
    before = [p.detach().clone() for p in current.model.parameters()]
    with pytest.raises(TerakoyaError, match=r"10 steps in a row could not be taken \(loss inf"):
        current.train()
    assert all(torch.equal(p, q) for p, q in zip(before, current.model.parameters(), strict=True))
    assert len(list(read_lines(tmp_path / "run" / "metrics.jsonl"))) == 10


def test_minutes_become_steps_once(tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_affordable", lambda *given: 5)
    recipe = tiny(texts, "budget.minutes=1")
    with pytest.raises(Killed):
        trainer(tmp_path / "run", recipe).train(killed_at(3))
    monkeypatch.setattr(loop, "_affordable", lambda *given: pytest.fail("the steps were settled at the start"))
    current = trainer(tmp_path / "run", recipe)
    assert (current.start, current.steps) == (2, 5)
    assert current.train()


def test_minutes_are_measured(tmp_path: Path, texts: Path) -> None:
    few, many = (trainer(tmp_path / m, tiny(texts, f"budget.minutes={m}")).steps for m in ("0.01", "0.5"))
    assert few >= 10
    assert many > 5 * few


def test_the_real_watcher_sees_every_step(ready: Path, texts: Path) -> None:
    seen: list[Progress] = []
    trainer(ready, tiny(texts)).train(seen.append)
    assert [p.step for p in seen] == list(range(1, STEPS + 1))
    assert all(p.tokens_per_second > 0 and p.flops_per_second > 0 and p.seconds > 0 for p in seen)
    assert [p.step for p in seen if p.heldout is not None] == [3, 6, 8]
    silent("")
