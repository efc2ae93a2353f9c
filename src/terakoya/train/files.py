"""The five operations through which everything durable is written, so that tests can count, lose and break each."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path


class Files:
    """Durable writing on a real disk. Every method raises OSError when the disk does."""

    def mkdir(self, path: Path) -> None:
        """Make one folder whose parent exists."""
        path.mkdir()

    def write(self, path: Path, chunks: Iterable[bytes | memoryview]) -> None:
        """Write a new file and wait until its bytes are on the disk (its name is not, before `syncdir`)."""
        with open(path, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or folder another name, at once or not at all."""
        source.rename(target)

    def syncdir(self, path: Path) -> None:
        """Wait until the names in a folder are on the disk."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def remove(self, path: Path) -> None:
        """Remove a folder with all that is in it, if it is there; another process may be removing it too."""
        while path.is_dir():
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path)
        path.unlink(missing_ok=True)


DISK = Files()
