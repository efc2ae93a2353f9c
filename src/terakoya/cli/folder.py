"""A new folder, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from terakoya.errors import TerakoyaError


def is_free(folder: Path) -> bool:
    """Say whether a folder of this name may be filled: none is there, or an empty one."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


@contextmanager
def new_folder(name: str) -> Iterator[Path]:
    """Give a hidden folder beside `name` to fill; it takes the name when all is written, and goes away otherwise."""
    folder = Path(name)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        if not is_free(folder):
            raise TerakoyaError(str(folder), "exists already", hint="choose a new folder")
        partial.mkdir(parents=True)
        yield partial
        partial.rename(folder)
    except OSError as error:
        hint = "nothing was left behind; free some space or choose another folder"
        raise TerakoyaError(str(folder), f"cannot be written: {error.strerror or error}", hint=hint) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def kept_if_whole(folder: Path) -> Iterator[None]:
    """Remove a folder that was begun in here where a mistake of the user comes out; what stood there before stays."""
    fresh = is_free(folder)
    try:
        yield
    except (TerakoyaError, OSError):
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        raise
