"""Things that many tests share; kept small."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_folder() -> Path:
    """Return the folder of the shared data: $TERAKOYA_SHARED, or shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("TERAKOYA_SHARED") or beside)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the shared data; tests that ask for it are skipped where it is absent."""
    folder = shared_folder()
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set TERAKOYA_SHARED)")
    return folder
