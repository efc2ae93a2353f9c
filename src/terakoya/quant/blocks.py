"""Blocks of weights as GGUF stores them: a few bytes hold a scale and 32 or 256 small integers.

Layouts follow ggml (`ggml-common.h`, `ggml-quants.c`); the arithmetic keeps ggml's order of roundings, so that the
result is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from terakoya.errors import TerakoyaError


@dataclass(frozen=True)
class BlockType:
    """How a tensor is stored: `bytes` bytes for every `elements` neighbours of a row. `elements` 0: not known to us."""

    id: int
    name: str
    elements: int
    bytes: int


F32 = BlockType(0, "F32", 1, 4)
F16 = BlockType(1, "F16", 1, 2)
Q4_0 = BlockType(2, "Q4_0", 32, 18)
Q4_1 = BlockType(3, "Q4_1", 32, 20)
Q5_0 = BlockType(6, "Q5_0", 32, 22)
Q5_1 = BlockType(7, "Q5_1", 32, 24)
Q8_0 = BlockType(8, "Q8_0", 32, 34)
Q4_K = BlockType(12, "Q4_K", 256, 144)
Q5_K = BlockType(13, "Q5_K", 256, 176)
Q6_K = BlockType(14, "Q6_K", 256, 210)
BF16 = BlockType(30, "BF16", 1, 2)

BLOCKS: Mapping[int, BlockType] = MappingProxyType(
    {kind.id: kind for kind in (F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, BF16)}
)
_CHUNK = 1 << 16  # elements decoded at once: the work arrays stay in the cache


def dequantise(raw: np.ndarray, kind: BlockType) -> np.ndarray:
    """Decode stored bytes into a new float32 array: raw (..., n·bytes) uint8 -> (..., n·elements).

    Raise TerakoyaError for a type we cannot decode and for bytes that are not whole blocks.
    """
    decode = _DECODERS.get(kind)
    if decode is None:
        raise TerakoyaError(
            f"block type {kind.id}", "cannot be decoded", given=kind.name, allowed=[k.name for k in _DECODERS]
        )
    if raw.dtype != np.uint8 or raw.ndim == 0 or raw.shape[-1] % kind.bytes:
        raise TerakoyaError(
            f"{kind.name} blocks",
            f"{raw.dtype} array of shape {raw.shape} is not whole blocks",
            allowed=f"uint8, last axis a multiple of {kind.bytes}",
        )
    blocks = np.ascontiguousarray(raw).reshape(-1, kind.bytes)
    out = np.empty((len(blocks), kind.elements), np.float32)
    step = _CHUNK // kind.elements
    with np.errstate(invalid="ignore", over="ignore"):  # infinite or NaN scales are the file's word; pass them on
        for at in range(0, len(blocks), step):
            decode(blocks[at : at + step], out[at : at + step])
    return out.reshape(*raw.shape[:-1], raw.shape[-1] // kind.bytes * kind.elements)


# Every decoder below: b (n, bytes) uint8, out (n, elements) float32, filled in place.


def _f32(b: np.ndarray, out: np.ndarray) -> None:
    out[:] = b.view("<f4")


def _f16(b: np.ndarray, out: np.ndarray) -> None:
    out[:] = b.view("<f2")


def _bf16(b: np.ndarray, out: np.ndarray) -> None:
    bits = out.view(np.uint32)
    bits[:] = b.view("<u2")
    bits <<= 16


def _q8_0(b: np.ndarray, out: np.ndarray) -> None:
    out[:] = b[:, 2:].view(np.int8)
    out *= _half(b, 0)


def _q4_0(b: np.ndarray, out: np.ndarray) -> None:
    _nibbles(b[:, 2:], out)
    out -= 8
    out *= _half(b, 0)


def _q4_1(b: np.ndarray, out: np.ndarray) -> None:
    _nibbles(b[:, 4:], out)
    out *= _half(b, 0)
    out += _half(b, 2)


def _q5_0(b: np.ndarray, out: np.ndarray) -> None:
    out[:] = _fives(b[:, 2:6], b[:, 6:])
    out -= 16
    out *= _half(b, 0)


def _q5_1(b: np.ndarray, out: np.ndarray) -> None:
    out[:] = _fives(b[:, 4:8], b[:, 8:])
    out *= _half(b, 0)
    out += _half(b, 2)


def _q4_k(b: np.ndarray, out: np.ndarray) -> None:
    low, wide = b[:, 16:].reshape(-1, 4, 32), out.reshape(-1, 4, 2, 32)
    wide[:, :, 0] = low & 15
    wide[:, :, 1] = low >> 4
    _scale_k(b, out)


def _q5_k(b: np.ndarray, out: np.ndarray) -> None:
    high, low, wide = b[:, 16:48], b[:, 48:].reshape(-1, 4, 32), out.reshape(-1, 4, 2, 32)
    for group in range(8):  # bit g of the high bytes belongs to the g-th run of 32
        part = low[:, group // 2]
        part = part >> 4 if group % 2 else part & 15
        wide[:, group // 2, group % 2] = part | ((high >> group & 1) << 4)
    _scale_k(b, out)


def _q6_k(b: np.ndarray, out: np.ndarray) -> None:
    low, high = b[:, :128].reshape(-1, 2, 2, 32), b[:, 128:192].reshape(-1, 2, 32)
    wide = out.reshape(-1, 2, 4, 32)
    for group in range(4):  # runs 0, 1 are the low nibbles of two runs of 32 bytes, 2, 3 the high ones
        part = low[:, :, group % 2]
        part = part >> 4 if group > 1 else part & 15
        wide[:, :, group] = part | ((high >> (2 * group) & 3) << 4)
    out -= 32
    scales = _half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)
    by_scale = out.reshape(-1, 16, 16)
    by_scale *= scales[:, :, None]


def _half(b: np.ndarray, at: int) -> np.ndarray:
    """Read one half-precision number of every block as float32: b (n, bytes) -> (n, 1)."""
    return b[:, at : at + 2].view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray, out: np.ndarray) -> None:
    """Spread 16 bytes over 32 elements, low halves first: packed (n, 16), out (n, 32)."""
    np.bitwise_and(packed, 15, out=out[:, :16], casting="unsafe")
    np.right_shift(packed, 4, out=out[:, 16:], casting="unsafe")


def _fives(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Join 32 single bits and 32 nibbles: high (n, 4), low (n, 16) -> (n, 32) uint8 below 32."""
    bits = np.unpackbits(high, axis=1, bitorder="little") << 4
    bits[:, :16] |= low & 15
    bits[:, 16:] |= low >> 4
    return bits


def _scale_k(b: np.ndarray, out: np.ndarray) -> None:
    """Apply the eight 6-bit scales and minima of a K block: out ← d·scale·q - dmin·minimum."""
    packed = b[:, 4:16].reshape(-1, 3, 4)
    first, second, rest = packed[:, 0], packed[:, 1], packed[:, 2]
    scale = np.concatenate([first & 63, (rest & 15) | (first >> 2 & 48)], axis=1)
    least = np.concatenate([second & 63, (rest >> 4) | (second >> 2 & 48)], axis=1)
    by_scale = out.reshape(-1, 8, 32)
    by_scale *= (_half(b, 0) * scale.astype(np.float32))[:, :, None]
    by_scale -= (_half(b, 2) * least.astype(np.float32))[:, :, None]


_DECODERS: Mapping[BlockType, Callable[[np.ndarray, np.ndarray], None]] = MappingProxyType(
    {
        F32: _f32,
        F16: _f16,
        BF16: _bf16,
        Q8_0: _q8_0,
        Q4_0: _q4_0,
        Q4_1: _q4_1,
        Q5_0: _q5_0,
        Q5_1: _q5_1,
        Q4_K: _q4_k,
        Q5_K: _q5_k,
        Q6_K: _q6_k,
    }
)
