"""Griffin's recurrent block with its real-gated linear recurrent unit."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.model import spec
from terakoya.model import spec_recurrent as kinds
from terakoya.model.context import Context
from terakoya.model.kernels import FAST, Kernels, Mixer, Short, exact, parts, sequences

C = 8.0  # De 2024, §2.4


class RGLRU(Mixer):
    """o(gelu(gate x) * rglru(conv(W x))): h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t u_t) with a = e^{-C softplus(p) r_t}
    (De 2024, eq. 1-4). The first token of a sequence comes in whole.
    """

    def __init__(self, s: kinds.RGLRU, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec, self.layer = s, layer
        W, B = s.width, s.width // s.heads
        self.gate = nn.Linear(model.dim, W)
        self.x = nn.Linear(model.dim, W)
        self.conv = Short(W, s.conv, True)
        self.decay = nn.Parameter(torch.empty(W))
        self.take = nn.Parameter(torch.empty(s.heads, B, B))  # input gate
        self.take_bias = nn.Parameter(torch.empty(s.heads, B))
        self.keep = nn.Parameter(torch.empty(s.heads, B, B))  # recurrence gate
        self.keep_bias = nn.Parameter(torch.empty(s.heads, B))
        self.o = nn.Linear(W, model.dim)

    def forward(self, x: Tensor, ctx: Context, by: Kernels = FAST) -> Tensor:
        """Mix over time: x (T, D) -> (T, D)."""
        order = sequences(ctx, x)
        tail, start = parts(ctx.state(self.layer), 2)
        u, tail = self.conv(self.x(x), order, tail, by)
        blocks = u.unflatten(-1, (self.spec.heads, -1)).transpose(0, 1)
        take, keep = (
            torch.baddbmm(b[:, None], blocks, w).transpose(0, 1).flatten(1)
            for w, b in ((self.take, self.take_bias), (self.keep, self.keep_bias))
        )
        fall = -C * F.softplus(exact(self.decay))
        first = ctx.pos if order.count == x.shape[0] else ctx.pos[order.first]
        fresh = (first == 0).to(fall.dtype)
        y, last = by.rglru(u, take, keep, self.gate(x), fall, fresh, order, start)
        ctx.commit(self.layer, (tail, last))
        return self.o(y)

    def start(self, draw: Callable[[str], torch.Generator]) -> None:
        """Begin with a^C between 0.9 and 0.999 (De 2024, §2.4)."""
        a = torch.rand(self.spec.width, generator=draw("decay")) * (0.999**2 - 0.9**2) + 0.9**2
        self.decay.copy_(torch.log(torch.expm1(-0.5 * a.log())))
        self.take_bias.zero_()
        self.keep_bias.zero_()
