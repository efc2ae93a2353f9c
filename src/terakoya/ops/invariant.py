"""Linear systems that are the same at every step, x_t = A x_{t-1} + B u_t, y_t = Re(C x_t): products over pieces.

Inside a piece the outputs are a convolution with the first C values of C A^i B; between pieces only the state moves on.
A is a diagonal (D, N) or a matrix per channel (D, N, N), complex or real.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from terakoya.ops import recur, triton
from terakoya.ops.sequences import Chunks, Sequences

CHUNK = 64


def invariant(
    u: Tensor, a: Tensor, b: Tensor, c: Tensor, sequences: Sequences, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the system: u (T, D), a (D, N) or (D, N, N), b, c (D, N), start (N, D, S) -> y (T, D), last x (N, D, S)."""
    if start is None:
        start = b.new_zeros(sequences.count, *b.shape)
    if max(sequences.lengths) == 1:
        x = _times(a, start) + b * u[..., None]
        return (c * x).sum(-1).real, x
    if a.dim() == 2 and a.is_complex() and recur.able(2 * a.shape[1], u, a, b, c, start):
        return recur.diagonal(u, a, b, c, start, sequences)
    if a.dim() == 2 and a.is_complex() and triton.able(a.shape[1], u, a, b, c, start):
        from terakoya.ops.triton import recurrences

        return recurrences.diagonal(u, a, b, c, start, sequences, partial(_pieces, sequences))
    return _pieces(sequences, u, a, b, c, start)


def _pieces(sequences: Sequences, u: Tensor, a: Tensor, b: Tensor, c: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    chunks = sequences.chunks(CHUNK)
    C = chunks.size
    powers = [a]
    while 1 << len(powers) <= C:
        powers.append(powers[-1] * powers[-1] if a.dim() == 2 else powers[-1] @ powers[-1])
    into = _series(powers, b, C)  # A^i B (D, C, N)
    outof = _series([p if a.dim() == 2 else p.transpose(-1, -2) for p in powers], c, C)  # C A^i
    kernel = (into * c[:, None]).sum(-1).real  # (D, C)
    pieces = chunks.cut(u)  # (M, C, D)
    rows = F.pad(kernel.flip(1), (0, C - 1)).unfold(1, C, 1)  # windows, for row i the one that ends in kernel[i] … 0
    between = rows.flip(1)  # (D, C, C): kernel[i - j]
    inside = between @ pieces.permute(2, 1, 0)  # (D, C, M)
    ends = _right(chunks, pieces).permute(2, 0, 1).to(into.dtype) @ into.flip(1)  # (D, M, N)
    ends = ends.transpose(0, 1)
    held = torch.tensor(chunks.held, device=u.device)
    before, last = chunks.carry(start, lambda x, i: _power(powers, x, held[i], chunks, i) + ends[i])
    state = _times(a, before).permute(1, 2, 0)  # (D, N, M)
    y = inside + (outof @ state).real
    return chunks.join(y.permute(2, 1, 0)), last


def _times(a: Tensor, x: Tensor) -> Tensor:
    """A x for a diagonal or a matrix: x (..., D, N)."""
    return a * x if a.dim() == 2 else (a @ x[..., None])[..., 0]


def _series(powers: list[Tensor], first: Tensor, count: int) -> Tensor:
    """first, A first, A^2 first …: (D, N) -> (D, count, N), by doubling."""
    rows = first[:, None]
    for p in powers:
        if rows.shape[1] >= count:
            break
        more = rows * p[:, None] if p.dim() == 2 else rows @ p.transpose(-1, -2)
        rows = torch.cat([rows, more], 1)
    return rows[:, :count]


def _right(chunks: Chunks, pieces: Tensor) -> Tensor:
    """Move what a piece holds to its end, zeros before: (M, C, D) -> (M, C, D)."""
    if chunks.whole:
        return pieces
    C = chunks.size
    held = torch.tensor(chunks.held, device=pieces.device)[:, None]
    source = torch.arange(C, device=pieces.device)[None] - (C - held)
    rows = pieces.gather(1, source.clamp(min=0)[..., None].expand_as(pieces))
    return rows.masked_fill((source < 0)[..., None], 0)


def _power(powers: list[Tensor], x: Tensor, count: Tensor, chunks: Chunks, pieces: Tensor) -> Tensor:
    """A^count x, a power of its own for each row: x (n, D, N), count (n,)."""
    held = [chunks.held[i] for i in pieces.tolist()]
    for bit, p in enumerate(powers):
        here = [n >> bit & 1 for n in held]
        if all(here):
            x = _times(p, x)
        elif any(here):
            x = torch.where((count >> bit & 1).bool()[:, None, None], _times(p, x), x)
    return x
