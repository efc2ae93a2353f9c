"""Files of prompts: read whole before anything runs, and wrong lines named."""

from __future__ import annotations

from pathlib import Path

import pytest

from terakoya.cli.batch import read
from terakoya.errors import TerakoyaError


def test_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "日本"}\n\n{"messages": [], "id": "x"}\n', encoding="utf-8")
    assert list(read(file)) == [(1, {"prompt": "日本"}), (3, {"messages": [], "id": "x"})]


@pytest.mark.parametrize("line", ["{", "[1]", "{}", '{"prompt": "a", "messages": []}', '{"prompt": "a", "seed": 1}'])
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n' + line, encoding="utf-8")
    with pytest.raises(TerakoyaError, match=r"prompts\.jsonl:2"):
        list(read(file))
    with pytest.raises(TerakoyaError):
        list(read(tmp_path / "none"))
