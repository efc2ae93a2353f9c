"""An n-gram model as a folder: counts as safetensors, settings as JSON, the tokenizer beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from torch import Tensor

from terakoya.errors import TerakoyaError
from terakoya.ngram.model import NGram, levels_of
from terakoya.ngram.smooth import Smoothing
from terakoya.tokenizer import Tokenizer
from terakoya.zoo.convert import read_json
from terakoya.zoo.weights import open_weights

CONFIG, MODEL_TYPE = "config.json", "ngram"


def config(order: int, smoothing: Smoothing, vocab: int) -> bytes:
    """Write the settings."""
    said = {"model_type": MODEL_TYPE, "order": order, "smoothing": smoothing, "vocab_size": vocab}
    return (json.dumps(said, indent=2) + "\n").encode()


def open_ngram(folder: Path) -> tuple[NGram, Tokenizer]:
    """Read a model and its tokenizer."""
    said = read_json(folder / CONFIG)
    if said.get("smoothing") not in get_args(Smoothing):
        raise TerakoyaError(str(folder / CONFIG), given=said.get("smoothing"), allowed=get_args(Smoothing))
    weights = open_weights(folder)
    parts: dict[str, Tensor] = {name: weights.get(name) for name in weights}
    levels = levels_of(parts, str(folder))
    tokenizer = Tokenizer.load(folder)
    given = (said.get("order"), said.get("vocab_size"), tokenizer.vocab_size)
    held = (len(levels), len(levels[0].tokens), len(levels[0].tokens))
    if given != held:
        raise TerakoyaError(str(folder), "order and vocabulary do not fit the counts", given=given, allowed=held)
    return NGram(levels, said["smoothing"]), tokenizer
