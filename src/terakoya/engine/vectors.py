"""Vectors in the place of some of a prompt's tokens: what an eye made of a picture, or anything else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.model.sight import placed, widened


@dataclass(frozen=True, eq=False)
class Vectors:
    """Rows (M, D) that stand at the places (M,) of a prompt, in rising order; the ids there are only marks."""

    places: tuple[int, ...]
    rows: Tensor

    def __post_init__(self) -> None:
        if self.rows.dim() != 2 or len(self.rows) != len(self.places) or not self.rows.is_floating_point():
            shape = f"{self.rows.dtype} {tuple(self.rows.shape)}".removeprefix("torch.")
            raise TerakoyaError("vectors", given=shape, allowed=f"numbers ({len(self.places)}, D)")
        if any(b <= a for a, b in zip((-1, *self.places), self.places, strict=False)):
            raise TerakoyaError("vectors.places", "do not rise", given=self.places[:8])
        object.__setattr__(self, "rows", self.rows.detach())

    @cached_property
    def names(self) -> list[int]:
        """Numbers (M,) that stand for the rows where texts are compared: none is an id, equal ones are equal rows."""
        rows = self.rows.cpu().contiguous().view(torch.uint8).flatten(1).numpy()
        digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
        return [int.from_bytes(d, "little") | 1 << 63 for d in digests]

    def named(self, prompt: Sequence[int]) -> list[int]:
        """Return a prompt with names in the place of marks, by which the prefix cache knows it."""
        out = list(prompt)
        for place, name in zip(self.places, self.names, strict=True):
            out[place] = name
        return out

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return (place after `start`, row) of those that stand from `start` up to `end`."""
        return [(place - start, row) for row, place in enumerate(self.places) if start <= place < end]


@torch.inference_mode()
def pictured(model: Model, ids: Sequence[int], pixels: Tensor) -> tuple[tuple[int, ...], Vectors]:
    """Return what a request needs of a prompt with a mark for each of its N pictures: its ids, and the vectors.

    `pixels` (N, 3, size, size) are as `sight.prepared` gives them. Raises TerakoyaError for a model that cannot see,
    or another number of marks.
    """
    vectors = model.see(pixels)
    sight = model.spec.sight
    assert sight is not None
    wide = widened(ids, sight)
    places, rows = placed(torch.tensor(wide), vectors, sight)
    return tuple(wide), Vectors(tuple(places.tolist()), rows.clone())
