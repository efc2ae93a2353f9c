"""Texts in pairs, one the translation of the other: read, cut into ids, dealt out as batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from terakoya.corpus.stream import decoded, lines, opened
from terakoya.data.batch import Batch
from terakoya.data.order import epoch_seed, permute
from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Tokenizer


@dataclass(frozen=True)
class PairFile:
    """A .jsonl(.zst) file whose rows hold both texts under the names `read` and `write`."""

    path: Path = Path("pairs.jsonl")
    read: str = "en"
    write: str = "ja"
    longest: int = 40  # tokens of either side; longer pairs are left out, and counted
    holdout: float = 0.02  # share of the source texts never trained on
    limit: int | None = None  # rows read at most

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 1:
            raise TerakoyaError("file.holdout", given=self.holdout, allowed="a share between 0 and 1, both excluded")
        for name in ("longest", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TerakoyaError(f"file.{name}", given=value, allowed="1 or more")


Texts = tuple[str, str]


def texts(plan: PairFile) -> Iterator[Texts]:
    """Read the rows; one without both texts is named."""
    for _, (read, write) in fields(plan.path, (plan.read, plan.write), plan.limit):
        yield read, write


def fields(path: Path, names: Sequence[str], limit: int | None) -> Iterator[tuple[str, list[str]]]:
    """Yield the place of each row of a .jsonl(.zst) file and its texts under `names`; one without them is named."""
    with opened(path) as file:
        for number, offset, line in lines(file, path):
            if limit is not None and number > limit:
                return
            place = f"{path}:{number}"
            try:
                row = json.loads(decoded(line, place, offset))
            except (ValueError, RecursionError):
                raise TerakoyaError(place, "is no JSON") from None
            found = [row.get(name) if isinstance(row, dict) else None for name in names]
            kept = [text for text in found if isinstance(text, str) and text.strip()]
            if len(kept) < len(names):
                raise TerakoyaError(place, f"needs texts under {' and '.join(map(repr, names))}")
            yield place, kept


def held_out(text: str, share: float) -> bool:
    """Say on which side a source text is: always the same, wherever else it stands."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") < share * 2**64


@dataclass(frozen=True)
class Pairs:
    """Pairs as ids, and how to deal them out. `end` begins and ends every target."""

    ids: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    end: int
    size: Callable[[int], int] = field(repr=False)  # bytes of a token

    @property
    def fingerprint(self) -> str:
        """A hash of the pairs and their order."""
        return hashlib.sha256(repr((self.end, self.ids)).encode("ascii")).hexdigest()

    def chosen(self, step: int, rows: int, seed: int) -> Batch:
        """Return the batch of `step`: `rows` pairs, each once an epoch, in another order in every epoch."""
        at = []
        for k in range(step * rows, (step + 1) * rows):
            epoch, place = divmod(k, len(self.ids))
            at.append(int(permute(np.array([place]), len(self.ids), epoch_seed(seed, epoch))[0]))
        return self.batch(at)

    def in_order(self, rows: int) -> Iterator[Batch]:
        """Yield every pair once."""
        for begin in range(0, len(self.ids), rows):
            yield self.batch(range(begin, min(begin + rows, len(self.ids))))

    def batch(self, at: Sequence[int]) -> Batch:
        """Lay pairs end to end: pieces are source, target, source, target …; only targets count."""
        tokens, targets, weights, lengths, ends, sizes = [], [], [], [], [], []
        for source, target in (self.ids[i] for i in at):
            tokens += [*source, self.end, *target]
            targets += [*[0] * len(source), *target, self.end]
            weights += [*[0.0] * len(source), *[1.0] * (len(target) + 1)]
            lengths += [len(source), len(target) + 1]
            ends.append(len(tokens))
            sizes.append(sum(map(self.size, target)))
        return Batch(
            torch.tensor(tokens), torch.tensor(targets), torch.tensor(weights),
            torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
            torch.cat([torch.arange(n) for n in lengths]), sum(sizes), tuple(ends), tuple(sizes),
        )  # fmt: skip


def cut(found: Sequence[Texts], tokenizer: Tokenizer, longest: int) -> tuple[Pairs, int]:
    """Turn texts into ids; returns the pairs that are short enough, and how many were not."""
    sides = [tokenizer.encode_batch([pair[i] for pair in found]) for i in (0, 1)]
    whole = [(tuple(a), tuple(b)) for a, b in zip(*sides, strict=True)]
    ids = tuple(pair for pair in whole if 0 < len(pair[0]) <= longest and 0 < len(pair[1]) < longest)
    end = min(tokenizer.stops, default=None)
    if end is None:
        raise TerakoyaError("tokenizer", "has no token that ends a text")
    return Pairs(ids, end, lambda id: len(tokenizer.token_bytes(id))), len(whole) - len(ids)
