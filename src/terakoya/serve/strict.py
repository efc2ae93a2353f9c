"""JSON as the standard has it, and nothing that two readers would read differently."""

from __future__ import annotations

import json
import math
from typing import Any

from terakoya.serve.problem import Problem

DEEPEST, LONGEST_INT = 64, 400


def parse(data: bytes) -> Any:
    """Read one JSON text; Problem 400 for NaN, doubled keys, lone surrogates, too deep a nesting, or no UTF-8."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _wrong(f"is not UTF-8 at byte {error.start}") from None
    try:
        found = json.loads(text, object_pairs_hook=_object, parse_int=_int)
    except RecursionError:
        raise _wrong(f"is nested more than {DEEPEST} deep") from None
    except ValueError as error:
        raise _wrong(f"is not JSON: {error}") from None
    _check(found)
    return found


def _wrong(message: str, param: str | None = None) -> Problem:
    return Problem(400, f"{param or 'the body'} {message}", param=param, code="invalid_json")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _wrong("stands twice in one object", _shown(twice))
    return found


def _int(digits: str) -> int:
    if len(digits) > LONGEST_INT:
        raise _wrong(f"has a number of {len(digits)} digits")
    return int(digits)


def _check(root: Any) -> None:
    """Walk everything without recursion; the path is kept to name the field."""
    todo: list[tuple[Any, str, int]] = [(root, "", 0)]
    while todo:
        value, path, depth = todo.pop()
        if isinstance(value, dict):
            if depth >= DEEPEST:
                raise _wrong(f"is nested more than {DEEPEST} deep", path)
            for key, inner in value.items():
                _text(key, path)
                todo.append((inner, f"{path}.{key}" if path else key, depth + 1))
        elif isinstance(value, list):
            if depth >= DEEPEST:
                raise _wrong(f"is nested more than {DEEPEST} deep", path)
            todo.extend((inner, f"{path}[{i}]", depth + 1) for i, inner in enumerate(value))
        elif isinstance(value, str):
            _text(value, path)
        elif isinstance(value, float) and not math.isfinite(value):
            raise _wrong("is no finite number", _shown(path))


def _text(text: str, path: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _wrong("has half of a character (a lone surrogate)", _shown(path) or None) from None


def _shown(path: str) -> str:
    return path.encode("utf-8", "replace").decode()[:200]
