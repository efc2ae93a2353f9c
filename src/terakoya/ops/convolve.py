"""Causal convolutions, one filter per channel: short ones with a tail for a state, long ones through the spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from terakoya.ops import recur
from terakoya.ops.sequences import Sequences


def tailed(x: Tensor, count: int, sequences: Sequences, tail: Tensor | None) -> tuple[Tensor, list[int], Tensor]:
    """Put `count` earlier rows before each sequence: (rows (T + N count, D), where each begins, the new tail).

    x (T, D), tail (N, count, D), zeros where None -> new tail (N, count, D).
    """
    if tail is None:
        tail = x.new_zeros(sequences.count, count, x.shape[1])
    parts, begins, at = [], [], 0
    for n, part in enumerate(x.split(sequences.lengths)):
        parts += [tail[n], part]
        begins.append(at)
        at += count + part.shape[0]
    rows = torch.cat(parts)
    ends = [b + n for b, n in zip(begins, sequences.lengths, strict=True)]
    return rows, begins, torch.stack([rows[e : e + count] for e in ends])


def shift(x: Tensor, sequences: Sequences, tail: Tensor | None) -> tuple[Tensor, Tensor]:
    """Give each token the row before it: x (T, D), tail (N, D) -> (T, D), new tail (N, D)."""
    before = torch.cat([x[:1] * 0, x[:-1]])
    first = torch.zeros_like(x[sequences.first]) if tail is None else tail.to(x.dtype)
    return before.index_copy(0, sequences.first, first), x[sequences.last]


def short(
    x: Tensor, weight: Tensor, bias: Tensor | None, sequences: Sequences, tail: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y_t = bias + sum_j weight_j x_{t - W + 1 + j}: x (T, D), weight (D, W), tail (N, W - 1, D) -> (T, D), tail."""
    W = weight.shape[1]
    if max(sequences.lengths) == 1 and tail is not None:
        window = torch.cat([tail.to(x.dtype), x[:, None]], 1)
        y = (window * weight.t()).sum(1)
        return y if bias is None else y + bias, window[:, 1:]
    if W > 1 and recur.able(W, x, weight, bias, tail):
        held = x.new_zeros(sequences.count, W - 1, x.shape[1]) if tail is None else tail
        return recur.short(x, weight, bias, held, sequences), _ends(x, held, sequences)
    rows, begins, tail = tailed(x, W - 1, sequences, tail)
    size = rows.shape[0] - W + 1
    y = rows[:size] * weight[:, 0]
    for j in range(1, W):
        y = torch.addcmul(y, rows[j : j + size], weight[:, j])
    y = y if bias is None else y + bias
    if sequences.count > 1:
        y = torch.cat([y[b : b + n] for b, n in zip(begins, sequences.lengths, strict=True)])
    return y, tail


def _ends(x: Tensor, tail: Tensor, sequences: Sequences) -> Tensor:
    """Return the last rows of each sequence, of the tail where it is short: x (T, D), tail (N, W - 1, D)."""
    count = tail.shape[1]
    parts = x.split(sequences.lengths)
    return torch.stack([torch.cat([tail[n], p[-count:]])[-count:] for n, p in enumerate(parts)])


def long(x: Tensor, filters: Tensor, sequences: Sequences) -> Tensor:
    """y_t = sum_{s <= t} filters_{t - s} x_s by FFT: x (T, D), filters (L, D), L >= the longest -> (T, D)."""
    out, a = [], 0
    for length, count in sequences.runs:
        size = 1 << (2 * length - 1).bit_length()
        part = x[a : a + length * count].view(count, length, -1).transpose(1, 2)
        spectrum = torch.fft.rfft(filters[:length].t().to(x.dtype), n=size)
        y = torch.fft.irfft(torch.fft.rfft(part, n=size) * spectrum, n=size)[..., :length]
        out.append(y.transpose(1, 2).flatten(0, 1))
        a += length * count
    return out[0] if len(out) == 1 else torch.cat(out)
