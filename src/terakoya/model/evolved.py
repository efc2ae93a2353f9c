"""The convolutions and gates of the Evolved Transformer (So 2019, figure 3; tensor2tensor's evolved_transformer)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.model import spec
from terakoya.model.context import Context
from terakoya.model.kernels import FAST, Kernels, Mixer, Short, parts, sequences
from terakoya.model.norm import Norm
from terakoya.ops.sequences import Sequences

NORM = spec.LayerNorm(1e-6)  # tensor2tensor's


class GLU(nn.Module):
    """(W x + b) * sigmoid(V x + c)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, dim)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Gate each token: x (T, D) -> (T, D)."""
        return self.up(x) * torch.sigmoid(self.gate(x))


class Separable(nn.Module):
    """A filter per channel over the past, then a product over the channels: T x D -> T x O."""

    def __init__(self, inner: int, outer: int, taps: int) -> None:
        super().__init__()
        self.deep = Short(inner, taps, False)
        self.point = nn.Linear(inner, outer)

    def forward(self, x: Tensor, order: Sequences, tail: Tensor | None, by: Kernels) -> tuple[Tensor, Tensor]:
        """Convolve: x (T, D), tail (N, taps - 1, D) -> (T, O), the new tail."""
        y, after = self.deep(x, order, tail, by)
        return self.point(y), after


class CausalConv(Mixer):
    """The decoder's: 11 taps to 2 D channels with relu, beside 7 taps to D / 2; normed; 7 taps back to D."""

    def __init__(self, dim: int, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.left = Separable(dim, 2 * dim, 11)
        self.right = Separable(dim, dim // 2, 7)
        self.norm = Norm(NORM, 2 * dim)
        self.fold = Separable(2 * dim, dim, 7)

    def forward(self, x: Tensor, ctx: Context, by: Kernels = FAST) -> Tensor:
        """Mix over the last 17 tokens: x (T, D) -> (T, D)."""
        order = sequences(ctx, x)
        wide, near, folded = parts(ctx.state(self.layer), 3)
        left, wide = self.left(x, order, wide, by)
        right, near = self.right(x, order, near, by)
        h = torch.relu(left)
        h = self.norm(h + F.pad(right, (0, h.shape[1] - right.shape[1])))
        y, folded = self.fold(h, order, folded, by)
        ctx.commit(self.layer, (wide, near, folded))
        return y


class CentredConv(nn.Module):
    """The encoder's: a dense layer to 4 D with relu, beside 3 taps to D / 2; normed; 9 separable taps to D / 2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.left = nn.Linear(dim, 4 * dim)
        self.right = nn.Conv1d(dim, dim // 2, 3)
        self.norm = Norm(NORM, 4 * dim)
        self.deep = nn.Conv1d(4 * dim, 4 * dim, 9, groups=4 * dim, bias=False)
        self.point = nn.Linear(4 * dim, dim // 2)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Mix over the five tokens to each side: x (T, D) -> (T, D)."""
        order = sequences(ctx, x)
        h = torch.relu(self.left(x))
        right = torch.relu(centred(x, self.right, order))
        h = self.norm(h + F.pad(right, (0, h.shape[1] - right.shape[1])))
        y = self.point(centred(h, self.deep, order))
        return F.pad(y, (0, x.shape[1] - y.shape[1]))


def centred(x: Tensor, conv: nn.Conv1d, order: Sequences) -> Tensor:
    """Convolve each sequence by itself, zeros around it: x (T, D) -> (T, O)."""
    out, a = [], 0
    for length, count in order.runs:
        rows = x[a : a + length * count].view(count, length, -1).transpose(1, 2)
        y = F.conv1d(rows, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2, groups=conv.groups)
        out.append(y.transpose(1, 2).flatten(0, 1))
        a += length * count
    return torch.cat(out)
