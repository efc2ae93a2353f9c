"""Dropout whose masks are a pure function of (seed, step): resuming draws the same ones."""

from __future__ import annotations

import torch
from torch import Tensor


class Noise:
    """Random masks for training. `on` is off until a trainer names a step, so scoring and generation see none."""

    def __init__(self) -> None:
        self.on = False
        self.generator = torch.Generator()

    def begin(self, seed: int, step: int) -> None:
        """Draw the masks of this training step from now on."""
        self.on = True
        self.generator.manual_seed((seed * 1_000_003 + step) & (2**63 - 1))

    def end(self) -> None:
        """Draw no more masks."""
        self.on = False

    def mask(self, shape: tuple[int, ...], share: float, like: Tensor) -> Tensor:
        """Return a mask that drops `share` of its places and scales the rest up; shape -> the same."""
        kept = torch.rand(shape, generator=self.generator) >= share
        return kept.to(like.dtype).div_(1 - share).to(like.device)

    def drop(self, x: Tensor, share: float) -> Tensor:
        """Drop single numbers (Srivastava 2014), where training and share > 0."""
        return x * self.mask(tuple(x.shape), share, x) if self.on and share else x
