"""Less memory for more time: keep only what enters each block, and compute the block again going back (Chen 2016)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from terakoya.model.context import Context
from terakoya.model.model import Block, Model


class Recomputed(Block):
    """A block that is computed twice where gradients are wanted."""

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (T, D) -> (T, D)."""
        if not torch.is_grad_enabled():
            return super().forward(x, ctx)
        out = checkpoint(super().forward, x, ctx, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(out, Tensor)
        return out


def recompute(model: Model) -> None:
    """Make every block of a model forget what it can compute again."""
    for layer in model.layers:
        assert type(layer) is Block
        layer.__class__ = Recomputed
