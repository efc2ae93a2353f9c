"""Hyena: long convolutions whose filters a small network writes, and gates."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from terakoya.model import spec
from terakoya.model import spec_recurrent as kinds
from terakoya.model.context import Context
from terakoya.model.kernels import FAST, Kernels, Mixer, Short, exact, parts, sequences
from terakoya.ops.sequences import Sequences


class Filter(nn.Module):
    """h(t) = window(t) * network(position(t)): one value per channel and distance (Poli 2023, §3.3)."""

    def __init__(self, s: kinds.Hyena, channels: int, reach: int) -> None:
        super().__init__()
        self.spec, self.reach = s, reach
        width = s.filter
        sizes = [1 + 2 * s.bands, width, width, width]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.o = nn.Linear(width, channels, bias=False)
        self.pitch = nn.Parameter(torch.empty(width))
        self.fade = nn.Parameter(torch.empty(channels))

    def forward(self, count: int) -> Tensor:
        """Return the filters' first `count` values (count, channels)."""
        place = torch.arange(count, device=self.fade.device, dtype=self.fade.dtype) / max(1, self.reach - 1)
        bands = torch.arange(1, self.spec.bands + 1, device=place.device)
        angle = 2 * math.pi * place[:, None] * bands * (self.reach - 1) / self.reach
        h = torch.cat([place[:, None], angle.cos(), -angle.sin()], -1)
        for layer in self.layers:
            h = torch.sin(self.pitch * layer(h))
        return self.o(h) * torch.exp(-place[:, None] * self.fade.abs())

    def start(self, draw: Callable[[str], torch.Generator]) -> None:
        """Begin with torch's linear layers, sines of pitch 10, and windows that fade to 1 % after 0.3 to 1.5 of it."""
        for i, layer in enumerate([*self.layers, self.o]):
            assert isinstance(layer, nn.Linear)
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=draw(f"{i}.weight"))
            if layer.bias is not None:
                layer.bias.uniform_(-bound, bound, generator=draw(f"{i}.bias"))
        self.pitch.fill_(10.0)
        fast, slow = math.log(100) / 0.3, math.log(100) / 1.5
        self.fade.copy_(torch.linspace(slow, fast, self.fade.shape[0]))


class Hyena(Mixer):
    """y = o(x_0 * conv(h, x_1 * v)), x_0, x_1 and v passed by a short convolution (Poli 2023, definition 3.1, order 2).

    A step needs all inputs of the long convolutions so far: its memory grows with the text, as that of attention does.
    """

    def __init__(self, s: kinds.Hyena, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec, self.layer, self.place = s, layer, layer + model.depth
        D = model.dim
        self.x = nn.Linear(D, 3 * D)
        self.conv = Short(3 * D, 3, True)
        self.filter = Filter(s, D, model.context)
        self.through = nn.Parameter(torch.empty(D))
        self.o = nn.Linear(D, D)

    def forward(self, x: Tensor, ctx: Context, by: Kernels = FAST) -> Tensor:
        """Mix over time: x (T, D) -> (T, D)."""
        order = sequences(ctx, x)
        (tail,) = parts(ctx.state(self.place), 1)
        u, tail = self.conv(self.x(x), order, tail, by)
        ctx.commit(self.place, (tail,))
        out, gate, v = u.chunk(3, -1)
        return self.o(out * self.convolve(gate * v, ctx, by))

    def convolve(self, u: Tensor, ctx: Context, by: Kernels) -> Tensor:
        """Convolve with a long filter everything that each sequence has said so far: u (T, D) -> (T, D)."""
        pasts = ctx.remember(self.layer, u)
        filters = self.filter(max(past.shape[0] for past in pasts))
        counts = sequences(ctx, u).lengths
        if all(past.shape[0] == n for past, n in zip(pasts, counts, strict=True)):
            return by.long(exact(u), filters, sequences(ctx, u)).to(u.dtype) + u * self.through
        out = []
        for past, n in zip(pasts, counts, strict=True):
            if n == 1:
                out.append((filters[: past.shape[0]].flip(0) * exact(past)).sum(0, keepdim=True))
            else:
                out.append(by.long(exact(past), filters, Sequences([0, past.shape[0]], u.device))[-n:])
        return torch.cat(out).to(u.dtype) + u * self.through

    def start(self, draw: Callable[[str], torch.Generator]) -> None:
        self.through.copy_(torch.randn(self.through.shape, generator=draw("through")))
