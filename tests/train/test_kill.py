"""kill -9 at any moment of a real run: while its text is cut, its model trained, its checkpoints written."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from terakoya import device
from tests.torture import torture
from tests.train import run_fakes

KILLS = 50


@pytest.mark.parametrize("plan", ["{kind='muon'}", "{kind='adamw', lr=0.01}"], ids=["muon", "adamw"])
def test_random_kills_end_in_the_undisturbed_run(tmp_path: Path, plan: str) -> None:
    source = run_fakes.corpus(tmp_path / "texts")
    recipe = run_fakes.tiny(source, f"optim={plan}", "keep.save=1", "budget.steps=6", "keep.count=3")

    def life(folder: Path) -> bytes:
        torch.set_num_threads(1)
        # The process dies, not the machine (that is test_crash_states.py): a moment in which to die will do.
        os.fsync = lambda handle: time.sleep(0.001)
        assert run_fakes.trainer(folder, recipe).train()
        files = run_fakes.everything(folder)
        assert len(files) > 20
        return "\n".join(f"{digest} {name}" for name, digest in files.items()).encode()

    device.keep_memory()
    report = torture(life, tmp_path / "lives", KILLS // 2, seed=len(plan))
    assert report.kills == KILLS // 2
    assert report.finished >= 1
