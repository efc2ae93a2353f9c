"""Tiny models whose every weight matters, and texts for them."""

from __future__ import annotations

import torch

from terakoya.model import spec
from terakoya.model.build import build, initialise
from terakoya.model.model import Model

VOCAB = 64


def noisy(s: spec.Model) -> Model:
    """Return a model with weights that leave nothing at one or zero."""
    made = initialise(build(s), 0)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            noise = torch.randn(p.shape, generator=rng)
            p.copy_(0.15 * noise if p.dim() > 1 else p + 0.2 * noise)
    return made


def text(length: int, seed: int) -> torch.Tensor:
    """Return tokens at random: -> (length,)."""
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))
