"""Texts as a model reads them: one or two between their marks, and which characters each token stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Tokenizer
from terakoya.train.objectives.signs import Signs

HINT = "raise rows.context, or leave such rows out with data.overlong = drop"  # to those who tune


@dataclass(frozen=True)
class Read:
    """Token ids (n,), which of the two texts each belongs to (n,) int64, and where the first text begins."""

    ids: np.ndarray
    segments: np.ndarray
    begin: int


class Reader:
    """[CLS] A [SEP], or [CLS] A [SEP] B [SEP], in the vocabulary's own marks (Devlin 2018)."""

    def __init__(self, tokenizer: Tokenizer, context: int, hint: str = HINT) -> None:
        self.tokenizer, self.context, self.signs, self.hint = tokenizer, context, Signs(tokenizer), hint

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode texts that anyone may have written."""
        return [np.array(ids, np.int64) for ids in self.tokenizer.encode_batch(list(texts))]

    def read(self, parts: Sequence[np.ndarray], place: str) -> Read:
        """Frame one or two encoded texts; an error where they do not fit."""
        before, after = (np.array(ids, np.int64) for ids in self.signs.frame)
        gap = after if len(after) else before
        pieces = [before, parts[0], after] if len(parts) == 1 else [before, parts[0], gap, parts[1], after]
        ids = np.concatenate(pieces)
        if len(ids) > self.context:
            problem = f"has {len(ids)} tokens, more than the context of {self.context}"
            raise Overlong(place, problem, hint=self.hint)
        second = len(before) + len(parts[0]) + len(gap) if len(parts) > 1 else len(ids)
        return Read(ids, (np.arange(len(ids)) >= second).astype(np.int64), len(before))


class Overlong(TerakoyaError):
    """A text does not fit the context."""


def offsets(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray, text: str, place: str) -> list[tuple[int, int]]:
    """Return the characters (start, end) of each token; a vocabulary that rewrites its text is an error."""
    data, at, found = text.encode(), 0, []
    chars = np.cumsum([0, *(((b & 0xC0) != 0x80) for b in data)])  # characters begun before each byte
    for id in ids:
        piece = tokenizer.token_bytes(int(id))
        where = data.find(piece, at, at + len(piece) + 16)
        if where < 0 and (bare := piece.strip()):
            piece, where = bare, data.find(bare, at, at + len(bare) + 16)
        if where < 0:
            raise TerakoyaError(place, "cannot be followed token by token: the vocabulary rewrites its text")
        end = where + len(piece)
        found.append((int(chars[where]), int(chars[end])))
        at = end
    return found
