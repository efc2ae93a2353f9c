"""Pictures with captions: read from files, dealt out as batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from terakoya.data.order import epoch_seed, permute
from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Tokenizer
from terakoya.train.objectives.rows import Piece, Rich, laid
from terakoya.train.pairs import fields
from terakoya.zoo.picture import Preparation, opened, prepared


@dataclass(frozen=True)
class CaptionFile:
    """A .jsonl(.zst) file whose rows hold the path of a picture, from where the file lies, and what it shows."""

    path: Path = Path("captions.jsonl")
    image: str = "image"
    text: str = "text"
    longest: int = 60  # tokens; pictures with longer captions are left out, and counted
    holdout: float = 0.05  # share of the pictures never trained on
    limit: int | None = None  # rows read at most

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 1:
            raise TerakoyaError("captions.holdout", given=self.holdout, allowed="more than 0, less than 1")
        for name in ("longest", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TerakoyaError(f"captions.{name}", given=value, allowed="1 or more")


@dataclass(frozen=True)
class Row:
    """A picture on disk, the hash of its bytes, and its caption."""

    image: Path
    digest: bytes
    text: str


def rows(plan: CaptionFile) -> Iterator[Row]:
    """Read the rows; a picture that cannot be opened is named, before anything is trained."""
    for place, (image, text) in fields(plan.path, (plan.image, plan.text), plan.limit):
        file = plan.path.parent / image
        try:
            digest = hashlib.blake2b(file.read_bytes(), digest_size=8).digest()
        except OSError as error:
            raise TerakoyaError(place, f"names a picture that cannot be read: {file}: {error.strerror}") from None
        opened(file)
        yield Row(file, digest, text.strip())


def held_out(row: Row, share: float) -> bool:
    """Say on which side a picture is, by its bytes: always the same, whatever it is called."""
    return int.from_bytes(row.digest, "little") < share * 2**64


@dataclass(frozen=True)
class Captions:
    """Pictures and the ids of their captions, each ended by the token that ends a text."""

    rows: tuple[Row, ...]
    ids: tuple[tuple[int, ...], ...]
    how: Preparation

    @property
    def fingerprint(self) -> str:
        """A hash of pictures and captions, and of their order."""
        said = "".join(f"{row.digest.hex()} {ids}\n" for row, ids in zip(self.rows, self.ids, strict=True))
        return hashlib.sha256(said.encode("ascii")).hexdigest()

    def chosen(self, step: int, count: int, seed: int) -> Rich:
        """Return the batch of `step`: `count` pictures, each once an epoch, in another order in every epoch."""
        at = []
        for k in range(step * count, (step + 1) * count):
            epoch, place = divmod(k, len(self.rows))
            at.append(int(permute(np.array([place]), len(self.rows), epoch_seed(seed, epoch))[0]))
        return self.batch(at)

    def batch(self, at: Sequence[int]) -> Rich:
        """Lay captions end to end, each with its picture; each counts once."""
        found = []
        for i in at:
            ids = np.array(self.ids[i], np.int64)
            weights = np.zeros(len(ids), np.float32)
            weights[-1] = 1.0
            more = {"pixels": self._pixels(i)[None]}
            found.append([Piece(ids, np.zeros_like(ids), weights, more=more)])
        return laid(found)

    def pictures(self, at: Sequence[int]) -> Tensor:
        """Open pictures: -> (N, 3, height, width) float32."""
        return torch.from_numpy(np.stack([self._pixels(i) for i in at]))

    def _pixels(self, i: int) -> np.ndarray:
        return prepared(opened(self.rows[i].image), self.how)


def cut(found: Sequence[Row], tokenizer: Tokenizer, plan: CaptionFile, how: Preparation) -> tuple[Captions, int]:
    """Turn captions into ids; returns the pictures whose caption is short enough, and how many were not."""
    end = ending(tokenizer)
    ids = [(*words, end) for words in tokenizer.encode_batch([row.text for row in found])]
    kept = [i for i, words in enumerate(ids) if len(words) <= plan.longest]
    return Captions(tuple(found[i] for i in kept), tuple(ids[i] for i in kept), how), len(ids) - len(kept)


def ending(tokenizer: Tokenizer) -> int:
    """Return the token whose vector stands for a caption."""
    end = min(tokenizer.stops, default=None)
    if end is None:
        raise TerakoyaError("tokenizer", "has no token that ends a text")
    return end


def laid_out(ids: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
    """Lay texts end to end: -> tokens (T,), their lengths."""
    return torch.tensor([i for words in ids for i in words]), [len(words) for words in ids]
