"""Encode float32 rows as GGUF blocks, to the bit as ggml's reference does (`quantize_row_*_ref` in `ggml-quants.c`);
K blocks follow its search, whose float32 sums may differ in the last place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from terakoya.errors import TerakoyaError
from terakoya.quant.blocks import BF16, F16, F32, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, BlockType
from terakoya.quant.encode_k import q4_k, q5_k, q6_k, unstorable

_CHUNK = 1 << 16  # elements encoded at once: the work arrays stay in the cache


def quantise(x: np.ndarray, kind: BlockType) -> np.ndarray:
    """Encode numbers as stored bytes: x (..., n·elements) float32 -> (..., n·bytes) uint8.

    Raise TerakoyaError for a type we cannot write, rows that are not whole blocks, and, in blocks with a scale,
    numbers that no half-precision scale can hold (infinite, NaN, or too large).
    """
    encode = _ENCODERS.get(kind)
    if encode is None:
        raise TerakoyaError(
            f"block type {kind.id}", "cannot be written", given=kind.name, allowed=[k.name for k in _ENCODERS]
        )
    if x.dtype != np.float32 or x.ndim == 0 or x.shape[-1] % kind.elements:
        raise TerakoyaError(
            f"{kind.name} blocks",
            f"cannot hold {x.dtype} rows of shape {x.shape}",
            allowed=f"float32, rows a multiple of {kind.elements}",
        )
    rows = np.ascontiguousarray(x).reshape(-1, kind.elements)
    out = np.empty((len(rows), kind.bytes), np.uint8)
    step = _CHUNK // kind.elements
    with np.errstate(all="ignore"):  # what overflows shows in the scale, and is refused there
        for at in range(0, len(rows), step):
            encode(rows[at : at + step], out[at : at + step])
    return out.reshape(*x.shape[:-1], x.shape[-1] // kind.elements * kind.bytes)


# Every encoder below: x (n, elements) float32, out (n, bytes) uint8, filled in place.


def _f32(x: np.ndarray, out: np.ndarray) -> None:
    out.view("<f4")[:] = x


def _f16(x: np.ndarray, out: np.ndarray) -> None:
    out.view("<f2")[:] = x


def _bf16(x: np.ndarray, out: np.ndarray) -> None:
    bits = x.view(np.uint32)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    nearest_even = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    out.view("<u2")[:] = np.where(nan, bits >> 16 | 64, nearest_even)  # a NaN stays one, made quiet


def _q8_0(x: np.ndarray, out: np.ndarray) -> None:
    scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(scale)
    size = np.abs(scaled)
    whole = np.floor(size)
    whole += np.floor(2 * (size - whole))  # halves go away from zero, as C's roundf has it
    _store_scale(scale, out, Q8_0)
    out[:, 2:] = np.copysign(whole, scaled).astype(np.int8).view(np.uint8)


def _q4_0(x: np.ndarray, out: np.ndarray) -> None:
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    scale = largest / np.float32(-8)  # the largest becomes exactly -8
    four = (x * _inverse(scale) + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    _store_scale(scale, out, Q4_0)
    out[:, 2:] = four[:, :16] | four[:, 16:] << 4


def _q4_1(x: np.ndarray, out: np.ndarray) -> None:
    least = x.min(axis=1, keepdims=True)
    scale = (x.max(axis=1, keepdims=True) - least) / np.float32(15)
    four = ((x - least) * _inverse(scale) + np.float32(0.5)).astype(np.uint8).clip(0, 15)
    _store_scale(scale, out, Q4_1)
    _store_scale(least, out[:, 2:], Q4_1)
    out[:, 4:] = four[:, :16] | four[:, 16:] << 4


def _q5_0(x: np.ndarray, out: np.ndarray) -> None:
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    scale = largest / np.float32(-16)
    five = (x * _inverse(scale) + np.float32(16.5)).astype(np.uint8).clip(0, 31)
    _store_scale(scale, out, Q5_0)
    _store_fives(five, out[:, 2:])


def _q5_1(x: np.ndarray, out: np.ndarray) -> None:
    least = x.min(axis=1, keepdims=True)
    scale = (x.max(axis=1, keepdims=True) - least) / np.float32(31)
    five = ((x - least) * _inverse(scale) + np.float32(0.5)).astype(np.uint8).clip(0, 31)
    _store_scale(scale, out, Q5_1)
    _store_scale(least, out[:, 2:], Q5_1)
    _store_fives(five, out[:, 4:])


def _store_fives(five: np.ndarray, out: np.ndarray) -> None:
    """Lay out 32 numbers below 32: the fifth bits, then two nibbles a byte: out (n, 20)."""
    out[:, :4] = np.packbits(five >> 4, axis=1, bitorder="little")
    out[:, 4:] = (five[:, :16] & 15) | (five[:, 16:] & 15) << 4


def _inverse(scale: np.ndarray) -> np.ndarray:
    return np.where(scale == 0, np.float32(0), 1 / scale)


def _store_scale(scale: np.ndarray, out: np.ndarray, kind: BlockType) -> None:
    half = scale.astype("<f2")
    if not np.isfinite(half).all():
        raise unstorable(kind)
    out[:, :2] = half.view(np.uint8)


_ENCODERS: Mapping[BlockType, Callable[[np.ndarray, np.ndarray], None]] = MappingProxyType(
    {
        F32: _f32,
        F16: _f16,
        BF16: _bf16,
        Q8_0: _q8_0,
        Q4_0: _q4_0,
        Q4_1: _q4_1,
        Q5_0: _q5_0,
        Q5_1: _q5_1,
        Q4_K: q4_k,
        Q5_K: q5_k,
        Q6_K: q6_k,
    }
)
ENCODED = tuple(_ENCODERS)
