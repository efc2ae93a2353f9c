"""What the kernels of `ops` compute, token after token as the papers write it: the definition they are tested against.

Every function takes and gives what its namesake in `ops` does.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from terakoya.ops.gated import gates
from terakoya.ops.sequences import Sequences


def scan(a: Tensor, b: Tensor, sequences: Sequences, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + b_t."""
    first = _nothing(start, b, sequences, *b.shape[1:])
    keep, come = a.expand_as(b).unbind(), b.unbind()  # once: the gradient of a[t] would be as large as a

    def step(h: Tensor, t: int) -> tuple[Tensor, Tensor]:
        h = keep[t] * h + come[t]
        return h, h

    return _loop(step, first, sequences)


def selective(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, sequences: Sequences, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """h_t = e^{dt_t A} h_{t-1} + dt_t u_t B_t, y_t = C_t h_t (Gu & Dao 2023, eq. 2a with zero-order hold for A)."""
    first = _nothing(start, u, sequences, *a.shape)
    us, dts, bs, cs = (x.unbind() for x in (u, dt, b, c))

    def step(h: Tensor, t: int) -> tuple[Tensor, Tensor]:
        h = torch.exp(dts[t][:, None] * a) * h + (dts[t] * us[t])[:, None] * bs[t]
        return h, h @ cs[t]

    return _loop(step, first, sequences)


def decayed(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, sequences: Sequences, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S_t = e^{g_t} S_{t-1} + k_t v_t^T, y_t = S_t^T q_t (Dao 2024, eq. 2 with a scalar A)."""
    first = _nothing(start, v, sequences, k.shape[1], k.shape[2], v.shape[2])
    qs, ks, vs = q.unbind(), k.unbind(), v.unbind()
    gs = None if g is None else g.unbind()

    def step(s: Tensor, t: int) -> tuple[Tensor, Tensor]:
        s = s if gs is None else gs[t].exp()[:, None, None] * s
        s = s + ks[t][:, :, None] * vs[t][:, None, :]
        return s, torch.einsum("hkv,hk->hv", s, qs[t])

    return _loop(step, first, sequences)


def delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, sequences: Sequences, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S_t = e^{g_t} (1 - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T (Yang 2024, eq. 10, transposed)."""
    first = _nothing(start, v, sequences, k.shape[1], k.shape[2], v.shape[2])
    qs, ks, vs, gs, bs = (x.unbind() for x in (q, k, v, g, beta))

    def step(s: Tensor, t: int) -> tuple[Tensor, Tensor]:
        s = gs[t].exp()[:, None, None] * s
        held = torch.einsum("hkv,hk->hv", s, ks[t])
        s = s + bs[t][:, None, None] * ks[t][:, :, None] * (vs[t] - held)[:, None, :]
        return s, torch.einsum("hkv,hk->hv", s, qs[t])

    return _loop(step, first, sequences)


def general(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, sequences: Sequences, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S_t = (diag(e^{w_t}) + b_t a_t^T) S_{t-1} + k_t v_t^T, y_t = S_t^T r_t (Peng 2025, eq. 17, transposed)."""
    first = _nothing(start, v, sequences, k.shape[1], k.shape[2], v.shape[2])
    rs, ws, ks, vs, as_, bs = (x.unbind() for x in (r, w, k, v, a, b))

    def step(s: Tensor, t: int) -> tuple[Tensor, Tensor]:
        held = torch.einsum("hkv,hk->hv", s, as_[t])
        s = ws[t].exp()[:, :, None] * s + bs[t][:, :, None] * held[:, None, :] + ks[t][:, :, None] * vs[t][:, None, :]
        return s, torch.einsum("hkv,hk->hv", s, rs[t])

    return _loop(step, first, sequences)


def invariant(
    u: Tensor, a: Tensor, b: Tensor, c: Tensor, sequences: Sequences, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x_t = A x_{t-1} + B u_t, y_t = Re(C x_t) for every channel, A a diagonal or a matrix (Gu 2021, eq. 2)."""
    us = u.unbind()

    def step(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        x = (a * x if a.dim() == 2 else (a @ x[..., None])[..., 0]) + b * us[t][:, None]
        return x, (c * x).sum(-1).real

    return _loop(step, _nothing(start, b, sequences, *b.shape), sequences)


def wkv(
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    sequences: Sequences,
    total: Tensor | None = None,
    most: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """a_t = e^w a_{t-1} + e^{k_t} v_t, b_t the same without v, y_t = (a_{t-1} + e^{u+k_t} v_t) / (b_{t-1} + e^{u+k_t}).

    a and b are kept times e^-m, m_t = max(m_{t-1} + w, k_t) (Peng 2023, appendix).
    """
    sums = _nothing(total, k, sequences, 2, k.shape[1])
    tops = torch.full_like(sums[:, 0], float("-inf")) if most is None else most
    ks, vs, out, ends, peaks = k.unbind(), v.unbind(), [], [], []
    for n, (begin, end) in enumerate(pairwise(sequences.cu)):
        (a, b), m = sums[n].unbind(), tops[n]
        for t in range(begin, end):
            top = torch.maximum(m, u + ks[t]).detach()
            e1, e2 = torch.exp(m - top), torch.exp(u + ks[t] - top)
            out.append((e1 * a + e2 * vs[t]) / (e1 * b + e2))
            top = torch.maximum(m + w, ks[t]).detach()
            e1, e2 = torch.exp(m + w - top), torch.exp(ks[t] - top)
            a, b, m = e1 * a + e2 * vs[t], e1 * b + e2, top
        ends.append(torch.stack([a, b]))
        peaks.append(m)
    return torch.stack(out), torch.stack(ends), torch.stack(peaks)


def rglru(
    u: Tensor, take: Tensor, keep: Tensor, gate: Tensor, fall: Tensor, fresh: Tensor, sequences: Sequences,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y_t = h_t gelu(gate_t), h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (sigmoid(take_t) u_t) with a_t = e^{sigmoid(keep_t)
    fall} (De 2024, eq. 1-4); the first token of a text comes in whole.
    """
    h, last = scan(*gates(u, take, keep, fall, fresh, sequences), sequences, start)
    return h.to(u.dtype) * F.gelu(gate, approximate="tanh"), last


def short(
    x: Tensor, weight: Tensor, bias: Tensor | None, sequences: Sequences, tail: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y_t = bias + sum_j weight_j x_{t - W + 1 + j}."""
    W, xs = weight.shape[1], x.split(1)

    def step(held: Tensor, t: int) -> tuple[Tensor, Tensor]:
        window = torch.cat([held, xs[t]])
        y = (window * weight.t()).sum(0)
        return window[1:], y if bias is None else y + bias

    return _loop(step, _nothing(tail, x, sequences, W - 1, x.shape[1]), sequences)


def shift(x: Tensor, sequences: Sequences, tail: Tensor | None) -> tuple[Tensor, Tensor]:
    """y_t = x_{t-1}."""

    xs = x.unbind()

    def step(held: Tensor, t: int) -> tuple[Tensor, Tensor]:
        return xs[t], held

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
