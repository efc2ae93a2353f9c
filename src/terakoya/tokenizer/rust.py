"""The one door to the Rust library: JSON in, tokenizer out, its errors and panics as one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from terakoya.errors import TerakoyaError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Rust

R = TypeVar("R")
Json = dict[str, Any]


def guarded(place: str, call: Callable[[], R]) -> R:
    """Run a call into Rust; its exceptions and panics (a `BaseException`) become TerakoyaError."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except TerakoyaError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TerakoyaError(place, f"was refused by the tokenizer library: {str(error)[:200]}") from error
        raise


def understood(place: str, call: Callable[[], R]) -> R:
    """Read a stranger's nested data; where it has another shape than the format says, TerakoyaError."""
    try:
        return call()
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise TerakoyaError(place, f"is malformed ({type(error).__name__}: {str(error)[:120]})") from error


_OPTIONS = frozenset((
    "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
    "ignore_merges",
))  # fmt: skip


def build(place: str, description: Mapping[str, Any]) -> Rust:
    """Make a Rust tokenizer of the contents of a tokenizer.json."""
    model = description["model"]
    handed = model["type"] == "BPE" and not description["added_tokens"]
    if handed and model.keys() <= {"type", "vocab", "merges", *_OPTIONS}:
        return guarded(place, lambda: _handed(description))
    return guarded(place, lambda: _written(description))


def _written(description: Mapping[str, Any]) -> Rust:
    from tokenizers import Tokenizer as Rust

    return Rust.from_str(json.dumps(description, ensure_ascii=False))


def _handed(description: Mapping[str, Any]) -> Rust:
    """Make the same without writing a large table as JSON and reading it again: a third of the time."""
    from tokenizers.models import BPE

    model = description["model"]
    lines = [m for m in model["merges"] if not (isinstance(m, str) and m.startswith("#version"))]
    merges: Any = [tuple(m.split(" ") if isinstance(m, str) else m) for m in lines]
    made = _written(dict(description) | {"model": {"type": "BPE", "vocab": {}, "merges": []}})
    options = {key: model[key] for key in _OPTIONS & model.keys() if model[key] is not None}
    made.model = BPE(model["vocab"], merges, **options)
    return made


def describe(rust: Rust) -> Json:
    """The contents of the tokenizer.json that `rust` would write."""
    return json.loads(rust.to_str())


def parse(place: str, text: str | bytes) -> Json:
    """Read JSON that a stranger wrote: an object, no key twice, no NaN, no bottomless nesting."""
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError as error:
        raise TerakoyaError(place, "is nested too deeply") from error
    except ValueError as error:
        raise TerakoyaError(place, f"is not proper JSON: {error}") from error
    if not isinstance(value, dict):
        raise TerakoyaError(place, "must hold a JSON object", given=type(value).__name__)
    return value


def _once(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [k for k, _ in pairs]
        raise ValueError(f"key {next(k for k in names if names.count(k) > 1)!r} stands twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number here")


def utf8(place: str, text: str) -> None:
    """Refuse text that is no Unicode: a lone surrogate has no UTF-8 form."""
    if not isinstance(text, str):
        raise TerakoyaError(place, "must be text", given=type(text).__name__)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        bad = f"U+{ord(text[error.start]):04X}"
        raise TerakoyaError(
            place, f"holds the lone surrogate {bad} at character {error.start}; that is no text"
        ) from None
