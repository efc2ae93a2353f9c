"""A frozen base in four bits: NF4 with doubly quantised scales (QLoRA, Dettmers 2023), by swapping classes in place."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.tune.adapters import layers

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
    if weight.numel() % (2 * BLOCK):
        raise TerakoyaError("quantise", f"needs weights in multiples of {2 * BLOCK}", given=weight.numel())
    blocks = weight.detach().float().reshape(-1, BLOCK)
    scales = blocks.abs().amax(1)
    mean, padded = scales.mean(), F.pad(scales, (0, -len(scales) % GROUP))
    centred = torch.where(padded > 0, padded - mean, 0.0).view(-1, GROUP)
    step = (centred.abs().amax(1) / 127).clamp(min=1e-12)
    small = (centred / step[:, None]).round().clamp(-127, 127).to(torch.int8).flatten()[: len(scales)]
    used = unscaled(small, step, mean).clamp(min=1e-12)
    table = codebook().to(weight.device)
    codes = torch.bucketize((blocks / used[:, None]).flatten(), (table[1:] + table[:-1]) / 2).to(torch.uint8)
    return codes[0::2] << 4 | codes[1::2], small, step, mean


def unscaled(small: Tensor, step: Tensor, mean: Tensor) -> Tensor:
    """Undo the second quantisation: -> one scale a block."""
    return small.float() * step.repeat_interleave(GROUP)[: len(small)] + mean


@cache
def _pairs() -> Tensor:
    """Both levels of each byte: (256, 2)."""
    byte = torch.arange(256)
    return torch.stack([codebook()[byte >> 4], codebook()[byte & 15]], 1)


def unpack(packed: Tensor, small: Tensor, step: Tensor, mean: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the weight in fp32, (out, in)."""
    levels = F.embedding(packed.int(), _pairs().to(packed.device)).view(-1, BLOCK)
    return (levels * unscaled(small, step, mean)[:, None]).view(shape)


class _Product(torch.autograd.Function):
    """x W^T that keeps only the packed weight for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int], *packed: Tensor) -> Tensor:
        ctx.save_for_backward(*packed)
        ctx.shape = shape
        a, b, c, d = packed
        return x @ unpack(a, b, c, d, shape).to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        a, b, c, d = ctx.saved_tensors
        weight = unpack(a, b, c, d, ctx.shape)
        return grad @ weight.to(grad.dtype), None, None, None, None, None


class NF4Linear(nn.Linear):
    """A linear layer whose frozen weight is kept in about 4.13 bits a number."""

    packed: Tensor
    small_scales: Tensor
    step_scales: Tensor
    mean_scales: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """input (T, in) -> (T, out)."""
        y = _Product.apply(input, (self.out_features, self.in_features), *self.kept())
        return y if self.bias is None else y + self.bias  # type: ignore[operator, return-value]

    def kept(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.packed, self.small_scales, self.step_scales, self.mean_scales

    def dense(self) -> Tensor:
        """The weight as numbers."""
        return unpack(*self.kept(), (self.out_features, self.in_features))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.dense()


def quantise(model: Model) -> None:
    """Turn every linear layer of the blocks into NF4; embeddings, norms and head stay as they are."""
    for linear in layers(model).values():
        packed, small, step, mean = pack(linear.weight)
        del linear.weight
        linear.__class__ = NF4Linear
        for name, tensor in (("packed", packed), ("small_scales", small), ("step_scales", step), ("mean_scales", mean)):
            linear.register_buffer(name, tensor)


def held(model: nn.Module) -> int:
    """Bytes that parameters and buffers take."""
    both = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in {t.data_ptr(): t for t in both}.values())
