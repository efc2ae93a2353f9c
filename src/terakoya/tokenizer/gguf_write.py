"""A tokenizer as GGUF metadata (`tokenizer.ggml.*`), which llama.cpp reads: byte-level BPE, the inverse of `gguf`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from terakoya.errors import TerakoyaError
from terakoya.tokenizer.core import Tokenizer
from terakoya.tokenizer.pattern import GPT2, LLAMA3, QWEN2
from terakoya.tokenizer.rust import Json
from terakoya.tokenizer.sentencepiece import CONTROL, NORMAL, USER
from terakoya.tokenizer.templates import TEMPLATES, to_jinja

_KEY = "tokenizer.ggml."
_UNUSED = 5  # llama.cpp's kind of pieces that no text has
# How words are cut -> the name llama.cpp has for it (llama-vocab.cpp).
_NAMES: Mapping[tuple[str, ...], str] = {
    (GPT2,): "gpt-2",
    ("digits", GPT2): "smollm",
    (LLAMA3,): "llama-bpe",
    (QWEN2,): "qwen2",
}


def to_gguf(tokenizer: Tokenizer, vocab: int) -> dict[str, Any]:
    """Return the metadata of a tokenizer, filled up to `vocab` pieces.

    Raise TerakoyaError for tokenizers that llama.cpp would not cut text by in the same way.
    """
    description = tokenizer.description()
    model = description["model"]
    steps = _steps(description)
    if model.get("type") != "BPE" or steps is None or description.get("normalizer"):
        raise _unknown(tokenizer, f"a {model.get('type')} model with its own rules")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    pre = _NAMES.get(steps) or ("gpt-2" if not merges else None)  # without merges every byte stands alone
    if pre is None:
        raise _unknown(tokenizer, "a pattern of its own")
    tokens, types = _pieces(tokenizer, description, vocab)
    out: dict[str, Any] = {
        f"{_KEY}model": "gpt2", f"{_KEY}pre": pre, f"{_KEY}tokens": tokens,
        f"{_KEY}token_type": np.array(types, np.int32), f"{_KEY}merges": merges,
    }  # fmt: skip
    for key, id in (("bos", tokenizer.bos), ("eos", tokenizer.eos), ("padding", tokenizer.pad)):
        if id is not None:
            out[f"{_KEY}{key}_token_id"] = id
    out[f"{_KEY}add_bos_token"] = False  # we say ourselves what stands before a text
    jinja = to_jinja(TEMPLATES[tokenizer.template]) if tokenizer.template else tokenizer.jinja
    return out | ({"tokenizer.chat_template": jinja} if jinja else {})


def _pieces(tokenizer: Tokenizer, description: Json, vocab: int) -> tuple[list[str], list[int]]:
    if tokenizer.vocab_size > vocab:
        raise TerakoyaError("tokenizer", f"has {tokenizer.vocab_size} pieces; the model {vocab}")
    tokens, types = [f"[PAD{i}]" for i in range(vocab)], [_UNUSED] * vocab
    for piece, id in description["model"]["vocab"].items():
        tokens[id], types[id] = piece, NORMAL
    for token in description["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["id"] in tokenizer.specials.values() else USER
    return tokens, types


def _steps(description: Json) -> tuple[str, ...] | None:
    """Return how text is cut before bytes are joined; None: not as byte-level BPE does."""
    pre = description.get("pre_tokenizer") or {}
    found: list[str] = []
    for step in pre.get("pretokenizers", [pre]):
        match step:
            case {"type": "Digits", "individual_digits": True}:
                found.append("digits")
            case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
                found.append(regex)
            case {"type": "ByteLevel", "add_prefix_space": False}:
                return (*found, GPT2) if step.get("use_regex", True) else tuple(found)
            case _:
                return None
    return None


def _unknown(tokenizer: Tokenizer, what: str) -> TerakoyaError:
    return TerakoyaError(
        f"tokenizer {tokenizer.name}", f"cuts text by {what}, for which llama.cpp has no name",
        allowed=sorted(_NAMES.values()),
    )  # fmt: skip
