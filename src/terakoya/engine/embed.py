"""Texts to vectors: what a model makes of each token, pooled to one vector a text.

A decoder has no vector that was trained to stand for a text. The mean over its tokens is the usual stand-in, and the
last token's is the only one that has seen all of it (Wang 2024); which one suits is for the asker to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from terakoya.engine.request import EngineError
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.model.model import Model

Pooling = Literal["mean", "last", "first"]
STEP = 2048  # tokens that are read at once


def pool(hidden: Tensor, cu: Sequence[int], how: Pooling) -> Tensor:
    """One vector per text: hidden (T, D), boundaries cu (N + 1) -> (N, D)."""
    if how == "mean":
        return torch.stack([hidden[a:b].float().mean(0) for a, b in pairwise(cu)])
    at = [b - 1 for b in cu[1:]] if how == "last" else list(cu[:-1])
    return hidden[at].float()


def shortened(vectors: Tensor, dimensions: int | None) -> Tensor:
    """Keep the first `dimensions` numbers, and make every vector of length one: (N, D) -> (N, d)."""
    if dimensions is not None and dimensions > vectors.shape[-1]:
        raise TerakoyaError("dimensions", given=dimensions, allowed=f"1 to {vectors.shape[-1]}")
    return F.normalize(vectors[:, :dimensions], dim=-1)


def check(model: Model, texts: Sequence[Sequence[int]], context: int, vocab: int) -> None:
    """Raise what is wrong with texts in ids: an empty one, one that is too long, an id that is none of the model's."""
    for i, ids in enumerate(texts):
        if not ids:
            raise TerakoyaError(f"input[{i}]", "is empty")
        if len(ids) > context:
            raise EngineError("too long", f"input[{i}]", f"has {len(ids)} tokens; there is room for {context}")
        for id in ids:
            if not 0 <= id < vocab:
                raise TerakoyaError(f"input[{i}]", "has an id that is none of this model's", given=id)


def batches(lengths: Sequence[int], alone: bool) -> Iterator[list[int]]:
    """Which texts are read together: of like length, no more than STEP tokens; each by itself where `alone`."""
    batch: list[int] = []
    size = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (alone or size + lengths[i] > STEP):
            yield batch
            batch, size = [], 0
        batch.append(i)
        size += lengths[i]
    if batch:
        yield batch


@torch.inference_mode()
def embed(model: Model, texts: Sequence[Sequence[int]], how: Pooling = "mean") -> Tensor:
    """Read texts in ids, together, and pool each -> (N, D), not yet of length one."""
    if how not in get_args(Pooling):
        raise TerakoyaError("pooling", given=how, allowed=get_args(Pooling))
    device = next(model.parameters()).device
    ctx = Packed([len(ids) for ids in texts], device)
    hidden = model(torch.tensor([id for ids in texts for id in ids], device=device), ctx)
    return pool(hidden, ctx.cu, how)
