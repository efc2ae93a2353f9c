"""The tokenizer that user text goes through: the same pieces, but no control token exists in it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from terakoya.errors import TerakoyaError
from terakoya.tokenizer.pattern import check_pattern
from terakoya.tokenizer.pieces import parts
from terakoya.tokenizer.rust import Json, utf8

MOST_IDS = 1 << 22  # ids are a table; the largest published vocabularies stay under 300,000
_MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")


def vocabulary(place: str, description: Json) -> dict[int, str]:
    """Every id and its piece, model and added tokens together.

    Raises TerakoyaError where the file contradicts itself (one id for two pieces, ids out of all bounds).
    """
    model = description.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") not in _MODELS:
        given = model.get("type") if isinstance(model, dict) else model
        raise TerakoyaError(f"{place} model.type", "is no model we know", given=given, allowed=_MODELS)
    rows = _model_pieces(place, model)
    found: dict[int, str] = {}
    if _orderly(rows):
        found = {id: piece for piece, id in rows}
    else:  # one by one, to say what is wrong
        for piece, id in rows:
            _put(place, found, id, piece)
    for token in description.get("added_tokens") or []:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise TerakoyaError(f"{place} added_tokens", "must be objects with a content", given=token)
        _put(place, found, token.get("id"), token["content"])
    if not found:
        raise TerakoyaError(f"{place} model.vocab", "is empty")
    utf8(f"{place} vocabulary", "".join(found.values()))
    return found


def _model_pieces(place: str, model: Json) -> list[tuple[Any, Any]]:
    vocab = model.get("vocab")
    if model.get("type") == "Unigram":
        if not isinstance(vocab, list) or not all(isinstance(row, list) and len(row) == 2 for row in vocab):
            raise TerakoyaError(f"{place} model.vocab", "must be a list of [piece, score]")
        return [(row[0], id) for id, row in enumerate(vocab)]
    if not isinstance(vocab, dict):
        raise TerakoyaError(f"{place} model.vocab", "must map pieces to ids")
    return list(vocab.items())


def _orderly(rows: list[tuple[Any, Any]]) -> bool:
    """Whether these are pieces with ids within bounds, none of them twice."""
    ids = {id for _, id in rows if type(id) is int}
    pieces = all(type(piece) is str for piece, _ in rows)
    return pieces and len(ids) == len(rows) > 0 and min(ids) >= 0 and max(ids) < MOST_IDS


def _put(place: str, found: dict[int, str], id: Any, piece: Any) -> None:
    if not isinstance(piece, str) or not isinstance(id, int) or isinstance(id, bool) or not 0 <= id < MOST_IDS:
        raise TerakoyaError(f"{place} vocabulary", f"gives {piece!r} the id {id!r}; allowed: 0 to {MOST_IDS - 1}")
    if found.setdefault(id, piece) != piece:
        raise TerakoyaError(f"{place} vocabulary", f"gives id {id} to {found[id]!r} and to {piece!r}")


def plain(place: str, description: Json, ids: dict[int, str], hidden: Collection[str], unknown: str | None) -> Json:
    """Return `description` without the `hidden` pieces (ids keep their numbers) and without post-processing.

    `unknown` stays as the model's answer to what it cannot spell, but its name in a text is only text.
    """
    check_patterns(place, description)
    gone = {*hidden, unknown} - {None}
    kept = [t for t in description.get("added_tokens") or [] if t["content"] not in gone]
    inside = {t["content"]: t["id"] for t in kept}
    model = dict(description["model"])
    if model["type"] == "Unigram":
        model["vocab"] = _blanked(model, ids, gone)
    else:
        vocab = {piece: id for piece, id in model["vocab"].items() if piece not in hidden}
        model["vocab"] = vocab | inside
    if model["type"] == "BPE":
        _check_prefix(place, model)
        model["merges"] = [m for m in model["merges"] if _joined(m) not in gone]
    bytes_in_reach = model["type"] == "Unigram" and model.get("byte_fallback")
    return description | {
        "model": model,
        "added_tokens": kept,
        "post_processor": None,
        "pre_tokenizer": _apart(description.get("pre_tokenizer"))
        if bytes_in_reach
        else description.get("pre_tokenizer"),
    }


def inner(description: Json) -> tuple[Json, str]:
    """Return the description for text that does not open a segment, and when the opening space is put.

    "never": no such space. "first": only at the start of all. "always": also after each control token.
    """
    scheme = "never"
    found: list[tuple[str, Json | None]] = []
    for key in ("normalizer", "pre_tokenizer"):
        steps = []
        for step in parts(description.get(key)):
            if step["type"] == "Prepend":
                scheme = "always"
                continue
            if step["type"] == "Metaspace":
                asked = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
                scheme = asked if asked != "never" else scheme
                step = {k: v for k, v in step.items() if k != "add_prefix_space"} | {"prepend_scheme": "never"}
            if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
                scheme, step = "always", step | {"add_prefix_space": False}
            steps.append(step)
        found.append((key, _sequence(key, steps)))
    return description | dict(found), scheme


def check_patterns(place: str, description: Json) -> None:
    """Refuse patterns in normalizer and pre-tokenizer whose matching could explode."""
    for key in ("normalizer", "pre_tokenizer"):
        for step in parts(description.get(key)):
            pattern = step.get("pattern")
            if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
                check_pattern(f"{place} {key}", pattern["Regex"])


def _check_prefix(place: str, model: Json) -> None:
    """The library cuts this prefix off each right side unseen, and kills the process where it is not there."""
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model["merges"] if prefix else ():
        right = merge[1] if isinstance(merge, list) else merge.partition(" ")[2]
        if not right.startswith(prefix):
            raise TerakoyaError(f"{place} merges", f"have a right side without the prefix {prefix!r}", given=merge)


def _joined(merge: Any) -> str:
    return "".join(merge) if isinstance(merge, list) else merge.replace(" ", "", 1)


def _blanked(model: Json, ids: dict[int, str], gone: Collection[str]) -> list[list[Any]]:
    """The Unigram table with the pieces of `gone` made empty: the trie never yields an empty piece."""
    rows = [["", 0.0] if row[0] in gone else row for row in model["vocab"]]
    for id in range(len(rows), max(ids) + 1):
        piece = ids.get(id, "")
        rows.append(["" if piece in gone else piece, 0.0])
    return rows


def _apart(pre_tokenizer: Json | None) -> Json | None:
    """Cut a literal "<0x41>" in user text after its "<": it must not become the byte piece of that name."""
    cut = {"type": "Split", "pattern": {"Regex": "<(?=0x[0-9A-F]{2}>)"}, "behavior": "Isolated", "invert": False}
    return _sequence("pre_tokenizer", [*parts(pre_tokenizer), cut])


def _sequence(key: str, steps: list[Json]) -> Json | None:
    if len(steps) < 2:
        return steps[0] if steps else None
    inside = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}[key]
    return {"type": "Sequence", inside: steps}
