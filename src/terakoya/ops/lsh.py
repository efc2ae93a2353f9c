"""Attention by hashing: tokens are sorted by bucket, and look at their own chunk of the order and the one before.

Kitaev 2020, arXiv:2001.04451, §2. Queries and keys are one vector; a token looks at itself only where nothing else is
to be seen. Several rounds of hashing are weighed by how much each saw. The rounds lie in a ring, as in trax and
transformers: the first chunk of each looks at the last of the round before, that of the first at the last of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SELF, SELF_HALF = -1e5, -1e3  # the score of a token for itself; where float16 holds no more, as in transformers


def attend(qk: Tensor, v: Tensor, turns: Tensor, chunk: int, factors: Sequence[int] = (), room: int = 0) -> Tensor:
    """Let one sequence look: qk (T, H, K), v (T, H, V), turns (rounds, H, K, sum of `factors` / 2) -> (T, H, V).

    A round has room for as many tokens as fill its chunks, or `room` if that is more; nobody stands behind the last.
    """
    T = qk.shape[0]
    q, v = qk.transpose(0, 1), v.transpose(0, 1)  # (H, T, K)
    if chunk >= T:
        return full(qk, qk, v.transpose(0, 1), 0)
    buckets = hashed(q.detach(), turns, factors)  # (rounds, H, T)
    order = (buckets * T + torch.arange(T, device=q.device)).argsort(-1)
    pad = -(-max(T, room) // chunk) * chunk - T
    order = torch.cat([order, order.new_full((*order.shape[:2], pad), T)], -1)  # T: nobody, at the end
    ring = [(order[r], order[r - 1][:, -chunk:]) for r in range(len(order))]
    outs, sums = zip(*(_round(q, v, now, before) for now, before in ring), strict=True)
    weights = torch.stack(sums).softmax(0)[..., None]
    return (weights * torch.stack(outs)).sum(0).transpose(0, 1)


def hashed(x: Tensor, turns: Tensor, factors: Sequence[int] = ()) -> Tensor:
    """Return the nearest of `buckets` directions, half of them the others' opposites: (H, T, K) -> (rounds, H, T).

    Several factors are hashes of their own, and the digits of one number, the lowest first.
    """
    side = torch.einsum("htk,rhkb->rhtb", x, turns.to(x.dtype))
    parts = side.split([n // 2 for n in factors], -1) if factors else [side]
    digits = [torch.cat([part, -part], -1).argmax(-1) for part in parts]
    return sum((d * math.prod(factors[:i]) for i, d in enumerate(digits)), torch.zeros_like(digits[0]))


def factors_for(length: int, chunk: int, context: int) -> tuple[int, ...]:
    """Return the buckets for a text: two per chunk, a power of two; in two factors where they are many.

    Where there are too many is transformers' rule: more than twice the root of the context's chunks, and twice a chunk.
    """
    power = max(1, (2 * (length // chunk)).bit_length() - 1)
    if 2**power <= 2 * max(math.isqrt(context // chunk), chunk):
        return (2**power,)
    return 2 ** (power // 2), 2 ** (power - power // 2)


def full(q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
    """Look at everything before, as hashing would with one bucket: q (T, H, K), k, v (S, H, K) -> (T, H, V)."""
    keys = unit(k).transpose(0, 1)
    scores = q.transpose(0, 1) @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5
    q_pos = torch.arange(start, start + q.shape[0], device=q.device)[:, None]
    k_pos = torch.arange(k.shape[0], device=q.device)
    scores = scores.masked_fill(q_pos == k_pos, _self(q)).masked_fill(q_pos < k_pos, float("-inf"))
    return (scores.softmax(-1) @ v.transpose(0, 1)).transpose(0, 1)


def unit(x: Tensor) -> Tensor:
    """Give keys the length sqrt(K), whatever they had: (T, H, K) -> (T, H, K)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def _round(q: Tensor, v: Tensor, order: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """One round: its order (H, P), and the chunk before it (H, c) -> values (H, T, V), logarithms of sums (H, T)."""
    T, chunk = q.shape[1], before.shape[1]
    rows = torch.cat([before, order], 1)
    pos = rows.unflatten(1, (-1, chunk))  # (H, 1 + n, c)

    def taken(x: Tensor) -> Tensor:
        return _gather(x, rows.clamp(max=T - 1)).unflatten(1, (-1, chunk))

    qs, ks, vs = taken(q)[:, 1:], _pairs(taken(unit(q))), _pairs(taken(v))
    scores = qs @ ks.transpose(-1, -2) * q.shape[-1] ** -0.5
    mine, theirs = pos[:, 1:, :, None], _pairs(pos)[..., None, :]
    scores = scores.masked_fill(mine == theirs, _self(q)).masked_fill((mine < theirs) | (theirs == T), float("-inf"))
    scores = torch.where((mine == T) & (theirs == T), 0.0, scores)  # nobody sees nobody: a number, and dropped
    y = scores.softmax(-1) @ vs  # not e^(scores - total): near SELF numbers lie far apart
    back = order.argsort(-1)[:, :T]
    return _gather(y.flatten(1, 2), back), scores.logsumexp(-1).flatten(1).gather(1, back)


def _self(like: Tensor) -> float:
    return SELF_HALF if like.dtype == torch.float16 else SELF


def _gather(x: Tensor, rows: Tensor) -> Tensor:
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def _pairs(x: Tensor) -> Tensor:
    """Put each chunk behind the one before it: (H, 1 + n, c, ...) -> (H, n, 2 c, ...)."""
    return torch.cat([x[:, :-1], x[:, 1:]], 2)
