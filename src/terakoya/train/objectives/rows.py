"""Rows of a batch laid anew: what a corruption makes of each row, as one flat batch that still splits along rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from terakoya.data.batch import Batch

Draw = Callable[..., np.random.Generator]


@dataclass(frozen=True)
class Ragged:
    """Values of which each row has its own number: `ends` are the rows' ends in `values`."""

    values: Tensor
    ends: tuple[int, ...]

    def rows(self, first: int, last: int) -> Ragged:
        """Return the part of rows first to last (excluded)."""
        begin = self.ends[first - 1] if first else 0
        return Ragged(self.values[begin : self.ends[last - 1]], tuple(e - begin for e in self.ends[first:last]))


@dataclass(frozen=True, kw_only=True)
class Rich(Batch):
    """A batch that carries more than targets: labels of pairs, sources of an encoder, orders, keys of the dice."""

    more: Mapping[str, Ragged] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.more[name].values

    def _rows(self, ends: tuple[int, ...], row_bytes: tuple[int, ...], first: int, last: int) -> Batch:
        part = super()._rows(ends, row_bytes, first, last)
        more = {name: ragged.rows(first, last) for name, ragged in self.more.items()}
        return Rich(**{n: getattr(part, n) for n in part.__dataclass_fields__}, more=more)

    def to(self, device: torch.device | str) -> Rich:
        moved = super().to(device)
        assert isinstance(moved, Rich)
        more = {n: replace(r, values=r.values.to(device, non_blocking=True)) for n, r in self.more.items()}
        return replace(moved, more=more)


@dataclass(frozen=True)
class Piece:
    """One stretch that sees only itself: tokens, targets, weights and positions (default: from 0), (n,) each."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    positions: np.ndarray | None = None
    more: Mapping[str, np.ndarray] = field(default_factory=dict)


def laid(rows: Sequence[Sequence[Piece]]) -> Rich:
    """Lay rows of pieces end to end; a row that was left without pieces takes no room."""
    pieces = [piece for row in rows for piece in row]
    lengths = [len(p.tokens) for p in pieces]
    names = pieces[0].more.keys() if pieces else ()
    positions = [np.arange(len(p.tokens)) if p.positions is None else p.positions for p in pieces]
    more = {}
    for name in names:
        sizes = accumulate(sum(len(p.more[name]) for p in row) for row in rows)
        more[name] = Ragged(torch.from_numpy(np.concatenate([p.more[name] for p in pieces])), tuple(sizes))
    return Rich(
        tokens=_flat([p.tokens for p in pieces], np.int64),
        targets=_flat([p.targets for p in pieces], np.int64),
        weights=_flat([p.weights for p in pieces], np.float32),
        cu=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        positions=_flat(positions, np.int64),
        row_ends=tuple(accumulate(sum(len(p.tokens) for p in row) for row in rows)),
        row_bytes=(0,) * len(rows),
        more=more,
    )


def _flat(parts: Sequence[np.ndarray], dtype: type) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype))


def pieces_of(batch: Batch) -> list[list[np.ndarray]]:
    """Return the tokens of every piece, row by row."""
    tokens, cu = batch.tokens.numpy(), batch.cu.numpy()
    ends = batch.row_ends or tuple(cu[1:].tolist())
    rows: list[list[np.ndarray]] = [[] for _ in ends]
    row = 0
    for begin, end in zip(cu[:-1].tolist(), cu[1:].tolist()):
        while end > ends[row]:
            row += 1
        rows[row].append(tokens[begin:end])
    return rows


def dice(*key: int | str | bytes) -> np.random.Generator:
    """Return random numbers that are a pure function of `key`, on every machine."""
    told = hashlib.blake2b(digest_size=16)
    for part in key:
        told.update(part if isinstance(part, bytes) else f"{part}/".encode())
    return np.random.Generator(np.random.Philox(key=int.from_bytes(told.digest(), "little")))


def word_of(rng: np.random.Generator) -> np.ndarray:
    """Draw a seed that travels with a row, for dice that are thrown on the device: -> (1,) int64."""
    return rng.integers(2**62, size=1)
