"""Encode K blocks: 256 numbers, 6- or 8-bit scales for every 32 or 16 of them, found by the search of ggml's
reference (`make_qkx2_quants`, `make_qx_quants` in `ggml-quants.c`).
"""

from __future__ import annotations

import numpy as np

from terakoya.errors import TerakoyaError
from terakoya.quant.blocks import Q4_K, Q5_K, Q6_K, BlockType

NOTHING = np.float32(1e-15)  # groups whose numbers are all smaller become zero


def q4_k(x: np.ndarray, out: np.ndarray) -> None:
    """x (n, 256) float32, out (n, 144) uint8, filled in place."""
    levels = _graded(x, out, Q4_K, 15, -1.0, 20).reshape(-1, 4, 2, 32)
    out[:, 16:] = (levels[:, :, 0] | levels[:, :, 1] << 4).reshape(-1, 128)


def q5_k(x: np.ndarray, out: np.ndarray) -> None:
    """x (n, 256) float32, out (n, 176) uint8, filled in place."""
    levels = _graded(x, out, Q5_K, 31, -0.5, 15).reshape(-1, 8, 32)
    high = (levels >> 4) << np.arange(8, dtype=np.uint8)[:, None]
    out[:, 16:48] = np.bitwise_or.reduce(high, axis=1)
    low = (levels & 15).reshape(-1, 4, 2, 32)
    out[:, 48:] = (low[:, :, 0] | low[:, :, 1] << 4).reshape(-1, 128)


def q6_k(x: np.ndarray, out: np.ndarray) -> None:
    """x (n, 256) float32, out (n, 210) uint8, filled in place."""
    if not np.isfinite(x).all():
        raise unstorable(Q6_K)
    groups = x.reshape(-1, 16, 16)
    scale = _signed_scale(groups)
    at = np.abs(scale).argmax(axis=1)[:, None]
    largest = np.take_along_axis(scale, at, axis=1)
    inverse = np.where(np.abs(largest) < NOTHING, np.float32(0), np.float32(-128) / largest)
    step = np.where(inverse == 0, np.float32(0), 1 / inverse).astype("<f2")
    _finite(step, Q6_K)
    small = np.minimum(np.rint(inverse * scale), 127)
    used = (step.astype(np.float32) * small)[:, :, None]
    whole = np.where(used == 0, 0, np.rint(groups / np.where(used == 0, np.float32(1), used)))
    wide = (whole.clip(-32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = wide & 15, wide >> 4
    out[:, :128] = (low[:, :, :2] | low[:, :, 2:] << 4).reshape(-1, 128)
    out[:, 128:192] = np.bitwise_or.reduce(high << np.array([0, 2, 4, 6], np.uint8)[:, None], axis=2).reshape(-1, 64)
    out[:, 192:208] = small.astype(np.int8).view(np.uint8)
    out[:, 208:] = step.view(np.uint8)


def _graded(x: np.ndarray, out: np.ndarray, kind: BlockType, most: int, first: float, steps: int) -> np.ndarray:
    """Write the head of a block with scales and minima: -> levels (n, 8, 32) uint8."""
    if not np.isfinite(x).all():
        raise unstorable(kind)
    groups = x.reshape(-1, 8, 32)
    scale, least = _scale_and_least(groups, most, first, steps)
    halves, small = [], []
    for values in (scale, least):
        largest = values.max(axis=1, keepdims=True)
        inverse = np.where(largest > 0, np.float32(63) / largest, np.float32(0))
        small.append(np.minimum(np.rint(inverse * values), 63).astype(np.uint8))
        halves.append((largest / np.float32(63)).astype("<f2"))
        _finite(halves[-1], kind)
    out[:, 0:2], out[:, 2:4] = (h.view(np.uint8) for h in halves)
    s, m = small
    out[:, 4:8] = s[:, :4] | s[:, 4:] >> 4 << 6
    out[:, 8:12] = m[:, :4] | m[:, 4:] >> 4 << 6
    out[:, 12:16] = (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4
    d, shift = (h.astype(np.float32) * v.astype(np.float32) for h, v in zip(halves, small, strict=True))
    used = np.where(d == 0, np.float32(1), d)[:, :, None]
    levels = np.rint((groups + shift[:, :, None]) / used).clip(0, most)
    return np.where(d[:, :, None] == 0, 0, levels).astype(np.uint8)


def _scale_and_least(x: np.ndarray, most: int, first: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Search for the scale and the minimum of each group that cost least: x (n, 8, 32) -> (n, 8), (n, 8) not negative.

    Errors weigh by the size of the number and of its group.
    """
    weight = np.sqrt(np.square(x).mean(axis=-1, keepdims=True)) + np.abs(x)
    low, high = np.minimum(x.min(axis=-1), 0), x.max(axis=-1)
    width = high - low
    flat = width <= 0
    safe = np.where(flat, np.float32(1), width)
    sum_w, sum_x = weight.sum(-1), (weight * x).sum(-1)
    scale, least = width / np.float32(most), low.copy()

    def levels(inverse: np.ndarray) -> np.ndarray:
        return np.rint(inverse[..., None] * (x - low[..., None])).clip(0, most)

    def cost(l: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (weight * np.square(a[..., None] * l + b[..., None] - x)).sum(-1)

    best = cost(levels(np.float32(most) / safe), scale, least)
    for i in range(steps + 1):
        l = levels(np.float32(first + 0.1 * i + most) / safe)
        wl = weight * l
        sum_l, sum_l2, sum_xl = wl.sum(-1), (wl * l).sum(-1), (wl * x).sum(-1)
        det = sum_w * sum_l2 - sum_l * sum_l
        ok = det > 0
        a = np.where(ok, (sum_w * sum_xl - sum_x * sum_l) / np.where(ok, det, 1), 0)
        b = np.where(ok, (sum_l2 * sum_x - sum_l * sum_xl) / np.where(ok, det, 1), 0)
        up = ok & (b > 0)  # the minimum may only lower
        a = np.where(up, sum_xl / np.where(sum_l2 > 0, sum_l2, 1), a)
        b = np.where(up, 0, b)
        error = cost(l, a, b)
        better = ok & (error < best)
        scale, least, best = (np.where(better, new, old) for new, old in ((a, scale), (b, least), (error, best)))
    scale = np.where(flat, np.float32(0), scale)
    return scale.astype(np.float32), (-least).astype(np.float32)


def _signed_scale(x: np.ndarray) -> np.ndarray:
    """Search for the scale of each group whose levels -32 to 31 cost least, errors by x²: x (n, 16, 16) -> (n, 16)."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    nothing = np.abs(largest) < NOTHING
    safe = np.where(nothing, np.float32(1), largest)
    square = x * x

    def fit(n: float) -> tuple[np.ndarray, np.ndarray]:
        l = np.rint(np.float32(-n) / safe[..., None] * x).clip(-32, 31)
        return (square * x * l).sum(-1), (square * l * l).sum(-1)

    dot, norm = fit(32)
    scale = np.where(norm > 0, dot / np.where(norm > 0, norm, 1), 0)
    best = scale * dot
    for i in (*range(-9, 0), *range(1, 10)):
        dot, norm = fit(32 + 0.1 * i)
        better = (norm > 0) & (dot * dot > best * norm)
        scale = np.where(better, dot / np.where(norm > 0, norm, 1), scale)
        best = np.where(better, scale * dot, best)
    return np.where(nothing, np.float32(0), scale).astype(np.float32)


def _finite(half: np.ndarray, kind: BlockType) -> None:
    if not np.isfinite(half).all():
        raise unstorable(kind)


def unstorable(kind: BlockType) -> TerakoyaError:
    """Return the error for numbers that a block's scale cannot hold."""
    return TerakoyaError(f"{kind.name} blocks", "cannot hold infinite, NaN or very large numbers")
