"""Gates and norms around recurrences: in single precision on a CPU one pass over memory each way (`csrc/gated.h`)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from terakoya.ops import recur
from terakoya.ops.scan import scan
from terakoya.ops.sequences import Sequences


def rglru(
    u: Tensor, take: Tensor, keep: Tensor, gate: Tensor, fall: Tensor, fresh: Tensor, sequences: Sequences,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run Griffin's gated recurrence and the gate behind it, as `model.naive.rglru` defines it.

    u, take, keep, gate (T, D), fall (D) <= 0, fresh (N) not 0 where a text begins, start (N, D) -> y (T, D), last h.
    """
    if start is None:
        start = fall.new_zeros(sequences.count, u.shape[1])
    if max(sequences.lengths) > 1 and recur.able(1, u, take, keep, gate, fall, fresh, start):
        return _Rglru.apply(u, take, keep, gate, fall, fresh, start, sequences)  # type: ignore[return-value]
    a, b = gates(u, take, keep, fall, fresh, sequences)
    h, last = scan(a, b, sequences, start)
    return h.to(u.dtype) * F.gelu(gate, approximate="tanh"), last


def gates(
    u: Tensor, take: Tensor, keep: Tensor, fall: Tensor, fresh: Tensor, sequences: Sequences
) -> tuple[Tensor, Tensor]:
    """Return what RG-LRU keeps and adds: a = e^(sigmoid(keep) fall) and sqrt(1 - a^2) sigmoid(take) u, both (T, D)."""
    log_a = torch.sigmoid(keep).to(fall.dtype) * fall
    begins = fresh[:, None] != 0
    if sequences.count < u.shape[0]:  # else every token is the first of its sequence, and nothing is looked up
        begins = torch.zeros(u.shape[0], 1, dtype=torch.bool, device=u.device).index_copy(0, sequences.first, begins)
    room = torch.sqrt(-torch.expm1(2 * log_a)).masked_fill(begins, 1.0)
    return log_a.exp(), room * (u * torch.sigmoid(take)).to(fall.dtype)


def normed(x: Tensor, gate: Tensor, eps: float) -> Tensor:
    """Scale heads by their root mean square, then by silu(gate): x, gate (T, H, V) -> (T, H, V)."""
    if recur.able(1, x, gate):
        return _Normed.apply(x, gate, eps)  # type: ignore[return-value]
    return F.rms_norm(x, x.shape[-1:], None, eps).to(gate.dtype) * F.silu(gate)


class _Rglru(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        *tensors, sequences = given
        tensors = recur.flat(tensors)
        u, start = tensors[0], tensors[-1]
        y, h, last = torch.empty_like(u), torch.empty_like(u), torch.empty_like(start)
        recur.call("rglru", tensors, (y, h, last), sequences, u.shape[1])
        ctx.save_for_backward(*tensors, h)
        ctx.sequences = sequences
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *tensors, h = ctx.saved_tensors
        u, _, _, _, fall, _, start = tensors
        *four, gfall, gstart = [torch.empty_like(t) for t in (u, u, u, u, fall, start)]
        given = (*tensors, h, *recur.flat(grads))
        recur.call("rglru_back", given, (*four, gfall, gstart), ctx.sequences, u.shape[1])
        return *four, gfall, None, gstart, None


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        *tensors, eps = given
        x, gate = recur.flat(tensors)
        small, y = torch.tensor([eps]), torch.empty_like(x)
        rows = x.numel() // x.shape[-1]
        ctx.shape = Sequences([0, rows], "cpu"), rows, x.shape[-1]
        recur.call("normed", (x, gate, small), (y,), *ctx.shape)
        ctx.save_for_backward(x, gate, small)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, gate, small = ctx.saved_tensors
        made = torch.empty_like(x), torch.empty_like(gate)
        recur.call("normed_back", (x, gate, small, *recur.flat(grads)), made, *ctx.shape)
        return *made, None
