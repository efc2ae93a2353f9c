"""Selective state spaces: Mamba and Mamba-2."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.model import spec
from terakoya.model import spec_recurrent as kinds
from terakoya.model.context import Context
from terakoya.model.kernels import FAST, Kernels, Mixer, Short, exact, parts, sequences
from terakoya.model.norm import Norm


class Mamba(Mixer):
    """h_t = e^{dt A} h_{t-1} + dt B_t x_t, y_t = C_t h_t + D x_t, then silu(z) y (Gu & Dao 2023, algorithm 2)."""

    def __init__(self, s: kinds.Mamba, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec, self.layer = s, layer
        D = model.dim
        self.x = nn.Linear(D, s.inner, bias=s.bias)
        self.z = nn.Linear(D, s.inner, bias=s.bias)
        self.conv = Short(s.inner, s.conv, s.conv_bias)
        self.select = nn.Linear(s.inner, s.rank + 2 * s.state, bias=False)  # step, input, output
        self.dt = nn.Linear(s.rank, s.inner)
        self.decay = nn.Parameter(torch.empty(s.inner, s.state))  # log(-A)
        self.through = nn.Parameter(torch.empty(s.inner))  # D
        self.o = nn.Linear(s.inner, D, bias=s.bias)
        norm = None if s.norms is None else spec.RMSNorm(eps=s.norms)
        self.dt_norm = Norm(norm, s.rank) if norm else None
        self.b_norm = Norm(norm, s.state) if norm else None
        self.c_norm = Norm(norm, s.state) if norm else None

    def forward(self, x: Tensor, ctx: Context, by: Kernels = FAST) -> Tensor:
        """Mix over time: x (T, D) -> (T, D)."""
        s, order = self.spec, sequences(ctx, x)
        tail, start = parts(ctx.state(self.layer), 2)
        z = self.z(x)
        u, tail = self.conv(self.x(x), order, tail, by)
        u = F.silu(u)
        dt, b, c = self.select(u).split([s.rank, s.state, s.state], -1)
        if self.dt_norm is not None and self.b_norm is not None and self.c_norm is not None:
            dt, b, c = self.dt_norm(dt), self.b_norm(b), self.c_norm(c)
        dt = exact(F.softplus(self.dt(dt)))
        y, last = by.selective(exact(u), dt, -exact(self.decay).exp(), exact(b), exact(c), order, start)
        ctx.commit(self.layer, (tail, last))
        y = y.to(u.dtype) + u * self.through
        return self.o(y * F.silu(z))

    def start(self, draw: Callable[[str], torch.Generator]) -> None:
        """Begin with A = -1 … -N and steps between 0.001 and 0.1 (Gu & Dao 2023, §3.6)."""
        self.decay.copy_(torch.arange(1, self.spec.state + 1).log().expand_as(self.decay))
        self.through.fill_(1.0)
        self.dt.bias.copy_(steps(self.dt.bias.shape[0], draw("dt.bias")))
        nn.init.uniform_(self.dt.weight, -(self.spec.rank**-0.5), self.spec.rank**-0.5, generator=draw("dt.weight"))


class Mamba2(Mixer):
    """S_t = e^{dt A} S_{t-1} + dt B_t x_t^T, y_t = S_t^T C_t + D x_t per head; norm(y silu(z)) (Dao & Gu 2024, §7)."""

    def __init__(self, s: kinds.Mamba2, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec, self.layer = s, layer
        D, wide = model.dim, s.inner + 2 * s.groups * s.state
        self.z = nn.Linear(D, s.inner, bias=s.bias)
        self.x = nn.Linear(D, wide, bias=s.bias)  # values, inputs, outputs
        self.dt = nn.Linear(D, s.heads, bias=s.bias)
        self.conv = Short(wide, s.conv, s.conv_bias)
        self.step, self.decay, self.through = (nn.Parameter(torch.empty(s.heads)) for _ in range(3))
        self.norm = Norm(spec.RMSNorm(eps=s.eps), s.inner)
        self.o = nn.Linear(s.inner, D, bias=s.bias)

    def forward(self, x: Tensor, ctx: Context, by: Kernels = FAST) -> Tensor:
        """Mix over time: x (T, D) -> (T, D)."""
        s, order = self.spec, sequences(ctx, x)
        tail, start = parts(ctx.state(self.layer), 2)
        z = self.z(x)
        u, tail = self.conv(self.x(x), order, tail, by)
        u, b, c = F.silu(u).split([s.inner, s.groups * s.state, s.groups * s.state], -1)
        b, c = (exact(t).unflatten(-1, (s.groups, -1)).repeat_interleave(s.heads // s.groups, 1) for t in (b, c))
        dt = F.softplus(exact(self.dt(x) + self.step))
        u = exact(u).unflatten(-1, (s.heads, -1))
        y, last = by.decayed(c, b, u * dt[..., None], -dt * exact(self.decay).exp(), order, start)
        ctx.commit(self.layer, (tail, last))
        y = (y + u * self.through[:, None]).flatten(1).to(x.dtype)
        return self.o(self.grouped(y * F.silu(z)))

    def grouped(self, y: Tensor) -> Tensor:
        """Norm each group by itself: (T, inner) -> (T, inner)."""
        g = exact(y).unflatten(-1, (self.spec.groups, -1))
        g = g * torch.rsqrt(g.square().mean(-1, keepdim=True) + self.spec.eps)
        assert self.norm.weight is not None
        return g.flatten(-2).to(y.dtype) * self.norm.weight

    def start(self, draw: Callable[[str], torch.Generator]) -> None:
        """Begin with A between -1 and -16 and steps between 0.001 and 0.1 (Dao & Gu 2024)."""
        self.decay.copy_((1 + 15 * torch.rand(self.spec.heads, generator=draw("decay"))).log())
        self.through.fill_(1.0)
        self.step.copy_(steps(self.spec.heads, draw("step")))


def steps(count: int, rng: torch.Generator, least: float = 1e-3, most: float = 0.1) -> Tensor:
    """Draw biases whose softplus lies between `least` and `most`, evenly in its logarithm: (count,)."""
    dt = torch.exp(torch.rand(count, generator=rng) * math.log(most / least) + math.log(least))
    return dt + torch.log(-torch.expm1(-dt))
