"""Scaled dot-product attention over equal-length sequences: the definition, and the same numbers by torch's kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from terakoya.ops import sparse

BANDED = 512  # tokens from which on a window is computed in blocks

Bias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""bias(q (B, T, H, K), q_pos (T,), k_pos (S,)) -> (H, T, S) or (B, H, T, S): added to the scaled scores."""


@dataclass(frozen=True)
class Look:
    """How queries may look at keys: the static part of one attention layer."""

    scale: float
    causal: bool = True
    window: int | None = None  # visible where q_pos - k_pos < window (both ways where not causal)
    chunk: int | None = None  # visible where q_pos // chunk == k_pos // chunk
    softcap: float | None = None
    stride: int | None = None  # visible where q_pos - k_pos is a multiple (Child 2019, strided)
    fixed: tuple[int, int] | None = None  # (block, summary): visible in one block, or at the end of an earlier one
    near: int | None = None  # visible in one chunk of this many positions, or in the one before it

    @property
    def patterned(self) -> bool:
        return self.stride is not None or self.fixed is not None or self.near is not None


def visible(q_pos: Tensor, k_pos: Tensor, look: Look) -> Tensor:
    """Return which keys each query may see: q_pos (T,), k_pos (S,) -> (T, S)."""
    return sees(q_pos[:, None], k_pos[None, :], look)


def sees(q_pos: Tensor, k_pos: Tensor, look: Look) -> Tensor:
    """Return whether a query may see a key, by their positions: tensors of shapes that go together."""
    gap = q_pos - k_pos
    ok = gap >= 0 if look.causal else torch.ones_like(gap, dtype=torch.bool)
    if look.window is not None:
        ok = ok & (gap.abs() < look.window)
    if look.chunk is not None:
        ok = ok & (q_pos // look.chunk == k_pos // look.chunk)
    if look.stride is not None:
        ok = ok & (gap % look.stride == 0)
    if look.fixed is not None:
        block, summary = look.fixed
        told = k_pos % block >= block - summary
        ok = ok & ((q_pos // block == k_pos // block) | told)
    if look.near is not None:
        ok = ok & ((q_pos // look.near - k_pos // look.near).abs() < 2)
    return ok


def naive(
    q: Tensor, k: Tensor, v: Tensor, look: Look, start: int = 0, bias: Bias | None = None, sinks: Tensor | None = None
) -> Tensor:
    """Attend by the book (Vaswani 2017, eq. 1): q (B, T, H, K), k (B, S, G, K), v (B, S, G, V) -> (B, T, H, V).

    Query t stands at position `start + t`, key s at s. `sinks` (H,) are scores that take probability and give nothing.
    """
    H, G = q.shape[2], k.shape[2]
    q_pos, k_pos = _positions(q, k, start)
    scores = torch.einsum("bthk,bshk->bhts", q, k.repeat_interleave(H // G, 2)) * look.scale
    if bias is not None:
        scores = scores + bias(q, q_pos, k_pos)
    if look.softcap is not None:
        scores = look.softcap * torch.tanh(scores / look.softcap)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    scores = scores.masked_fill(~visible(q_pos, k_pos, look), float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).view(1, H, 1, 1).expand(*scores.shape[:3], 1)], -1)
    weights = scores.softmax(-1)[..., : k.shape[1]].to(v.dtype)
    return torch.einsum("bhts,bshv->bthv", weights, v.repeat_interleave(H // G, 2))


def attend(
    q: Tensor, k: Tensor, v: Tensor, look: Look, start: int = 0, bias: Bias | None = None, sinks: Tensor | None = None
) -> Tensor:
    """Attend as `naive` does, through SDPA wherever the scores need no touch of ours; same shapes."""
    if look.softcap is not None or sinks is not None:
        return naive(q, k, v, look, start, bias, sinks)
    T, S, H, G = q.shape[1], k.shape[1], q.shape[2], k.shape[2]
    if bias is None and T == 1 and look.causal and _sees_all(look, start, S):
        return _one_query(q, k, v, look.scale)
    square = bias is None and start == 0 and T == S
    if square and look.causal and look.chunk is None and (found := _pattern(q, k, v, look)) is not None:
        return found
    square = square and (look.window is None or look.window >= S) and not look.patterned
    square = square and (look.chunk is None or look.chunk >= S)
    mask = None if square else _mask(q, k, look, start, bias)
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=square and look.causal,
        scale=look.scale,
        enable_gqa=H != G,
    )
    return y.transpose(1, 2)


def _pattern(q: Tensor, k: Tensor, v: Tensor, look: Look) -> Tensor | None:
    """Attend by blocks where that leaves most of the square out; None: by a mask."""
    T = q.shape[1]
    if sum(x is not None for x in (look.stride, look.window, look.fixed, look.near)) != 1:
        return None
    if look.stride is not None and 2 * look.stride < T:
        return sparse.strided(q, k, v, look.scale, look.stride)
    if look.fixed is not None and 4 * look.fixed[0] < T:
        return sparse.fixed(q, k, v, look.scale, *look.fixed)
    if look.window is not None and max(4 * look.window, BANDED) < T:
        return sparse.banded(q, k, v, look.scale, look.window)
    if look.near is not None and max(4 * look.near, BANDED) < T:
        return sparse.near(q, k, v, look.scale, look.near)
    return None


def _one_query(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    # The H / G queries that share a key head become rows of one matrix: no key is copied or read twice.
    B, _, H, K = q.shape
    G = k.shape[2]
    y = F.scaled_dot_product_attention(
        q.view(B, G, H // G, K), k.transpose(1, 2), v.transpose(1, 2), is_causal=False, scale=scale
    )
    return y.reshape(B, 1, H, v.shape[-1])


def _sees_all(look: Look, start: int, S: int) -> bool:
    reach = (look.window is None or start < look.window) and not look.patterned
    return start == S - 1 and reach and (look.chunk is None or start < look.chunk)


def _mask(q: Tensor, k: Tensor, look: Look, start: int, bias: Bias | None) -> Tensor:
    q_pos, k_pos = _positions(q, k, start)
    ok = visible(q_pos, k_pos, look)
    if bias is None:
        return ok
    return bias(q, q_pos, k_pos).to(q.dtype).masked_fill(~ok, float("-inf"))


def _positions(q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
    return torch.arange(start, start + q.shape[1], device=q.device), torch.arange(k.shape[1], device=q.device)
