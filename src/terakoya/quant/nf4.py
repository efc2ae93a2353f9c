"""NF4: four bits on a grid of equally likely slices of a normal distribution (QLoRA, Dettmers 2023)."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from terakoya.errors import TerakoyaError

BLOCK, GROUP = 64, 256  # weights that share a scale; scales that share a step


@cache
def codebook() -> Tensor:
    """The 16 levels: equally likely slices of a normal distribution, zero among them, scaled to [-1, 1] (§3)."""
    far = 0.5 * ((1 - 1 / 30) + (1 - 1 / 32))  # the outermost probability, half-way between 15 and 16 levels

    def side(count: int) -> Tensor:
        return torch.special.ndtri(torch.linspace(far, 0.5, count + 1, dtype=torch.float64)[:-1])

    levels = torch.cat([-side(7), torch.zeros(1, dtype=torch.float64), side(8)]).sort().values
    return (levels / levels.max()).float()


def pack(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return codes two a byte, scales in int8, their steps and their mean."""
    blocks = blocks_of(weight)
    scales = blocks.abs().amax(1)
    mean, padded = scales.mean(), F.pad(scales, (0, -len(scales) % GROUP))
    centred = torch.where(padded > 0, padded - mean, 0.0).view(-1, GROUP)
    step = (centred.abs().amax(1) / 127).clamp(min=1e-12)
    small = (centred / step[:, None]).round().clamp(-127, 127).to(torch.int8).flatten()[: len(scales)]
    used = unscaled(small, step, mean).clamp(min=1e-12)
    return codes_of(blocks / used[:, None]), small, step, mean


def blocks_of(weight: Tensor) -> Tensor:
    """Cut a weight into blocks: -> (blocks, 64) float32."""
    if weight.numel() % (2 * BLOCK):
        raise TerakoyaError("quantise", f"needs weights in multiples of {2 * BLOCK}", given=weight.numel())
    return weight.detach().float().reshape(-1, BLOCK)


def codes_of(levels: Tensor) -> Tensor:
    """Round numbers in [-1, 1] to the nearest levels, two a byte, the first in the high half: -> (n / 2,) uint8."""
    table = codebook().to(levels.device)
    codes = torch.bucketize(levels.flatten(), (table[1:] + table[:-1]) / 2).to(torch.uint8)
    return codes[0::2] << 4 | codes[1::2]


def unscaled(small: Tensor, step: Tensor, mean: Tensor) -> Tensor:
    """Undo the second quantisation: -> one scale a block."""
    return small.float() * step.repeat_interleave(GROUP)[: len(small)] + mean


@cache
def pairs() -> Tensor:
    """Both levels of each byte: (256, 2)."""
    byte = torch.arange(256)
    return torch.stack([codebook()[byte >> 4], codebook()[byte & 15]], 1)


def unpack(packed: Tensor, small: Tensor, step: Tensor, mean: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the weight in fp32, (out, in)."""
    return spread(packed, unscaled(small, step, mean)).view(shape)


def spread(packed: Tensor, scales: Tensor) -> Tensor:
    """Return blocks of numbers: packed (n / 2,) uint8, scales (n / 64,) -> (n / 64, 64) float32."""
    levels = F.embedding(packed.int(), pairs().to(packed.device)).view(-1, BLOCK)
    return levels * scales[:, None]
