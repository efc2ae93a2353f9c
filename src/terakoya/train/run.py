"""A run: one folder with what was asked, what was resolved, and everything that came of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from terakoya import config
from terakoya.errors import TerakoyaError
from terakoya.train.checkpoint import Checkpoints
from terakoya.train.recipe import Recipe


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
    def create(cls, folder: Path, recipe: Recipe) -> Run:
        """Make the folder, or open it where it was made for the same recipe."""
        asked = folder / "recipe.toml"
        if asked.exists():
            old = config.load_file(Recipe, asked)
            if old != recipe:
                changed = ", ".join(config.diff(old, recipe)) or "recipe"
                raise TerakoyaError(
                    str(folder), f"holds a run of another recipe (differs in {changed})", hint="choose another --run"
                )
            return cls(folder)
        if folder.exists() and any(folder.iterdir()):
            raise TerakoyaError(str(folder), "is not empty and holds no run", hint="choose another --run")
        folder.mkdir(parents=True, exist_ok=True)
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
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise TerakoyaError(str(target), f"cannot be written: {error.strerror or error}") from None
        return target

    def write_json(self, name: str, value: Mapping[str, Any]) -> Path:
        return self.write(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


class Lines:
    """A JSON-lines file whose rows carry a step; resuming drops the rows after the checkpoint."""

    def __init__(self, path: Path, *, after: int) -> None:
        kept = [row for row in read_lines(path) if row["step"] <= after]
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text("".join(_line(row) for row in kept), encoding="utf-8")
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row and hand it to the system."""
        self._file.write(_line(row))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON-lines file; a last line that a kill cut short is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
