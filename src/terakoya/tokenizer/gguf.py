"""The tokenizer inside a GGUF file: its `tokenizer.ggml.*` metadata told to the Rust library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from terakoya.errors import TerakoyaError, nearest
from terakoya.tokenizer.core import Tokenizer
from terakoya.tokenizer.pattern import GPT2, LLAMA3, QWEN2
from terakoya.tokenizer.rust import Json, understood
from terakoya.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, USER, Piece, Rules, describe
from terakoya.tokenizer.templates import recognise

_KEY = "tokenizer.ggml."
# Names that llama.cpp gives to pre-tokenizers (llama-vocab.cpp), by what they do.
_PRE: Mapping[str, tuple[str, ...]] = {
    "gpt2": ("gpt-2", "gpt2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "mpt", "olmo", "trillion"),
    "digits": ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "llama3": ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "dbrx", "smaug-bpe"),
    "qwen2": ("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"),
}
_KINDS = ("gpt2", "llama")


def from_gguf(metadata: Mapping[str, Any], *, name: str | None = None) -> Tokenizer:
    """Make a tokenizer of GGUF metadata: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE by scores)."""
    return understood("tokenizer.ggml", lambda: _read(metadata, name))


def _read(metadata: Mapping[str, Any], name: str | None) -> Tokenizer:
    kind = metadata.get(f"{_KEY}model")
    if kind not in _KINDS:
        raise TerakoyaError(f"{_KEY}model", "is not supported", given=kind, allowed=_KINDS)
    tokens = [_word(t) for t in _rows(metadata, "tokens")]
    types = [int(t) for t in _rows(metadata, "token_type", len(tokens))] or [NORMAL] * len(tokens)
    make = _byte_level if kind == "gpt2" else _scored
    source = metadata.get("tokenizer.chat_template")
    source = source if isinstance(source, str) else None
    return Tokenizer(
        make(metadata, tokens, types),
        name=name or str(metadata.get("general.basename") or metadata.get("general.name") or kind),
        bos=_id(metadata, "bos_token_id", len(tokens)),
        eos=_id(metadata, "eos_token_id", len(tokens)),
        pad=_id(metadata, "padding_token_id", len(tokens)),
        template=recognise(source),
        jinja=source,
    )


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Json:
    pre = metadata.get(f"{_KEY}pre")
    style = next((style for style, names in _PRE.items() if pre in names), None)
    if style is None:
        names = [n for group in _PRE.values() for n in group]
        raise TerakoyaError(f"{_KEY}pre", "is not known", given=pre, allowed=names, hint=nearest(str(pre), names))
    merges = _merges(_rows(metadata, "merges"))
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": tokens[i], **flags, "special": t in (CONTROL, UNKNOWN)}
            for i, t in enumerate(types)
            if t in (CONTROL, USER, UNKNOWN)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*_splits(style), level]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {
            "type": "BPE",
            "vocab": _once(tokens),
            "merges": merges,
            "ignore_merges": style == "llama3",
        },
    }


def _splits(style: str) -> list[Json]:
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    pattern = {"gpt2": GPT2, "digits": GPT2, "llama3": LLAMA3, "qwen2": QWEN2}[style]
    digits = [{"type": "Digits", "individual_digits": True}] if style == "digits" else []
    return [*digits, split | {"pattern": {"Regex": pattern}}]


def _scored(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Json:
    scores = [float(s) for s in _rows(metadata, "scores", len(tokens))]
    if not scores or not all(map(math.isfinite, scores)):
        raise TerakoyaError(f"{_KEY}scores", "are needed, one finite number for each token")
    _once(tokens)
    pieces = [Piece(*row) for row in zip(tokens, scores, types, strict=True)]
    unknown = _id(metadata, "unknown_token_id", len(tokens))
    if unknown is None and UNKNOWN not in types:
        unknown = 0
    if unknown is not None:
        pieces = [_kinded(p, i == unknown) for i, p in enumerate(pieces)]
    prefix = bool(metadata.get(f"{_KEY}add_space_prefix", True))
    collapse = bool(metadata.get(f"{_KEY}remove_extra_whitespaces", False))
    if any(p.kind == BYTE and len(p.text) != 6 for p in pieces):
        raise TerakoyaError(f"{_KEY}tokens", "has a byte piece that is not written <0x00>")
    return describe(f"{_KEY}tokens", pieces, Rules(prefix=prefix, collapse=collapse), "BPE")


def _kinded(piece: Piece, unknown: bool) -> Piece:
    kind = UNKNOWN if unknown else (CONTROL if piece.kind == UNKNOWN else piece.kind)
    return Piece(piece.text, piece.score, kind)


def _rows(metadata: Mapping[str, Any], key: str, length: int | None = None) -> list[Any]:
    """An array of the metadata as a list; with `length` it may be absent but not of another length."""
    rows = metadata.get(f"{_KEY}{key}")
    if rows is None:
        if length is None:
            raise TerakoyaError(f"{_KEY}{key}", "is missing")
        return []
    found = rows.tolist() if hasattr(rows, "tolist") else list(rows)
    if length is not None and len(found) != length:
        raise TerakoyaError(f"{_KEY}{key}", f"has {len(found)} rows; there are {length} tokens")
    return found


def _word(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "replace")
    raise TerakoyaError(f"{_KEY}tokens", "must be text", given=type(value).__name__)


def _merges(rows: Sequence[Any]) -> list[list[str]]:
    """Cut every merge at its first space; a loop with names for errors only where there is one."""
    found = [row.split(" ", 1) for row in rows if type(row) is str]
    if len(found) == len(rows) and all(len(pair) == 2 and pair[0] and pair[1] for pair in found):
        return found
    return [_merge(i, row) for i, row in enumerate(rows)]


def _merge(at: int, row: Any) -> list[str]:
    left, space, right = _word(row).partition(" ")
    if not (left and space and right):
        raise TerakoyaError(f"{_KEY}merges[{at}]", "must be two pieces with a space between", given=row)
    return [left, right]


def _once(tokens: Sequence[str]) -> dict[str, int]:
    found = {t: i for i, t in enumerate(tokens)}
    if len(found) != len(tokens):
        twice = next(t for i, t in enumerate(tokens) if found[t] != i)
        raise TerakoyaError(f"{_KEY}tokens", "stands twice", given=twice)
    return found


def _id(metadata: Mapping[str, Any], key: str, count: int) -> int | None:
    value = metadata.get(f"{_KEY}{key}")
    if value is None:
        return None
    if isinstance(value, bool) or not 0 <= int(value) < count:
        raise TerakoyaError(f"{_KEY}{key}", f"is outside the vocabulary (0 to {count - 1})", given=value)
    return int(value)
