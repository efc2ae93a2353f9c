"""SentencePiece models: pieces with scores, read from a .model file and told to the Rust library."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from terakoya.errors import TerakoyaError
from terakoya.tokenizer.core import Tokenizer
from terakoya.tokenizer.plain import MOST_IDS
from terakoya.tokenizer.rust import Json
from terakoya.tokenizer.wire import fields

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_UNIGRAM, _BPE, _CHAR = 1, 2, 4
_COMPOSING = ("nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")


@dataclass(frozen=True)
class Piece:
    """One row of the vocabulary; its id is its place."""

    text: str
    score: float
    kind: int = NORMAL


@dataclass(frozen=True)
class Rules:
    """What SentencePiece does to a text before it looks for pieces."""

    prefix: bool = True  # put a space before the text
    collapse: bool = True  # drop outer spaces, one for many inside
    escape: bool = True  # write spaces as ▁
    charsmap: bytes = b""
    composing: bool = False  # the charsmap is a Unicode normal form


def read(place: str, data: bytes, name: str) -> Tokenizer:
    """Make a tokenizer of the bytes of a .model file (sentencepiece_model.proto)."""
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    rules = Rules()
    for number, value in fields(place, data):
        if number == 1:
            pieces.append(_piece(f"{place} piece {len(pieces)}", _message(place, value)))
            if len(pieces) > MOST_IDS:
                raise TerakoyaError(place, f"has more than {MOST_IDS} pieces")
        elif number == 2:
            trainer = dict(fields(f"{place} trainer", _message(place, value)))
        elif number == 3:
            rules = _rules(place, dict(fields(f"{place} normalizer", _message(place, value))))
    if not pieces:
        raise TerakoyaError(place, "is no SentencePiece model: it has no pieces")
    if trainer.get(24):
        raise TerakoyaError(
            place, "puts spaces at the end of words (treat_whitespace_as_suffix); that is not supported"
        )
    kind = trainer.get(3, _UNIGRAM)
    if kind not in (_UNIGRAM, _BPE, _CHAR):
        raise TerakoyaError(f"{place} model_type", "is not supported", given=kind, allowed=("unigram", "bpe", "char"))
    description = describe(place, pieces, rules, "Unigram" if kind == _UNIGRAM else "BPE", pairs=kind != _CHAR)
    named = {p.text: i for i, p in enumerate(pieces) if p.kind == CONTROL}
    bos, eos, pad = (
        named.get(_text(place, trainer[field]) if field in trainer else default)
        for field, default in ((46, "<s>"), (47, "</s>"), (48, "<pad>"))
    )
    return Tokenizer(description, name=name, bos=bos, eos=eos, pad=pad)


def describe(place: str, pieces: Sequence[Piece], rules: Rules, model: str, *, pairs: bool = True) -> Json:
    """The tokenizer.json of a vocabulary of scored pieces.

    One known difference from SentencePiece: with `prefix`, text after a user-defined piece gets its own opening space
    (llama.cpp and transformers have it so too).
    """
    unknown = [i for i, p in enumerate(pieces) if p.kind == UNKNOWN]
    if len(unknown) != 1:
        raise TerakoyaError(place, f"must have one unknown piece, it has {len(unknown)}")
    kinds = {p.kind for p in pieces}
    make: Callable[[Sequence[Piece], int, bool], Json] = _unigram if model == "Unigram" else _bpe
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    added = [
        {"id": i, "content": p.text, **flags, "normalized": p.kind == USER and "▁" in p.text, "special": p.kind != USER}
        for i, p in enumerate(pieces)
        if p.kind in (CONTROL, USER, UNKNOWN)
    ]
    decoders: list[Json] = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}] if rules.escape else []
    decoders += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if rules.prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _normalizer(rules),
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": make(pieces, unknown[0], pairs) | {"byte_fallback": BYTE in kinds},
    }


def _unigram(pieces: Sequence[Piece], unknown: int, pairs: bool) -> Json:
    # The library derives the cost of an unknown character from the lowest score: bytes must not lower or raise it.
    low = min((p.score for p in pieces if p.kind == NORMAL), default=0.0)
    vocab = [[p.text, low if p.kind == BYTE else p.score] for p in pieces]
    return {"type": "Unigram", "unk_id": unknown, "vocab": vocab}


def _bpe(pieces: Sequence[Piece], unknown: int, pairs: bool) -> Json:
    vocab = {p.text: i for i, p in enumerate(pieces)}
    return {
        "type": "BPE",
        "unk_token": pieces[unknown].text,
        "fuse_unk": True,
        "vocab": vocab,
        "merges": _merges(pieces) if pairs else [],
    }


def _merges(pieces: Sequence[Piece]) -> list[list[str]]:
    """Every way to join two pieces into a third, the best score of the third first.

    SentencePiece keeps no merges: it joins the neighbours whose union scores best, the leftmost first.
    """
    places = {p.text: i for i, p in enumerate(pieces) if p.kind == NORMAL}
    found: list[tuple[float, int, int, str, str]] = []
    for text, at in places.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in places and right in places:
                found.append((-pieces[at].score, places[left], places[right], left, right))
    found.sort()
    return [[left, right] for *_, left, right in found]


def _normalizer(rules: Rules) -> Json | None:
    steps: list[Json] = []
    if rules.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(rules.charsmap).decode()})
        if rules.composing:
            # The library looks at short clusters only, and leaves ﾊﾞ as ハ and a mark; SentencePiece composes it.
            steps.append({"type": "NFC"})
    if rules.collapse:
        steps.append({"type": "Replace", "pattern": {"Regex": "^ +| +$"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if rules.prefix:
        steps.append({"type": "Prepend", "prepend": "▁" if rules.escape else " "})
    if rules.escape:
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _piece(place: str, data: bytes) -> Piece:
    row: dict[int, Any] = {2: 0.0, 3: NORMAL} | dict(fields(place, data))
    score, kind = row[2], row[3]
    if not isinstance(score, float) or not math.isfinite(score):
        raise TerakoyaError(place, "has a score that is no number", given=score)
    if kind not in (NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE):
        raise TerakoyaError(place, "is of no known kind", given=kind)
    return Piece(_text(place, row.get(1)), score, kind)


def _rules(place: str, spec: dict[int, Any]) -> Rules:
    charsmap = spec.get(2, b"")
    if not isinstance(charsmap, bytes):
        raise TerakoyaError(f"{place} normalizer", "has a charsmap that is no bytes")
    name = _text(place, spec[1]) if 1 in spec else ""
    return Rules(
        prefix=bool(spec.get(3, 1)),
        collapse=bool(spec.get(4, 1)),
        escape=bool(spec.get(5, 1)),
        charsmap=charsmap,
        composing=name in _COMPOSING,
    )


def _message(place: str, value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TerakoyaError(place, "is corrupt: a number where a message belongs")
    return value


def _text(place: str, value: object) -> str:
    try:
        return _message(place, value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TerakoyaError(place, "is corrupt: a name that is no UTF-8") from error
