"""RWKV-4's fading mean of values, whose exponents stay below 0 by a running maximum: two scans and a running peak."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from terakoya.ops import recur, triton
from terakoya.ops.convolve import shift
from terakoya.ops.scan import peak, scan
from terakoya.ops.sequences import Sequences


def wkv(
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    sequences: Sequences,
    total: Tensor | None = None,
    most: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the mean: k, v (T, D), w, u (D,) -> y (T, D), sums (N, 2, D) times e^-most, most (N, D).

    y_t = (sum_s e^{(t-1-s) w + k_s} v_s + e^{u + k_t} v_t) / the same without v (Peng 2023, eq. 14).
    """
    if total is None or most is None:
        total, most = nothing(k, sequences)
    if recur.able(1, k, v, w, u, total, most):
        return recur.wkv(k, v, w, u, total, most, sequences)
    if triton.able(1, k, v, w, u, total, most):
        from terakoya.ops.triton import recurrences

        return recurrences.wkv(k, v, w, u, total, most, sequences, partial(_scans, sequences))
    return _scans(sequences, k, v, w, u, total, most)


def _scans(
    sequences: Sequences, k: Tensor, v: Tensor, w: Tensor, u: Tensor, total: Tensor, most: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    m, m_before, m_last = peak(k.detach(), w.detach(), sequences, most)
    keep = torch.exp(m_before + w - m)
    grow = torch.exp(k - m)
    sums, last = scan(keep[:, None], torch.stack([grow * v, grow], 1), sequences, total)
    past, _ = shift(sums.flatten(1), sequences, total.flatten(1))
    past = past.unflatten(1, (2, -1))
    top = torch.maximum(m_before, u + k).detach()
    e1, e2 = torch.exp(m_before - top), torch.exp(u + k - top)
    y = (e1 * past[:, 0] + e2 * v) / (e1 * past[:, 1] + e2)
    return y, last, m_last


def nothing(k: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """Return the state of sequences that have not begun: no sums, whose exponent is none."""
    total = k.new_zeros(sequences.count, 2, k.shape[1])
    return total, torch.full_like(total[:, 0], float("-inf"))
