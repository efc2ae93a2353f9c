"""Which implementation a recurrent mixer computes with: the fast ones of `ops`, or the definitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from terakoya.model import naive
from terakoya.model.context import Context
from terakoya.ops import convolve, gated, linear
from terakoya.ops.invariant import invariant
from terakoya.ops.scan import scan
from terakoya.ops.selective import selective
from terakoya.ops.sequences import Sequences
from terakoya.ops.wkv import wkv


@dataclass(frozen=True)
class Kernels:
    """One function per recurrence; `model.naive` says what each computes."""

    scan: Callable[..., tuple[Tensor, Tensor]]
    selective: Callable[..., tuple[Tensor, Tensor]]
    decayed: Callable[..., tuple[Tensor, Tensor]]
    delta: Callable[..., tuple[Tensor, Tensor]]
    general: Callable[..., tuple[Tensor, Tensor]]
    invariant: Callable[..., tuple[Tensor, Tensor]]
    wkv: Callable[..., tuple[Tensor, Tensor, Tensor]]
    short: Callable[..., tuple[Tensor, Tensor]]
    shift: Callable[..., tuple[Tensor, Tensor]]
    long: Callable[..., Tensor]
    rglru: Callable[..., tuple[Tensor, Tensor]]


FAST = Kernels(
    scan,
    selective,
    linear.decayed,
    linear.delta,
    linear.general,
    invariant,
    wkv,
    convolve.short,
    convolve.shift,
    convolve.long,
    gated.rglru,
)
NAIVE = Kernels(
    naive.scan,
    naive.selective,
    naive.decayed,
    naive.delta,
    naive.general,
    naive.invariant,
    naive.wkv,
    naive.short,
    naive.shift,
    naive.long,
    naive.rglru,
)


class Mixer(nn.Module):
    """A mixer with a state. `forward(x, ctx)` is fast, `naive(x, ctx)` the same by the definitions."""

    def forward(self, x: Tensor, ctx: Context, by: Kernels = FAST) -> Tensor:
        raise NotImplementedError

    def naive(self, x: Tensor, ctx: Context) -> Tensor:
        """Do what `forward` does, token after token: x (T, D) -> (T, D)."""
        return self.forward(x, ctx, NAIVE)


class Short(nn.Module):
    """A short causal convolution, one filter per channel; its weights lie as in torch.nn.Conv1d."""

    def __init__(self, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(self, x: Tensor, order: Sequences, tail: Tensor | None, by: Kernels) -> tuple[Tensor, Tensor]:
        """Convolve: x (T, D), tail (N, W - 1, D) -> (T, D), the new tail."""
        return by.short(x, self.weight[:, 0], self.bias, order, tail)


def sequences(ctx: Context, x: Tensor) -> Sequences:
    """Return how the sequences of this step lie, worked out once for all layers."""
    return ctx.share("sequences", lambda: Sequences(ctx.cu, x.device))


def parts(state: tuple[Tensor, ...] | None, count: int) -> tuple[Any, ...]:
    """Return a state's tensors, or None for each where there is nothing yet."""
    return (None,) * count if state is None else state


def exact(x: Tensor) -> Tensor:
    """Return a tensor in at least single precision: sums over a long past are kept so."""
    return x if x.dtype == torch.float64 else x.float()
