"""Files that are whole or not there: written to the side, flushed to the disk, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from terakoya.errors import TerakoyaError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends well, and vanishes when it does not.

    Raise TerakoyaError where the disk refuses (full, read-only, no permission).
    """
    side = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with side.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(side, path)
        sync_folder(path.parent)
    except OSError as error:
        raise TerakoyaError(str(path), f"cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            side.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in the folder last through a power cut (a no-op where folders cannot be opened)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
