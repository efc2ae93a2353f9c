"""RWKV-7: a state that is read, corrected and let fade channel by channel."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.model import spec
from terakoya.model import spec_recurrent as kinds
from terakoya.model.context import Context
from terakoya.model.kernels import FAST, Kernels, Mixer, exact, parts, sequences

MIXED = ("r", "w", "k", "v", "a", "g")
SLOWEST = math.exp(-0.5)  # no channel keeps less than e^-SLOWEST of itself a step


class Low(nn.Module):
    """base + act(x A) B, of low rank (Peng 2025, §4.1)."""

    def __init__(self, dim: int, rank: int, act: Callable[[Tensor], Tensor] | None, base: bool = True) -> None:
        super().__init__()
        self.act = act
        self.a = nn.Linear(dim, rank, bias=False)
        self.b = nn.Linear(rank, dim, bias=base)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h if self.act is None else self.act(h))


class Rwkv7(Mixer):
    """S_t = S_{t-1} (diag(w_t) - k'_t^T (a_t k'_t)) + v_t^T k_t, y_t = S_t r_t (Peng 2025, arXiv:2503.14456, §4.1).

    k' is the direction of k; every layer but the first mixes its values with the first one's.
    """

    def __init__(self, s: kinds.Rwkv7, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec, self.layer = s, layer
        D = model.dim
        self.shares = nn.ParameterDict({x: nn.Parameter(torch.empty(D)) for x in MIXED})
        self.r, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.w = Low(D, s.decay, torch.tanh)
        self.a = Low(D, s.rate, None)
        self.g = Low(D, s.gate, torch.sigmoid, base=False)
        self.first = None if s.value is None else Low(D, s.value, None)
        self.lengthen, self.soften = (nn.Parameter(torch.empty(D)) for _ in range(2))  # k_k and k_a
        self.bonus = nn.Parameter(torch.empty(s.heads, D // s.heads))
        self.norm = nn.Parameter(torch.empty(D))
        self.norm_bias = nn.Parameter(torch.empty(D))

    def forward(self, x: Tensor, ctx: Context, by: Kernels = FAST) -> Tensor:
        """Mix over time: x (T, D) -> (T, D)."""
        H, order = self.spec.heads, sequences(ctx, x)
        tail, start = parts(ctx.state(self.layer), 2)
        before, tail = by.shift(x, order, tail)
        xr, xw, xk, xv, xa, xg = (x + (before - x) * self.shares[name] for name in MIXED)
        r, k, v = self.r(xr), self.k(xk), self.v(xv)
        w = -SLOWEST * torch.sigmoid(exact(self.w(xw)))
        a, g = torch.sigmoid(self.a(xa)), self.g(xg)
        own = v
        first = ctx.share("rwkv7 first values", lambda: own)
        if self.first is not None:
            v = v + (first - v) * torch.sigmoid(self.first(xv))
        way = F.normalize((k * self.lengthen).unflatten(-1, (H, -1)), dim=-1)
        k = k * (1 + (a - 1) * self.soften)
        r, w, k, v, a = (exact(t.unflatten(-1, (H, -1))) for t in (r, w, k, v, a))
        way = exact(way)
        y, last = by.general(r, w, k, v, -way, way * a, order, start)
        ctx.commit(self.layer, (tail, last))
        y = F.group_norm(y.flatten(1), H, exact(self.norm), exact(self.norm_bias), eps=64e-5)
        y = y + ((r * k * self.bonus).sum(-1, keepdim=True) * v).flatten(1)
        return self.o(y.to(x.dtype) * g)

    def start(self, draw: Callable[[str], torch.Generator]) -> None:
        """Begin with decays from slow to fast over the channels, and a state that corrects itself fully."""
        D = self.norm.shape[0]
        place = torch.arange(D) / max(1, D - 1)
        for p in self.shares.values():
            p.copy_(1 - torch.arange(D) / D)
        assert self.w.b.bias is not None and self.a.b.bias is not None
        self.w.b.bias.copy_(-6 + 6 * place)
        self.a.b.bias.zero_()
        if self.first is not None and self.first.b.bias is not None:
            self.first.b.bias.fill_(1.0)
        self.lengthen.fill_(0.85)
        self.soften.fill_(1.0)
        self.norm.fill_(1.0)
        self.norm_bias.zero_()


class Rwkv7Channel(Mixer):
    """V relu(K x')^2, where x' mixes this token and the last (Peng 2025, §4.2)."""

    def __init__(self, s: kinds.Rwkv7Channel, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec, self.place = s, layer + model.depth  # beside the time mixer's state of the same layer
        self.share = nn.Parameter(torch.empty(model.dim))
        self.k = nn.Linear(model.dim, s.hidden, bias=False)
        self.o = nn.Linear(s.hidden, model.dim, bias=False)

    def forward(self, x: Tensor, ctx: Context, by: Kernels = FAST) -> Tensor:
        """Transform each token, with a look at the one before: x (T, D) -> (T, D)."""
        (tail,) = parts(ctx.state(self.place), 1)
        before, tail = by.shift(x, sequences(ctx, x), tail)
        ctx.commit(self.place, (tail,))
        return self.o(F.relu(self.k(x + (before - x) * self.share)).square())

    def start(self, draw: Callable[[str], torch.Generator]) -> None:
        D = self.share.shape[0]
        self.share.copy_(1 - (torch.arange(D) / D) ** 4)
