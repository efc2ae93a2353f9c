"""A small model and random batches of documents."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch

from terakoya.data.batch import Batch
from terakoya.model import spec
from terakoya.model.build import Init, build, initialise
from terakoya.model.model import Model
from terakoya.zoo import lineage

VOCAB = 61
SPEC: spec.Model = replace(lineage.rescale(lineage.base("smollm2"), 32, 2, 8), vocab=VOCAB, context=64)


def small(seed: int = 0, s: spec.Model = SPEC, dtype: torch.dtype = torch.float32) -> Model:
    return initialise(build(s), seed, Init(std=0.1)).to(dtype)


def batch_of(rows: Sequence[Sequence[int]], seed: int = 0, weights: str = "random") -> Batch:
    """A batch whose rows hold documents of the given lengths."""
    g = torch.Generator().manual_seed(seed)
    lengths = [n for row in rows for n in row]
    total = sum(lengths)
    cu = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    shares = {
        "random": torch.rand(total, generator=g) * torch.randint(0, 2, (total,), generator=g),
        "ones": torch.ones(total),
        "zero": torch.zeros(total),
        "tiny": torch.full((total,), 1e-4),
    }
    return Batch(
        tokens=torch.randint(VOCAB, (total,), generator=g),
        targets=torch.randint(VOCAB, (total,), generator=g),
        weights=shares[weights],
        cu=cu,
        positions=torch.cat([torch.arange(n) for n in lengths]),
        bytes=7 * len(rows),
        row_ends=tuple(accumulate(sum(row) for row in rows)),
        row_bytes=(7,) * len(rows),
    )


def some_rows(rng: random.Random, rows: int, most: int = 4) -> list[list[int]]:
    return [[rng.randint(1, 9) for _ in range(rng.randint(1, most))] for _ in range(rows)]
