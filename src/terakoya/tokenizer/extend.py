"""More pieces for a vocabulary that exists, learnt from texts of a new language; what it had stays as it was.

Merges go on where the old ones stop: the texts are cut by the old tokenizer, and the pairs of old pieces that stand
together most often become new pieces. The new merges come after all old ones, so every text is cut as before and then
joined further, and what has no new piece in it keeps its very ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from terakoya.errors import TerakoyaError
from terakoya.tokenizer.core import Tokenizer
from terakoya.tokenizer.rust import Json, guarded, utf8

FIRST = 0x10000  # ids are told to the trainer as characters from here on; none of them is a space
AT_ONCE = 256  # texts cut together


@dataclass(frozen=True)
class Extended:
    """The larger tokenizer; `parts` are the old ids that each new id stands for."""

    tokenizer: Tokenizer
    parts: Mapping[int, tuple[int, ...]]


def extend(tokenizer: Tokenizer, texts: Iterable[str], pieces: int, *, once: int = 2) -> Extended:
    """Add up to `pieces` pieces to a byte-level BPE tokenizer; `once` is how often a pair must occur at least.

    Raises TerakoyaError where the tokenizer is of another kind, or the texts have nothing to learn from.
    """
    if pieces < 1 or once < 1:
        raise TerakoyaError("pieces", given=(pieces, once), allowed="1 or more, each seen once or more")
    model = _byte_level(tokenizer)
    merges = _learnt(tokenizer, texts, pieces, once)
    description, parts = _joined(tokenizer, model, merges, pieces)
    if not parts:
        raise TerakoyaError("texts", "hold no pair of pieces that occurs often enough", allowed=f"{once} times or more")
    made = Tokenizer(
        description, name=tokenizer.name, bos=tokenizer.bos, eos=tokenizer.eos, pad=tokenizer.pad,
        template=tokenizer.template, jinja=tokenizer.jinja,
    )  # fmt: skip
    return Extended(made, parts)


def _byte_level(tokenizer: Tokenizer) -> Json:
    description = tokenizer.description()
    model, steps = description["model"], description.get("pre_tokenizer") or {}
    kinds = {step.get("type") for step in steps.get("pretokenizers") or [steps]}
    if model.get("type", "BPE") != "BPE" or "ByteLevel" not in kinds or not model.get("merges"):
        raise TerakoyaError(tokenizer.name, "cannot be extended: it is no byte-level BPE tokenizer with merges",
                            given=model.get("type", "BPE"))  # fmt: skip
    return model


def _words(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[str]:
    """Yield each text as words of private characters, one a piece, with spaces where no merge may cross."""
    held: list[str] = []

    def cut() -> Iterator[str]:
        found = guarded(tokenizer.name, lambda: tokenizer._plain.encode_batch(held, add_special_tokens=False))
        for encoding in found:
            out, before = [], None
            for id, word in zip(encoding.ids, encoding.word_ids, strict=True):
                out += [" "] if word != before else []
                out.append(chr(FIRST + id))
                before = word
            yield "".join(out)

    for text in texts:
        utf8("training text", text)
        held.append(text)
        if len(held) == AT_ONCE:
            yield from cut()
            held.clear()
    yield from cut()


def _learnt(tokenizer: Tokenizer, texts: Iterable[str], pieces: int, once: int) -> list[tuple[str, str]]:
    from tokenizers import Tokenizer as Rust
    from tokenizers import models, pre_tokenizers, trainers

    rust = Rust(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    room = pieces + pieces // 8 + 64  # some of what is learnt exists already
    trainer = trainers.BpeTrainer(vocab_size=tokenizer.vocab_size + room, min_frequency=once, show_progress=False)
    guarded("training", lambda: rust.train_from_iterator(_words(tokenizer, texts), trainer=trainer))
    found = json.loads(rust.to_str())["model"]["merges"]
    return [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in found]


def _joined(
    tokenizer: Tokenizer, model: Json, merges: Sequence[tuple[str, str]], pieces: int
) -> tuple[Json, dict[int, tuple[int, ...]]]:
    """Write merges of private characters as merges of pieces; a piece that exists is left as it is reached today."""
    names = {id: piece for piece, id in model["vocab"].items()}
    vocab, pairs = dict(model["vocab"]), list(model["merges"])
    plain = bool(pairs) and isinstance(pairs[0], str)
    spelt = {t["content"] for t in tokenizer.description()["added_tokens"]}
    known: dict[str, tuple[str, tuple[int, ...]]] = {}

    def part(text: str) -> tuple[str, tuple[int, ...]] | None:
        if len(text) == 1:
            id = ord(text) - FIRST
            return (names[id], (id,)) if id in names else None
        return known.get(text)

    parts: dict[int, tuple[int, ...]] = {}
    for a, b in merges:
        left, right = part(a), part(b)
        if left is None or right is None:
            continue
        piece, ids = left[0] + right[0], left[1] + right[1]
        if piece in vocab or piece in spelt:
            continue
        id = tokenizer.vocab_size + len(parts)
        known[a + b], vocab[piece], parts[id] = (piece, ids), id, ids
        pairs.append(f"{left[0]} {right[0]}" if plain else [left[0], right[0]])
        if len(parts) == pieces:
            break
    description = tokenizer.description()
    description["model"] = model | {"vocab": vocab, "merges": pairs}
    return description, parts
