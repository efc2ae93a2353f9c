"""Causal attention by patterns, computed only where a pattern looks: q (B, T, H, K), k, v (B, T, G, K) -> (B, T, H, K).

What each computes is `ops.attend.naive` with the same pattern in its `Look`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def strided(q: Tensor, k: Tensor, v: Tensor, scale: float, stride: int) -> Tensor:
    """Look at every `stride`-th position back: T / stride positions of one remainder are a text of their own."""
    T = q.shape[1]

    def rows(x: Tensor) -> Tensor:  # (B, T, H, K) -> (B stride, H, T / stride, K)
        x = _padded(x, stride).unflatten(1, (-1, stride))
        return x.permute(0, 2, 3, 1, 4).flatten(0, 1)

    y = _sdpa(rows(q), rows(k), rows(v), None, scale)
    return y.unflatten(0, (-1, stride)).permute(0, 3, 1, 2, 4).flatten(1, 2)[:, :T]


def banded(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> Tensor:
    """Look at the last `window` positions: blocks of that many queries see their own block and the one before."""
    gap = torch.arange(window, device=q.device)[:, None] + window - torch.arange(2 * window, device=q.device)
    return _pairs(q, k, v, (gap >= 0) & (gap < window), scale)


def near(q: Tensor, k: Tensor, v: Tensor, scale: float, size: int) -> Tensor:
    """Look at the own block of `size` positions and at all of the one before."""
    own = torch.ones(size, size, dtype=torch.bool, device=q.device)
    return _pairs(q, k, v, torch.cat([own, own.tril()], 1), scale)


def _pairs(q: Tensor, k: Tensor, v: Tensor, ok: Tensor, scale: float) -> Tensor:
    """Let blocks of w queries see the block before and their own as `ok` (w, 2 w) says."""
    T, w = q.shape[1], ok.shape[0]
    q, k, v = (_padded(x, w).unflatten(1, (-1, w)) for x in (q, k, v))  # (B, n, w, H, K)
    k, v = (torch.cat([torch.cat([x[:, :1] * 0, x[:, :-1]], 1), x], 2) for x in (k, v))  # (B, n, 2 w, G, K)
    n = q.shape[1]
    ok = ok.expand(n, w, 2 * w).clone()
    ok[0, :, :w] = False  # nothing stands before the first block
    return _blocks(q, k, v, ok, scale)[:, :T]


def fixed(q: Tensor, k: Tensor, v: Tensor, scale: float, block: int, summary: int) -> Tensor:
    """Look at the own block and at the last `summary` positions of each block before."""
    T, l = q.shape[1], block
    q, k, v = (_padded(x, l).unflatten(1, (-1, l)) for x in (q, k, v))
    n = q.shape[1]
    told = [x[:, :, l - summary :].flatten(1, 2)[:, None].expand(-1, n, -1, -1, -1) for x in (k, v)]
    k, v = (torch.cat([x, y], 2) for x, y in zip((k, v), told, strict=True))
    own = torch.ones(l, l, dtype=torch.bool, device=q.device).tril().expand(n, l, l)
    before = torch.arange(n, device=q.device).repeat_interleave(summary) < torch.arange(n, device=q.device)[:, None]
    return _blocks(q, k, v, torch.cat([own, before[:, None].expand(n, l, -1)], 2), scale)[:, :T]


def _blocks(q: Tensor, k: Tensor, v: Tensor, ok: Tensor, scale: float) -> Tensor:
    """Attend in every block: q (B, n, w, H, K), k, v (B, n, S, G, K), ok (n, w, S) -> (B, n w, H, K)."""
    B = q.shape[0]
    q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))
    y = _sdpa(q, k, v, ok.repeat(B, 1, 1)[:, None], scale)
    return y.transpose(1, 2).unflatten(0, (B, -1)).flatten(1, 2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, ok: Tensor | None, scale: float) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=ok, is_causal=ok is None, scale=scale, enable_gqa=grouped)


def _padded(x: Tensor, size: int) -> Tensor:
    """Fill up to a multiple of `size`; what is added stands after everything, so nobody sees it."""
    return F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % size))
