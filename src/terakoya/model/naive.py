"""What the kernels of `ops` compute, token after token as the papers write it: the definition they are tested against.

Every function takes and gives what its namesake in `ops` does.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from terakoya.ops.sequences import Sequences


def scan(a: Tensor, b: Tensor, sequences: Sequences, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + b_t."""
    a = a.expand_as(b)

    def step(h: Tensor, t: int) -> tuple[Tensor, Tensor]:
        h = a[t] * h + b[t]
        return h, h

    return _loop(step, _nothing(start, b, sequences, *b.shape[1:]), sequences)


def decayed(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, sequences: Sequences, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S_t = e^{g_t} S_{t-1} + k_t v_t^T, y_t = S_t^T q_t (Dao 2024, eq. 2 with a scalar A)."""

    def step(s: Tensor, t: int) -> tuple[Tensor, Tensor]:
        s = s if g is None else g[t].exp()[:, None, None] * s
        s = s + k[t][:, :, None] * v[t][:, None, :]
        return s, torch.einsum("hkv,hk->hv", s, q[t])

    return _loop(step, _nothing(start, v, sequences, k.shape[1], k.shape[2], v.shape[2]), sequences)


def delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, sequences: Sequences, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S_t = e^{g_t} (1 - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T (Yang 2024, eq. 10, transposed)."""

    def step(s: Tensor, t: int) -> tuple[Tensor, Tensor]:
        s = g[t].exp()[:, None, None] * s
        held = torch.einsum("hkv,hk->hv", s, k[t])
        s = s + beta[t][:, None, None] * k[t][:, :, None] * (v[t] - held)[:, None, :]
        return s, torch.einsum("hkv,hk->hv", s, q[t])

    return _loop(step, _nothing(start, v, sequences, k.shape[1], k.shape[2], v.shape[2]), sequences)


def general(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, sequences: Sequences, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S_t = (diag(e^{w_t}) + b_t a_t^T) S_{t-1} + k_t v_t^T, y_t = S_t^T r_t (Peng 2025, eq. 17, transposed)."""

    def step(s: Tensor, t: int) -> tuple[Tensor, Tensor]:
        held = torch.einsum("hkv,hk->hv", s, a[t])
        s = w[t].exp()[:, :, None] * s + b[t][:, :, None] * held[:, None, :] + k[t][:, :, None] * v[t][:, None, :]
        return s, torch.einsum("hkv,hk->hv", s, r[t])

    return _loop(step, _nothing(start, v, sequences, k.shape[1], k.shape[2], v.shape[2]), sequences)


def invariant(
    u: Tensor, a: Tensor, b: Tensor, c: Tensor, sequences: Sequences, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x_t = A x_{t-1} + B u_t, y_t = Re(C x_t) for every channel, A a diagonal or a matrix (Gu 2021, eq. 2)."""

    def step(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        x = (a * x if a.dim() == 2 else (a @ x[..., None])[..., 0]) + b * u[t][:, None]
        return x, (c * x).sum(-1).real

    return _loop(step, _nothing(start, b, sequences, *b.shape), sequences)


def short(
    x: Tensor, weight: Tensor, bias: Tensor | None, sequences: Sequences, tail: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y_t = bias + sum_j weight_j x_{t - W + 1 + j}."""
    W = weight.shape[1]

    def step(held: Tensor, t: int) -> tuple[Tensor, Tensor]:
        window = torch.cat([held, x[t : t + 1]])
        y = (window * weight.t()).sum(0)
        return window[1:], y if bias is None else y + bias

    return _loop(step, _nothing(tail, x, sequences, W - 1, x.shape[1]), sequences)


def shift(x: Tensor, sequences: Sequences, tail: Tensor | None) -> tuple[Tensor, Tensor]:
    """y_t = x_{t-1}."""

    def step(held: Tensor, t: int) -> tuple[Tensor, Tensor]:
        return x[t], held

    return _loop(step, _nothing(tail, x, sequences, x.shape[1]), sequences)


def long(x: Tensor, filters: Tensor, sequences: Sequences) -> Tensor:
    """y_t = sum_{s <= t} filters_{t - s} x_s."""
    out = []
    for a, b in pairwise(sequences.cu):
        out += [(filters[: t - a + 1].flip(0).to(x.dtype) * x[a : t + 1]).sum(0) for t in range(a, b)]
    return torch.stack(out)


def _nothing(start: Tensor | None, like: Tensor, sequences: Sequences, *shape: int) -> Tensor:
    return like.new_zeros(sequences.count, *shape) if start is None else start


def _loop(
    step: Callable[[Tensor, int], tuple[Tensor, Tensor]], start: Tensor, sequences: Sequences
) -> tuple[Tensor, Tensor]:
    out, ends = [], []
    for n, (a, b) in enumerate(pairwise(sequences.cu)):
        state = start[n]
        for t in range(a, b):
            state, y = step(state, t)
            out.append(y)
        ends.append(state)
    return torch.stack(out), torch.stack(ends)
