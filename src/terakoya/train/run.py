"""A run: one folder with what was asked, what was resolved, and everything that came of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from terakoya import config
from terakoya.errors import TerakoyaError
from terakoya.train.checkpoint import Checkpoints


class Run:
    """The places in a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open an existing run."""
        if not (folder / "recipe.toml").is_file():
            raise TerakoyaError(str(folder), "is no run: it has no recipe.toml")
        return cls(folder)

    @classmethod
    def create(cls, folder: Path, recipe: object) -> Run:
        """Make the folder, or open it where it was made for the same recipe."""
        asked = folder / "recipe.toml"
        if asked.exists():
            old = config.load_file(type(recipe), asked)
            if old != recipe:
                changed = ", ".join(config.diff(old, recipe)) or "recipe"
                raise TerakoyaError(
                    str(folder), f"holds a run of another recipe (differs in {changed})", hint="choose another --run"
                )
            return cls(folder)
        if folder.exists() and not folder.is_dir():
            raise TerakoyaError(str(folder), "is a file, not a folder for a run", hint="choose another --run")
        if folder.exists() and any(path.name != ".recipe.toml.partial" for path in folder.iterdir()):
            raise TerakoyaError(str(folder), "is not empty and holds no run", hint="choose another --run")
        run = cls(folder)
        run.write("recipe.toml", config.dump(recipe))
        return run

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def train(self) -> Path:
        return self.folder / "data" / "train"

    @property
    def heldout(self) -> Path:
        return self.folder / "data" / "heldout"

    @property
    def resolved(self) -> Path:
        return self.folder / "resolved.toml"

    def checkpoints(self, keep: int = 2) -> Checkpoints:
        return Checkpoints(self.folder / "steps", keep=keep)

    def write(self, name: str, text: str) -> Path:
        """Write a text file whole or not at all."""
        target = self.folder / name
        _write(target, text)
        return target

    def write_json(self, name: str, value: Mapping[str, Any]) -> Path:
        return self.write(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


class Lines:
    """A JSON-lines file whose rows carry a step; resuming drops the rows after the checkpoint.

    Every method raises TerakoyaError where the disk fails.
    """

    def __init__(self, path: Path, *, after: int) -> None:
        self.path = path
        _write(path, "".join(_line(row) for row in read_lines(path) if row["step"] <= after))
        with _writing(path):
            self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row and hand it to the system."""
        with _writing(self.path):
            self._file.write(_line(row))
            self._file.flush()

    def sync(self) -> None:
        """Wait until the rows are on the disk: a checkpoint must not outlive what led to it."""
        with _writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file; what it could not hold was reported by `write`."""
        with suppress(OSError):
            self._file.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON-lines file; a last line that a kill cut short is left out."""
    if not path.exists():
        return
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise TerakoyaError(str(path), f"cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise TerakoyaError(f"{path}:{number}", "is damaged: no JSON object with a step")
        yield row


def _line(row: Mapping[str, Any]) -> str:
    """Write a row; JSON knows no NaN and no infinity, so these become null."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(clean, ensure_ascii=False, allow_nan=False) + "\n"


def _write(target: Path, text: str) -> None:
    partial = target.with_name(f".{target.name}.partial")  # one process writes to a run: a killed one's is overwritten
    with _writing(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            partial.replace(target)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TerakoyaError(str(path), f"cannot be written: {error.strerror or error}") from None
