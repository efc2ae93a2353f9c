"""Rows for new pieces: a model whose tokenizer has grown, each new piece starting as the mean of what it joins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from terakoya.errors import TerakoyaError
from terakoya.model.build import build
from terakoya.tokenizer.extend import Extended
from terakoya.zoo.convert import Loaded

TABLES = ("embed.token.weight", "head.weight", "head.bias")  # what has a row for every id


@torch.no_grad()
def grown(loaded: Loaded, extended: Extended) -> Loaded:
    """Return the model with a row for every id of the larger tokenizer; all other weights are shared, not copied."""
    if loaded.tokenizer is None:
        raise TerakoyaError("model", "has no tokenizer to extend")
    old = loaded.model
    size = max(old.spec.vocab, extended.tokenizer.vocab_size)
    tensors = {name: _rows(t, extended.parts, size) if name in TABLES else t for name, t in old.state_dict().items()}
    made = build(replace(old.spec, vocab=size), device="meta")
    made.load_state_dict(tensors, assign=True)
    if old.spec.head.tied:
        made.head.weight = made.embed.token.weight
    return Loaded(made.requires_grad_(True), extended.tokenizer, loaded.family)  # its config.json is another one too


def _rows(table: Tensor, parts: Mapping[int, tuple[int, ...]], size: int) -> Tensor:
    """Return a table (V, ...) as (size, ...), new rows the means of the rows they stand for."""
    out = table.new_zeros(size, *table.shape[1:])
    out[: len(table)] = table
    for id, old in parts.items():
        out[id] = table[list(old)].mean(0)
    return out
