"""Attention by hashing: tokens are sorted by bucket, and look at their own chunk of the order and the one before.

Kitaev 2020, arXiv:2001.04451, §2. Queries and keys are one vector; a token looks at itself only where nothing else is
to be seen. Several rounds of hashing are weighed by how much each saw.
"""

from __future__ import annotations

import torch
from torch import Tensor

SELF = -1e5  # the score of a token for itself


def attend(qk: Tensor, v: Tensor, turns: Tensor, chunk: int) -> Tensor:
    """Let one sequence look: qk (T, H, K), v (T, H, V), turns (rounds, H, K, buckets / 2) -> (T, H, V)."""
    T = qk.shape[0]
    q, v = qk.transpose(0, 1), v.transpose(0, 1)  # (H, T, K)
    if chunk >= T:
        return full(qk, qk, v.transpose(0, 1), 0)
    buckets = hashed(q.detach(), turns)  # (rounds, H, T)
    place = (buckets * T + torch.arange(T, device=q.device)).argsort(-1)
    outs, sums = zip(*(_round(q, v, order, chunk) for order in place), strict=True)
    weights = torch.stack(sums).softmax(0)[..., None]
    return (weights * torch.stack(outs)).sum(0).transpose(0, 1)


def hashed(x: Tensor, turns: Tensor) -> Tensor:
    """Return the nearest of `buckets` directions, half of them the others' opposites: (H, T, K) -> (rounds, H, T)."""
    side = torch.einsum("htk,rhkb->rhtb", x, turns.to(x.dtype))
    return torch.cat([side, -side], -1).argmax(-1)


def full(q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
    """Look at everything before, as hashing would with one bucket: q (T, H, K), k, v (S, H, K) -> (T, H, V)."""
    keys = unit(k).transpose(0, 1)
    scores = q.transpose(0, 1) @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5
    q_pos = torch.arange(start, start + q.shape[0], device=q.device)[:, None]
    k_pos = torch.arange(k.shape[0], device=q.device)
    scores = scores.masked_fill(q_pos == k_pos, SELF).masked_fill(q_pos < k_pos, float("-inf"))
    return (scores.softmax(-1) @ v.transpose(0, 1)).transpose(0, 1)


def unit(x: Tensor) -> Tensor:
    """Give keys the length sqrt(K), whatever they had: (T, H, K) -> (T, H, K)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def _round(q: Tensor, v: Tensor, order: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """One round in its order (H, T): values (H, T, V), and the logarithm of the weights' sum (H, T)."""
    H, T = order.shape
    pad = -T % chunk
    rows = torch.cat([order, order.new_full((H, pad), T)], 1)  # T: nobody, at the end
    pos = rows.unflatten(1, (-1, chunk))  # (H, n, c)

    def taken(x: Tensor) -> Tensor:
        return _gather(x, rows.clamp(max=T - 1)).unflatten(1, (-1, chunk))

    qs, ks, vs = taken(q), taken(unit(q)), taken(v)
    ks, vs, seen = _behind(ks, 0.0), _behind(vs, 0.0), _behind(pos[..., None], T)[..., 0]
    scores = qs @ ks.transpose(-1, -2) * q.shape[-1] ** -0.5
    mine, theirs = pos[..., None], seen[..., None, :]
    scores = scores.masked_fill(mine == theirs, SELF).masked_fill((mine < theirs) | (theirs == T), float("-inf"))
    scores = torch.where((mine == T) & (theirs == T), 0.0, scores)  # nobody sees nobody: a number, and dropped
    total = scores.logsumexp(-1, keepdim=True)
    y = (scores - total).exp() @ vs
    back = rows[:, :T].argsort(-1)
    return _gather(y.flatten(1, 2)[:, :T], back), total.flatten(1)[:, :T].gather(1, back)


def _gather(x: Tensor, rows: Tensor) -> Tensor:
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def _behind(x: Tensor, nothing: float) -> Tensor:
    """Put the chunk before in front of each: (H, n, c, K) -> (H, n, 2 c, K); the first has none."""
    first = torch.full_like(x[:, :1], nothing)
    return torch.cat([torch.cat([first, x[:, :-1]], 1), x], 2)
