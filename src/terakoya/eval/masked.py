"""Scoring text with a masked model: pseudo-log-likelihood (Salazar 2019). Not a likelihood: do not mix the two."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.objectives.sight import guessed
from terakoya.train.objectives.signs import Signs


@dataclass(frozen=True)
class Pseudo:
    """Sums over all tokens of a text, each hidden in turn while all others are seen."""

    nats: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """Pseudo-perplexity: exp of the mean; lower than a causal model's on equal terms, for it sees both sides."""
        return math.exp(min(self.nats / max(self.tokens, 1), 700.0))

    @property
    def bits_per_byte(self) -> float:
        """The same in bits per byte; no code could reach it."""
        return self.nats / math.log(2) / max(self.bytes, 1)


@torch.inference_mode()
def pseudo(model: Model, tokenizer: Tokenizer, texts: Iterable[str], *, window: int | None = None) -> Pseudo:
    """Hide each token once: Σ -log p(token | all others), texts in stretches of `window` tokens, each for itself."""
    if model.spec.sort != "encoder":
        raise TerakoyaError("model", "is scored by its likelihood, not by masks", given=model.spec.sort)
    if model.spec.head.scores != "words":
        raise TerakoyaError("model", "names no hidden words, so there is nothing to score")
    signs = Signs(tokenizer)
    before, after = signs.frame
    room = model.spec.context - len(before) - len(after)
    window = min(room, 256) if window is None else window
    if not 1 <= window <= room:
        raise TerakoyaError("window", given=window, allowed=f"1 to {room}")
    nats, tokens, size = 0.0, 0, 0
    device = next(model.parameters()).device
    for text in texts:
        ids = tokenizer.encode(text)
        size += len(text.encode())
        for begin in range(0, len(ids), window):
            part = ids[begin : begin + window]
            row = torch.tensor([*before, *part, *after], device=device)
            at = torch.arange(len(part), device=device) + len(before)
            for some in at.split(max(1, 8192 // len(row))):
                rows = row.repeat(len(some), 1)
                rows[torch.arange(len(some)), some] = signs.mask
                gaps = torch.zeros_like(rows, dtype=torch.bool)
                gaps[torch.arange(len(some)), some] = True
                hidden = guessed(model, rows.flatten(), [len(row)] * len(some), gaps.flatten())
                scores = model.head(hidden).float()
                nats += torch.nn.functional.cross_entropy(scores, row[some], reduction="sum").item()
            tokens += len(part)
    if not tokens:
        raise TerakoyaError("text", "has nothing to score")
    return Pseudo(nats, tokens, size)
