"""RWKV-4: time mixing and channel mixing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.model import spec
from terakoya.model import spec_recurrent as kinds
from terakoya.model.context import Context
from terakoya.model.kernels import FAST, Kernels, Mixer, exact, parts, sequences


class Rwkv4(Mixer):
    """wkv_t = (sum_s e^{(t-1-s) w + k_s} v_s + e^{u + k_t} v_t) / the same without v (Peng 2023, eq. 14-18).

    The exponents are kept below 0 by their running maximum, which is part of the state.
    """

    def __init__(self, s: kinds.Rwkv4, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec, self.layer, self.depth = s, layer, model.depth
        D, A = model.dim, s.hidden or model.dim
        self.decay, self.first = (nn.Parameter(torch.empty(A)) for _ in range(2))
        self.mix_k, self.mix_v, self.mix_r = (nn.Parameter(torch.empty(1, 1, D)) for _ in range(3))
        self.k, self.v, self.r = (nn.Linear(D, A, bias=False) for _ in range(3))
        self.o = nn.Linear(A, D, bias=False)

    def forward(self, x: Tensor, ctx: Context, by: Kernels = FAST) -> Tensor:
        """Mix over time: x (T, D) -> (T, D)."""
        order = sequences(ctx, x)
        tail, total, most = parts(ctx.state(self.layer), 3)
        before, tail = by.shift(x, order, tail)
        k, v, r = (mix(x, before, m) for m in (self.mix_k, self.mix_v, self.mix_r))
        k, v, r = exact(self.k(k)), exact(self.v(v)), torch.sigmoid(self.r(r))
        if total is not None:  # a state of zeros is nothing: its exponent is none
            most = most.masked_fill(total[:, 1] == 0, float("-inf"))
        y, total, most = by.wkv(k, v, -exact(self.decay).exp(), exact(self.first), order, total, most)
        ctx.commit(self.layer, (tail, total, most))
        return self.o(r * y.to(x.dtype))

    def start(self, draw: Callable[[str], torch.Generator]) -> None:
        """Begin with paces from slow to fast over the channels (Peng 2023, appendix D)."""
        late = self.layer / max(1, self.depth - 1)
        A = self.decay.shape[0]
        h = torch.arange(A) / max(1, A - 1)
        self.decay.copy_(-5 + 8 * h ** (0.7 + 1.3 * late))
        self.first.copy_(((torch.arange(A) + 1) % 3 - 1) * 0.5 + torch.tensor(0.3).log())
        early = 1 - self.layer / self.depth
        place = torch.arange(self.mix_k.shape[-1]) / self.mix_k.shape[-1]
        self.mix_k.copy_(place**early)
        self.mix_v.copy_(place**early + 0.3 * late)
        self.mix_r.copy_(place ** (0.5 * early))


class RwkvChannel(Mixer):
    """sigmoid(R x') V relu(K x')^2, where x' mixes this token and the last (Peng 2023, eq. 19-21)."""

    def __init__(self, s: kinds.RwkvChannel, model: spec.Model, layer: int) -> None:
        super().__init__()
        # A state of its own beside the time mixer's of the same layer.
        self.spec, self.layer, self.place, self.depth = s, layer, layer + model.depth, model.depth
        D = model.dim
        self.mix_k, self.mix_r = (nn.Parameter(torch.empty(1, 1, D)) for _ in range(2))
        self.k = nn.Linear(D, s.hidden, bias=False)
        self.r = nn.Linear(D, D, bias=False)
        self.o = nn.Linear(s.hidden, D, bias=False)

    def forward(self, x: Tensor, ctx: Context, by: Kernels = FAST) -> Tensor:
        """Transform each token, with a look at the one before: x (T, D) -> (T, D)."""
        (tail,) = parts(ctx.state(self.place), 1)
        before, tail = by.shift(x, sequences(ctx, x), tail)
        ctx.commit(self.place, (tail,))
        k = self.k(mix(x, before, self.mix_k))
        return torch.sigmoid(self.r(mix(x, before, self.mix_r))) * self.o(F.relu(k).square())

    def start(self, draw: Callable[[str], torch.Generator]) -> None:
        place = torch.arange(self.mix_k.shape[-1]) / self.mix_k.shape[-1]
        for m in (self.mix_k, self.mix_r):
            m.copy_(place ** (1 - self.layer / self.depth))


def mix(x: Tensor, before: Tensor, share: Tensor) -> Tensor:
    """Return share * x + (1 - share) * the token before."""
    return x * share[0] + before * (1 - share[0])
