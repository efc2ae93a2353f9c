"""Attention without a softmax, whose past is one matrix: linear attention, retention, the gated delta rule."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.model import spec
from terakoya.model import spec_recurrent as kinds
from terakoya.model.context import Context
from terakoya.model.kernels import FAST, Kernels, Mixer, Short, exact, parts, sequences
from terakoya.model.mamba import steps
from terakoya.model.norm import Norm
from terakoya.model.position import rope_table, rotate
from terakoya.ops.gated import normed


class LinearAttention(Mixer):
    """y_t = f(q_t) sum_s f(k_s) v_s^T / f(q_t) sum_s f(k_s) with f = elu + 1 (Katharopoulos 2020, eq. 18-20)."""

    def __init__(self, s: kinds.LinearAttention, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec, self.layer = s, layer
        self.q, self.k, self.v, self.o = (nn.Linear(model.dim, model.dim) for _ in range(4))

    def forward(self, x: Tensor, ctx: Context, by: Kernels = FAST) -> Tensor:
        """Mix over time: x (T, D) -> (T, D)."""
        q, k, v = (exact(m(x)).unflatten(-1, (self.spec.heads, -1)) for m in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)  # the last channel sums the weights
        (start,) = parts(ctx.state(self.layer), 1)
        y, last = by.decayed(q, k, v, None, sequences(ctx, x), start)
        ctx.commit(self.layer, (last,))
        return self.o((y[..., :-1] / y[..., -1:]).flatten(1).to(x.dtype))


class Retention(Mixer):
    """S_t = gamma S_{t-1} + k_t v_t^T, y_t = q_t S_t with rotated q and k, a norm per head, a gate (Sun 2023, eq. 6-8).

    Head h of H forgets by gamma = 1 - 2^(-5 - h).
    """

    def __init__(self, s: kinds.Retention, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec, self.layer, self.context = s, layer, model.context
        D = model.dim
        self.width = D // s.heads
        self.rope = spec.Rope(interleaved=True)
        self.q, self.k = (nn.Linear(D, D, bias=False) for _ in range(2))
        self.v, self.gate = (nn.Linear(D, s.expand * D, bias=False) for _ in range(2))
        self.norm = spec.RMSNorm(affine=False)  # of every head
        self.o = nn.Linear(s.expand * D, D, bias=False)

    def forward(self, x: Tensor, ctx: Context, by: Kernels = FAST) -> Tensor:
        """Mix over time: x (T, D) -> (T, D)."""
        H = self.spec.heads
        q, k, v = (m(x).unflatten(-1, (H, -1)) for m in (self.q, self.k, self.v))
        key = ("rope", self.rope, self.width, q.dtype)
        cos, sin = ctx.share(key, lambda: rope_table(self.rope, self.width, self.context, ctx.pos, ctx.cu, q.dtype))
        q, k = (exact(turn(t, cos * s, sin * s)) for t, s in ((q, 1.0), (k, self.width**-0.5)))
        fade = torch.log1p(-torch.exp2(-5.0 - torch.arange(H, device=x.device))).to(q.dtype)
        (start,) = parts(ctx.state(self.layer), 1)
        y, last = by.decayed(q, k, exact(v), fade.expand(x.shape[0], H), sequences(ctx, x), start)
        ctx.commit(self.layer, (last,))
        return self.o(normed(y, self.gate(x).unflatten(-1, (H, -1)), self.norm.eps).flatten(1))


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring channels, on a CPU as complex numbers: x (T, H, K), cos, sin (T, 1, K / 2) -> (T, H, K)."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return rotate(x, cos, sin, True)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.complex(cos, sin)
    return torch.view_as_real(turned).flatten(-2)


class GatedDelta(Mixer):
    """S_t = a_t (1 - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T, y_t = S_t^T q_t, then norm(y) silu(z) (Yang 2024, eq. 10).

    a = e^{-A softplus(dt)}, b = sigmoid; q and k pass a short convolution and have length one.
    """

    def __init__(self, s: kinds.GatedDelta, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec, self.layer = s, layer
        D, K, V = model.dim, s.heads * s.key, s.value_heads * s.value
        self.x = nn.Linear(D, 2 * K + V, bias=False)  # queries, keys, values
        self.z = nn.Linear(D, V, bias=False)
        self.beta, self.dt = (nn.Linear(D, s.value_heads, bias=False) for _ in range(2))
        self.conv = Short(2 * K + V, s.conv, False)
        self.step, self.decay = (nn.Parameter(torch.empty(s.value_heads)) for _ in range(2))
        self.norm = Norm(spec.RMSNorm(), s.value)
        self.o = nn.Linear(V, D, bias=False)

    def forward(self, x: Tensor, ctx: Context, by: Kernels = FAST) -> Tensor:
        """Mix over time: x (T, D) -> (T, D)."""
        s, order = self.spec, sequences(ctx, x)
        tail, start = parts(ctx.state(self.layer), 2)
        u, tail = self.conv(self.x(x), order, tail, by)
        q, k, v = exact(F.silu(u)).split([s.heads * s.key, s.heads * s.key, s.value_heads * s.value], -1)
        q, k = (unit(t.unflatten(-1, (s.heads, -1))).repeat_interleave(s.value_heads // s.heads, 1) for t in (q, k))
        v = v.unflatten(-1, (s.value_heads, -1))
        beta = exact(torch.sigmoid(self.beta(x)))
        g = -exact(self.decay).exp() * F.softplus(exact(self.dt(x)) + exact(self.step))
        y, last = by.delta(q * s.key**-0.5, k, v, g, beta, order, start)
        ctx.commit(self.layer, (tail, last))
        z = F.silu(exact(self.z(x).unflatten(-1, (s.value_heads, -1))))
        return self.o((self.norm(y) * z).flatten(1).to(x.dtype))

    def start(self, draw: Callable[[str], torch.Generator]) -> None:
        """Begin as Mamba-2 does: A up to 16, steps between 0.001 and 0.1."""
        self.decay.copy_((16 * torch.rand(self.spec.value_heads, generator=draw("decay")) + 1e-3).log())
        self.step.copy_(steps(self.spec.value_heads, draw("step")))


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Give the last axis length one."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)
