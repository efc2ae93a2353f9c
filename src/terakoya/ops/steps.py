"""Elman's cell and the GRU on the way back: in time only what must wait, everything else in products over all steps.

Torch differentiates each of their steps by itself on a CPU: dozens of small operations a token, and a gradient as
large as the weights. Here a step back is one product with the recurrent weights, and the weights' gradients are one
product at the end. (For LSTMs torch does so.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def wanted(*tensors: Tensor) -> bool:
    """Return whether to run here: on the CPU, with a way back."""
    return torch.is_grad_enabled() and tensors[0].device.type == "cpu" and any(t.requires_grad for t in tensors)


def rnn(x: Tensor, start: Tensor, weights: list[Tensor]) -> Tensor:
    """Run h <- tanh(W x + b + U h + c): x (T, N, D), start (N, H), weights W, U, b, c -> (T, N, H)."""
    return _RNN.apply(x, start, *weights)  # type: ignore[return-value]


def gru(x: Tensor, start: Tensor, weights: list[Tensor]) -> Tensor:
    """Run h <- (1 - z) n + z h, n = tanh(W_n x + r (U_n h)), weights in rows r, z, n: as `rnn`."""
    return _GRU.apply(x, start, *weights)  # type: ignore[return-value]


class _RNN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        x, h, w, u, b, c = given
        out, turned, begin = x @ w.t() + (b + c), u.t(), h
        for row in out.unbind():
            h = row.addmm_(h, turned).tanh_()
        ctx.save_for_backward(x, begin, w, u, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        x, begin, w, u, out = ctx.saved_tensors
        d, slope = grads[0].clone(), 1 - out * out
        carry = torch.zeros_like(begin)
        for row, by in zip(reversed(d.unbind()), reversed(slope.unbind()), strict=True):
            row.add_(carry).mul_(by)
            torch.mm(row, u, out=carry)
        bias = d.sum((0, 1))
        return d @ w, carry, _weight(d, x), _weight(d, _before(out, begin)), bias, bias


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        x, h, w, u, b, c = given
        H, turned, begin = h.shape[1], u.t(), h
        come = x @ w.t() + b
        held = torch.empty_like(come)  # what the last output gives
        gates, n = come.split([2 * H, H], -1)
        out = torch.empty_like(n)
        rows = (*(t.unbind() for t in (held, held[..., : 2 * H], held[..., 2 * H :])),)
        parts = zip(*rows, gates.unbind(), n.unbind(), out.unbind(), strict=True)
        for whole, low, high, gate, new, to in parts:
            torch.addmm(c, h, turned, out=whole)
            gate.add_(low).sigmoid_()
            new.addcmul_(gate[:, :H], high).tanh_()
            h = torch.lerp(new, h, gate[:, H:], out=to)
        ctx.save_for_backward(x, begin, w, u, come, held[..., 2 * H :], out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        x, begin, w, u, come, held, out = ctx.saved_tensors
        r, z, n = come.chunk(3, -1)
        before = _before(out, begin)
        new = (1 - z) * (1 - n * n)
        # the slopes of U h in that of h
        by = torch.stack([new * held * r * (1 - r), (before - n) * z * (1 - z), new * r], 2)
        slopes, d = torch.empty_like(by), grads[0].clone()
        carry = torch.zeros_like(begin)
        parts = zip(*(reversed(t.unbind()) for t in (d, by, slopes, z)), strict=True)
        for row, k, to, kept in parts:
            row.add_(carry)
            torch.mul(row[:, None], k, out=to)
            torch.addmm(row * kept, to.flatten(1), u, out=carry)
        theirs = slopes.flatten(2)
        mine = torch.cat([theirs[..., : -d.shape[-1]], d * new], -1)
        return (
            mine @ w, carry, _weight(mine, x), _weight(theirs, before), mine.sum((0, 1)), theirs.sum((0, 1)),
        )  # fmt: skip


def _before(out: Tensor, start: Tensor) -> Tensor:
    return torch.cat([start[None], out[:-1]])


def _weight(d: Tensor, x: Tensor) -> Tensor:
    return d.flatten(0, 1).t() @ x.flatten(0, 1)
