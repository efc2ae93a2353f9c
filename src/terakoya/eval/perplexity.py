"""How well a model predicts text: nats per token, perplexity, bits per byte; and what simpler means reach."""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from terakoya.data import Shards
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer


@dataclass(frozen=True)
class Score:
    """Sums over all scored tokens of a text."""

    nats: float
    tokens: int
    bytes: int  # UTF-8 length of the scored text

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / max(self.bytes, 1)

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nats / max(self.tokens, 1), 700.0))


@torch.inference_mode()
def score(model: Model, tokenizer: Tokenizer, texts: Iterable[str], *, window: int | None = None) -> Score:
    """Score texts: every token once, each text alone, long ones in windows that overlap by half.

    `window` is the most tokens a prediction may look at; default: the model's context, at most 2048.
    """
    if model.spec.encoder is not None:
        problem = "writes one text from another, so a text by itself has no likelihood"
        raise TerakoyaError("model", problem, given=model.spec.sort)
    window = min(model.spec.context, 2048) if window is None else window
    if not 2 <= window <= model.spec.context:
        raise TerakoyaError("window", given=window, allowed=f"2 to the model's context, {model.spec.context}")
    prefix, suffix = tokenizer.wrap()
    nats, tokens, size = 0.0, 0, 0
    for text in texts:
        ids = [*prefix, *tokenizer.encode(text), *suffix]
        for begin, end, first in windows(len(ids), window):
            piece = torch.tensor(ids[begin:end], device=next(model.parameters()).device)
            hidden = model(piece[:-1], Packed([len(piece) - 1], piece.device))[first - begin - 1 :]
            logits = model.head(hidden)  # of the scored tokens only: with a large vocabulary this is most of the work
            losses = torch.nn.functional.cross_entropy(logits.float(), piece[first - begin :], reduction="none")
            nats += losses.double().sum().item()
            tokens += end - first
        size += len(text.encode()) - (0 if prefix else len(tokenizer.token_bytes(ids[0]) if ids else b""))
    if not tokens:
        raise TerakoyaError("text", "has nothing to score", hint="give a text of two tokens or more")
    return Score(nats, tokens, size)


def windows(length: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, end, first scored token) so that each token but the text's first is scored once."""
    first = 1
    while first < length:
        begin = 0 if first == 1 else max(0, first - window // 2)
        end = min(length, begin + window + 1)
        yield begin, end, first
        first = end


def uniform_bytes() -> float:
    """Bits per byte of knowing nothing."""
    return 8.0


def unigram(train: Shards, heldout: Shards) -> float:
    """Bits per byte of held-out text under the token frequencies of the training text, one added to each count."""
    counts = np.ones(len(train.token_bytes), np.float64)
    counts += np.bincount(_all(train), minlength=len(counts))
    ids = _all(heldout)
    return float(-np.log2(counts / counts.sum())[ids].sum() / max(heldout.text_bytes, 1))


def compressed(data: bytes, method: str) -> float:
    """Bits per byte of `zlib -9` or `lzma -9e`, on the held-out text alone."""
    packed = zlib.compress(data, 9) if method == "zlib" else lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
    return 8 * len(packed) / max(len(data), 1)


def _all(shards: Shards) -> np.ndarray:
    return shards.slice(0, shards.tokens).astype(np.int64)
