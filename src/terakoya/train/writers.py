"""Metrics on other people's boards, beside metrics.jsonl; each an extra, imported where a recipe asks for it."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from terakoya.errors import MissingExtra

Track = Literal["tensorboard", "wandb", "trackio"]


class Writer(Protocol):
    """What takes the rows of metrics.jsonl."""

    def write(self, row: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir runs`."""

    def __init__(self, folder: Path, after: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A resumed run writes the steps after its checkpoint once more; the old ones are not shown.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1 if after else None)

    def write(self, row: Mapping[str, Any]) -> None:
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._writer.close()


class Board:
    """Weights & Biases or trackio: both have `init`, `log` and `finish`. Credentials are theirs to find."""

    def __init__(self, library: str, folder: Path) -> None:
        self._board = importlib.import_module(library)
        self._board.init(project="terakoya", name=folder.name, resume="allow")

    def write(self, row: Mapping[str, Any]) -> None:
        self._board.log(numbers(row), step=row["step"])

    def close(self) -> None:
        self._board.finish()


def check(track: Iterable[Track]) -> None:
    """Raise MissingExtra for a board whose library is not installed."""
    for name in track:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(name, name)


@contextmanager
def opened(track: Iterable[Track], folder: Path, after: int) -> Iterator[list[Writer]]:
    """Open the boards of a run whose checkpoint holds `after` steps, and close them in the end."""
    check(track)
    with ExitStack() as stack:
        writers: list[Writer] = []
        for name in track:
            writers.append(TensorBoard(folder, after) if name == "tensorboard" else Board(name, folder))
            stack.callback(writers[-1].close)
        yield writers


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return what can be drawn: the finite numbers of a row, without its step."""
    kept = {k: v for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool) and k != "step"}
    return {k: float(v) for k, v in kept.items() if math.isfinite(v)}
