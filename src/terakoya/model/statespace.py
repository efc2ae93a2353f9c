"""State spaces that are the same for every token: S4D, S4, and H3, which puts two of them in attention's place."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.model import spec
from terakoya.model import spec_recurrent as kinds
from terakoya.model.context import Context, Packed
from terakoya.model.kernels import FAST, NAIVE, Kernels, Mixer, Short, exact, parts, sequences
from terakoya.ops import lowrank


class Diagonal(nn.Module):
    """x' = A x + u, y = 2 Re(C x) + D u for each channel, A diagonal, held over steps of dt (Gu 2022, S4D, eq. 4)."""

    def __init__(self, channels: int, state: int) -> None:
        super().__init__()
        N = state // 2  # each with its conjugate
        self.dt = nn.Parameter(torch.empty(channels))  # logarithms
        self.decay = nn.Parameter(torch.empty(channels, N))  # log(-Re A)
        self.turn = nn.Parameter(torch.empty(channels, N))  # Im A
        self.read = nn.Parameter(torch.empty(channels, N, 2))  # C
        self.through = nn.Parameter(torch.empty(channels))

    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (A, B, C) of one step, complex (D, N): e^{dt A}, (e^{dt A} - 1) / A, 2 C."""
        a = torch.complex(-exact(self.decay).exp(), exact(self.turn))
        z = a * exact(self.dt).exp()[:, None]
        return z.exp(), torch.expm1(z) / a, 2 * torch.view_as_complex(exact(self.read).contiguous())

    def forward(self, u: Tensor, ctx: Context, state: Tensor | None, by: Kernels) -> tuple[Tensor, Tensor]:
        """Run over time: u (T, D), state (N, D, S, 2) -> (T, D), state."""
        return run(self, u, ctx, state, by)

    def start(self, draw: Callable[[str], torch.Generator]) -> None:
        """Begin with A_n = -1/2 + i pi n (S4D-Lin, Gu 2022, §4.2) and steps between 0.001 and 0.1."""
        self.decay.fill_(math.log(0.5))
        self.turn.copy_((math.pi * torch.arange(self.turn.shape[1])).expand_as(self.turn))
        begin(self, draw)


class LowRank(nn.Module):
    """The same with A = diag - P P*, which holds HiPPO's matrix, by the bilinear rule (Gu 2021, S4, §3)."""

    def __init__(self, channels: int, state: int) -> None:
        super().__init__()
        self.dt = nn.Parameter(torch.empty(channels))
        self.decay = nn.Parameter(torch.empty(state))
        self.turn = nn.Parameter(torch.empty(state))
        self.low = nn.Parameter(torch.empty(state, 2))  # P
        self.write = nn.Parameter(torch.empty(state, 2))  # B
        self.read = nn.Parameter(torch.empty(channels, state, 2))  # C
        self.through = nn.Parameter(torch.empty(channels))

    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (A, B, C) of one step, complex: (D, N, N), (D, N), (D, N)."""
        low, write, read = (torch.view_as_complex(exact(p).contiguous()) for p in (self.low, self.write, self.read))
        a = torch.diag(torch.complex(-exact(self.decay).exp(), exact(self.turn))) - low[:, None] * low.conj()[None]
        dt = exact(self.dt).exp()[:, None, None]
        half = dt / 2 * a
        one = torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
        both = torch.cat([one + half, dt * write[:, None]], -1)
        made = torch.linalg.solve(one - half, both)
        return made[..., :-1], made[..., -1], read

    def forward(self, u: Tensor, ctx: Context, state: Tensor | None, by: Kernels) -> tuple[Tensor, Tensor | None]:
        """Run over time: u (T, D), state (N, D, S, 2) -> (T, D), state; none where nothing will be remembered."""
        if by is NAIVE:
            return run(self, u, ctx, state, by)
        x, order = exact(u), sequences(ctx, u)
        low, write, read = (torch.view_as_complex(exact(p).contiguous()) for p in (self.low, self.write, self.read))
        diag = torch.complex(-exact(self.decay).exp(), exact(self.turn))
        system = lowrank.LowRank.of(diag, low, write, exact(self.dt).exp())
        if state is None and isinstance(ctx, Packed):
            y, last = by.long(x, system.filter(read, max(order.lengths)), order), None
        else:
            held = None if state is None else torch.view_as_complex(exact(state).contiguous())
            y, after = system.stepped(x, read, order, held)
            last = torch.view_as_real(after)
        return (y + x * self.through).to(u.dtype), last

    def start(self, draw: Callable[[str], torch.Generator]) -> None:
        """Begin with HiPPO-LegS, normal plus low rank (Gu 2020; Gu 2021, theorem 1)."""
        turn, low, write = legs(self.turn.shape[0])
        self.decay.fill_(math.log(0.5))
        self.turn.copy_(turn)
        self.low.copy_(torch.view_as_real(low))
        self.write.copy_(torch.view_as_real(write))
        begin(self, draw)


def legs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return HiPPO-LegS as V (diag(-1/2 + i turn) - P P*) V*: (turn, P, B), each (n,)."""
    root = torch.sqrt(2 * torch.arange(n, dtype=torch.float64) + 1)
    a = -(torch.tril(root[:, None] * root[None, :], -1) + torch.diag(torch.arange(n, dtype=torch.float64) + 1))
    p = torch.sqrt(torch.arange(n, dtype=torch.float64) + 0.5)
    skew = a + p[:, None] * p[None, :] + 0.5 * torch.eye(n, dtype=torch.float64)
    turn, v = torch.linalg.eigh(-1j * skew.to(torch.complex128))
    back = v.conj().T
    return turn, back @ p.to(v.dtype), back @ root.to(v.dtype)


def run(
    system: Diagonal | LowRank, u: Tensor, ctx: Context, state: Tensor | None, by: Kernels
) -> tuple[Tensor, Tensor]:
    """Run a system over a step; its complex state is kept as pairs: u (T, D) -> (T, D), (N, D, S, 2)."""
    a, b, c = system.system()
    held = None if state is None else torch.view_as_complex(exact(state).contiguous())
    y, last = by.invariant(exact(u), a, b, c, sequences(ctx, u), held)
    return (y + exact(u) * system.through).to(u.dtype), torch.view_as_real(last)


def begin(system: Diagonal | LowRank, draw: Callable[[str], torch.Generator]) -> None:
    """Set what both kinds have: steps between 0.001 and 0.1, a random C."""
    dt = torch.rand(system.dt.shape, generator=draw("dt"))
    system.dt.copy_(dt * math.log(100) + math.log(0.001))
    system.read.copy_(torch.randn(system.read.shape, generator=draw("read")) * 0.5**0.5)
    system.through.copy_(torch.randn(system.through.shape, generator=draw("through")))


class S4(Mixer):
    """GLU(W gelu(system(x))): one system per channel, then channels meet (Gu 2021; Gu 2022)."""

    def __init__(self, s: kinds.S4 | kinds.S4D, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec, self.layer = s, layer
        kind = LowRank if isinstance(s, kinds.S4) else Diagonal
        self.system = kind(model.dim, s.state)
        self.o = nn.Linear(model.dim, 2 * model.dim)

    def forward(self, x: Tensor, ctx: Context, by: Kernels = FAST) -> Tensor:
        """Mix over time: x (T, D) -> (T, D)."""
        (state,) = parts(ctx.state(self.layer), 1)
        y, state = self.system(x, ctx, state, by)
        if state is not None:
            ctx.commit(self.layer, (state,))
        return F.glu(self.o(F.gelu(y)), -1)


class H3(Mixer):
    """q * diagonal(shift(k) * v): a shift remembers what was just before, a diagonal system what matched (Fu 2022, §3).

    The shift's state is its last inputs, so it is a convolution of `taps` values.
    """

    def __init__(self, s: kinds.H3, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec, self.layer = s, layer
        D = model.dim
        self.q, self.k, self.v, self.o = (nn.Linear(D, D) for _ in range(4))
        self.conv = Short(D, s.taps, False)
        self.through = nn.Parameter(torch.empty(D))  # the shift's D
        self.system = Diagonal(D, s.state)

    def forward(self, x: Tensor, ctx: Context, by: Kernels = FAST) -> Tensor:
        """Mix over time: x (T, D) -> (T, D)."""
        tail, state = parts(ctx.state(self.layer), 2)
        q, k, v = self.q(x), self.k(x), self.v(x)
        shifted, tail = self.conv(k, sequences(ctx, x), tail, by)
        y, state = self.system((shifted + k * self.through) * v, ctx, state, by)
        ctx.commit(self.layer, (tail, state))
        return self.o(q * y)

    def start(self, draw: Callable[[str], torch.Generator]) -> None:
        self.conv.weight.copy_(torch.randn(self.conv.weight.shape, generator=draw("conv")) * self.spec.taps**-0.5)
        self.through.copy_(torch.randn(self.through.shape, generator=draw("through")))
