"""Metrics on other boards: the same numbers as in metrics.jsonl, and a clear word where a library is absent."""

from __future__ import annotations

import math
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from terakoya.errors import MissingExtra, TerakoyaError
from terakoya.train.recipe import Recipe, assign
from terakoya.train.writers import check, numbers, opened

ROW = {"step": 3, "loss": 2.5, "tokens": 768, "norm": math.inf, "skipped": True, "note": "寺子屋", "nothing": None}


def test_numbers_are_what_can_be_drawn() -> None:
    assert numbers(ROW) == {"loss": 2.5, "tokens": 768.0}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_an_absent_library_is_named_with_its_extra(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=rf"^{name}: is not installed; .*terakoya\[{name}\]"):
        check((name,))
    with pytest.raises(MissingExtra), opened((name,), tmp_path, 0):
        pass
    assert not list(tmp_path.iterdir())


def test_nothing_asked_nothing_opened(tmp_path: Path) -> None:
    with opened((), tmp_path, 0) as writers:
        assert writers == []


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_boards_get_each_row_once_and_are_finished(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    board = ModuleType(name)
    board.__spec__ = ModuleSpec(name, None)
    board.init = lambda **given: calls.append(given)  # type: ignore[attr-defined]
    board.log = lambda data, step: calls.append((data, step))  # type: ignore[attr-defined]
    board.finish = lambda: calls.append("finish")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, board)
    with opened((name,), tmp_path / "run", 2) as (writer,):
        writer.write(ROW)
    begin = {"project": "terakoya", "name": "run", "resume": "allow"}
    assert calls == [begin, ({"loss": 2.5, "tokens": 768.0}, 3), "finish"]


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_holds_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for after in (0, 2):  # a run, and the same one resumed
        with opened(("tensorboard",), tmp_path, after) as (writer,):
            writer.write({**ROW, "step": 3 + after})
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(5, 2.5)]


def test_a_recipe_asks_for_boards_by_name() -> None:
    assert assign(Recipe(), ['track=["wandb", "tensorboard"]']).track == ("wandb", "tensorboard")
    with pytest.raises(TerakoyaError, match=r"track.*'wandbb'.*tensorboard, wandb, trackio.*did you mean 'wandb'"):
        assign(Recipe(), ['track=["wandbb"]'])
