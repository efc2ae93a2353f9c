"""Memories that are matrices, S_t = decay_t S_{t-1} + k_t v_t^T, read by y_t = S_t^T q_t: products over whole pieces.

Inside a piece tokens meet each other as in attention, between pieces only the state is passed on (Dao 2024, the
state-space duality of Mamba-2; Sun 2023, RetNet's chunks; Yang 2024, gated linear attention). In single precision on a
CPU the loop itself runs in C, which is faster still where heads are narrow.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from terakoya.ops import recur, triton
from terakoya.ops.fading import fading
from terakoya.ops.sequences import Chunks, Sequences

CHUNK = 64
WIDE = 4096  # numbers of a state, beyond which products over pieces are faster than the loop in C
SMALL = 32  # pieces where decays differ by channel: their inverses stay below e^(32 e^-0.5) = 3e8


def decayed(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, sequences: Sequences, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Read a fading sum: q, k (T, H, K), v (T, H, V), g (T, H) logarithms of decays -> y (T, H, V), S (N, H, K, V)."""
    if start is None:
        start = v.new_zeros(sequences.count, q.shape[1], k.shape[2], v.shape[2])
    if max(sequences.lengths) == 1:
        kept = start if g is None else start * g.exp()[..., None, None]
        s = kept + k[..., :, None] * v[..., None, :]
        return _read(q, s), s
    if q.device.type == "cpu" and k.shape[2] * v.shape[2] > WIDE and not q.is_complex():
        return fading(q, k, v, g, start, sequences)
    if recur.able(k.shape[2], q, k, v, g, start):
        fade = torch.ones_like(k) if g is None else g.exp()[..., None].expand_as(k)
        return recur.matrix(q, fade, k, v, None, None, start, sequences)
    if triton.able(2 * k.shape[2], q, k, v, g, start):  # a piece's keys and the state are held beside each other
        from terakoya.ops.triton import recurrences

        return recurrences.decayed(q, k, v, g, start, sequences, partial(_decayed, sequences))
    return _decayed(sequences, q, k, v, g, start)


def _decayed(
    sequences: Sequences, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, start: Tensor
) -> tuple[Tensor, Tensor]:
    chunks = sequences.chunks(CHUNK)
    q, k, v = (_heads(chunks, t) for t in (q, k, v))
    total, between = _decays(chunks, g, q)
    inside = (q @ k.transpose(-1, -2)) * between
    new = (k * (total[..., -1:] - total).exp()[..., None]).transpose(-1, -2) @ v
    fade = total[..., -1].exp()[..., None, None]
    before, last = chunks.carry(start, lambda s, i: torch.addcmul(new[i], fade[i], s))
    y = inside @ v + (q * total.exp()[..., None]) @ before
    return chunks.join(y.transpose(1, 2)), last


def delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, sequences: Sequences, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Correct a fading memory: S <- e^g S, then S <- S + beta k (v - S^T k)^T (Yang 2024, gated delta rule).

    q, k (T, H, K), v (T, H, V), g, beta (T, H) -> y (T, H, V), S (N, H, K, V). The corrections u of a piece solve
    (1 + tril(beta e^{G_i - G_j} k_i k_j)) u = beta (v - e^G k S): one triangular system (the WY form).
    """
    if start is None:
        start = v.new_zeros(sequences.count, q.shape[1], k.shape[2], v.shape[2])
    if max(sequences.lengths) == 1:
        s = start * g.exp()[..., None, None]
        s = s + k[..., :, None] * (beta[..., None] * (v - _read(k, s)))[..., None, :]
        return _read(q, s), s
    if recur.able(k.shape[2], q, k, v, g, beta, start):
        fade, wrote = g.exp()[..., None], beta[..., None] * k
        return recur.matrix(q, fade.expand_as(k), wrote, v, fade * k, -wrote, start, sequences)
    if triton.able(k.shape[2], q, k, v, g, beta, start):
        from terakoya.ops.triton import recurrences

        return recurrences.delta(q, k, v, g, beta, start, sequences, partial(_delta, sequences))
    return _delta(sequences, q, k, v, g, beta, start)


def _delta(
    sequences: Sequences, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    chunks = sequences.chunks(CHUNK)
    q, k, v = (_heads(chunks, t) for t in (q, k, v))
    weight = _heads(chunks, beta[..., None])
    total, between = _decays(chunks, g, q)
    grown = total.exp()[..., None]
    system = torch.tril(weight * (k @ k.transpose(-1, -2)) * between, -1)
    both = torch.cat([weight * v, weight * grown * k], -1)
    u, w = _solve(system, both).split([v.shape[-1], k.shape[-1]], -1)
    left = (k * (total[..., -1:] - total).exp()[..., None]).transpose(-1, -2)
    fade = total[..., -1].exp()[..., None, None]
    before, last = chunks.carry(start, lambda s, i: fade[i] * s + left[i] @ (u[i] - w[i] @ s))
    u = u - w @ before
    y = ((q @ k.transpose(-1, -2)) * between) @ u + (q * grown) @ before
    return chunks.join(y.transpose(1, 2)), last


def general(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, sequences: Sequences, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run RWKV-7's state S <- diag(e^w) S + b (a^T S) + k v^T, y = S^T r (Peng 2025, the general delta rule).

    r, w, k, a, b (T, H, K), v (T, H, V) -> y (T, H, V), S (N, H, K, V). w lies in (-e^-0.5, 0).
    """
    if start is None:
        start = v.new_zeros(sequences.count, r.shape[1], k.shape[2], v.shape[2])
    if max(sequences.lengths) == 1:
        s = start * w.exp()[..., None] + b[..., :, None] * _read(a, start)[..., None, :]
        s = s + k[..., :, None] * v[..., None, :]
        return _read(r, s), s
    if recur.able(k.shape[2], r, w, k, v, a, b, start):
        return recur.matrix(r, w.exp(), k, v, a, b, start, sequences)
    if triton.able(k.shape[2], r, w, k, v, a, b, start):
        from terakoya.ops.triton import recurrences

        return recurrences.general(r, w, k, v, a, b, start, sequences, partial(_general, sequences))
    return _general(sequences, r, w, k, v, a, b, start)


def _general(
    sequences: Sequences, r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    chunks = sequences.chunks(SMALL)
    r, w, k, v, a, b = (_heads(chunks, t) for t in (r, w, k, v, a, b))
    total = w.cumsum(-2)
    r, a = r * total.exp(), a * (total - w).exp()
    kept = (total[..., -1:, :] - total).exp()
    left = torch.cat([b * kept, k * kept], -2).transpose(-1, -2)
    seen = torch.cat([b, k], -2) * torch.cat([-total, -total], -2).exp()
    C = r.shape[-2]
    mine, theirs = (a @ seen.transpose(-1, -2)).split(C, -1)
    p, reach = _solve(-torch.tril(mine, -1), torch.cat([torch.tril(theirs, -1) @ v, a], -1)).split(
        [v.shape[-1], a.shape[-1]], -1
    )
    fade = total[..., -1, :].exp()[..., None]
    before, last = chunks.carry(start, lambda s, i: fade[i] * s + left[i] @ torch.cat([p[i] + reach[i] @ s, v[i]], -2))
    p = p + reach @ before
    near, far = (r @ seen.transpose(-1, -2)).split(C, -1)
    y = torch.tril(near) @ p + torch.tril(far) @ v + r @ before
    return chunks.join(y.transpose(1, 2)), last


def _read(q: Tensor, s: Tensor) -> Tensor:
    return (q[..., None, :] @ s)[..., 0, :]


def _heads(chunks: Chunks, x: Tensor) -> Tensor:
    """(T, H, K) -> (M, H, C, K)."""
    return chunks.cut(x).transpose(1, 2)


def _decays(chunks: Chunks, g: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return (sums of logarithms since the piece began (M, H, C), what is left of token j at i >= j (M, H, C, C))."""
    M, H, C, _ = like.shape
    if g is None:
        return like.new_zeros(M, H, C), like.new_ones(C, C).tril()
    total = chunks.cut(g).transpose(1, 2).cumsum(-1)
    later = torch.ones(C, C, dtype=torch.bool, device=like.device).triu(1)
    return total, (total[..., :, None] - total[..., None, :]).masked_fill(later, float("-inf")).exp()


def _solve(lower: Tensor, right: Tensor) -> Tensor:
    """Return (1 + lower)^-1 right for a strictly lower triangle (..., C, C)."""
    return torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
