"""S4's system, whose matrix is diagonal plus low rank: steps of N instead of N² or N³ numbers a channel.

x' = (diag - P P*) x + B u by the bilinear rule, y = Re(C x) (Gu 2021, S4, §3). By Woodbury's identity the inverse that
the rule asks for is a diagonal and a low rank too, so a step costs a product and a sum; the filter C A^i B is that many
steps from B. The paper reads the filter off its spectrum by a Cauchy kernel, as many products and all at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from terakoya.ops.sequences import Sequences

STACK = 64  # states that are held until they are read together


@dataclass(frozen=True)
class LowRank:
    """(1 - dt/2 A)^-1 = diag(r) - q s*, for A = diag - P P*: r, q, s (D, N) complex; dt B is beside it."""

    r: Tensor
    q: Tensor
    s: Tensor
    write: Tensor  # dt B (D, N)

    @staticmethod
    def of(diag: Tensor, low: Tensor, write: Tensor, dt: Tensor) -> LowRank:
        """Hold a system over steps of dt: diag, low, write (N,) complex, dt (D,)."""
        half = dt[:, None] / 2
        r = (1 - half * diag).reciprocal()
        weighed = half * r * low
        q = weighed / (1 + (weighed * low.conj()).sum(-1, keepdim=True))
        return LowRank(r, q, r * low.conj(), dt[:, None] * write)

    def solved(self, y: Tensor) -> Tensor:
        """Return (1 - dt/2 A)^-1 y for y (..., D, N)."""
        return torch.addcmul(self.r * y, -self.q, (self.s * y).sum(-1, keepdim=True))

    def advanced(self, u: Tensor, x: Tensor) -> Tensor:
        """Take one step: u (B, D), state x (B, D, N) -> the next; (1 - hA)^-1 (1 + hA) = 2 (1 - hA)^-1 - 1."""
        return self.solved(2 * x + self.write * u[..., None]) - x

    def stepped(self, u: Tensor, read: Tensor, order: Sequences, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """Read the system over time: u (T, D), read (D, N), start (B, D, N) -> y (T, D), last states (B, D, N)."""
        x = self.write.new_zeros(order.count, *self.write.shape) if start is None else start
        if max(order.lengths) == 1:
            x = self.advanced(u, x)
            return (read * x).sum(-1).real, x
        out, ends = [], []
        for texts, state in zip(u.split(order.lengths), x.split(1), strict=True):
            for piece in texts.split(STACK):
                rows = []
                for row in piece.split(1):
                    state = self.advanced(row, state)
                    rows.append(state[0])
                out.append(_read(read, rows))
            ends.append(state)
        return torch.cat(out), torch.cat(ends)

    def filter(self, read: Tensor, length: int) -> Tensor:
        """Return Re(C A^i B) for i < length: read (D, N) -> (length, D)."""
        x, keep, give = self.solved(self.write), 2 * self.r - 1, -2 * self.q
        rows, out = [x], []
        for i in range(1, length):
            x = torch.addcmul(keep * x, give, (self.s * x).sum(-1, keepdim=True))
            if i % STACK == 0:
                out.append(_read(read, rows))
                rows = []
            rows.append(x)
        return torch.cat([*out, _read(read, rows)])


def _read(read: Tensor, rows: list[Tensor]) -> Tensor:
    return torch.einsum("ldn,dn->ld", torch.stack(rows), read).real
