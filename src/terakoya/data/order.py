"""Order as a pure function: a shuffle without state, memory or passes over the data."""

from __future__ import annotations

import hashlib

import numpy as np

_ROUNDS = 6


def permute(index: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Map `index` (any shape, values in [0, n)) one to one onto [0, n), in an order given by `seed`.

    A balanced Feistel network on the smallest even number of bits that holds n, walked along its cycles until the
    value falls below n (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Integer arithmetic only, so
    every machine gives the same order.
    """
    if n < 1:
        raise ValueError(f"nothing to permute: n = {n}")
    value = np.array(index, dtype=np.int64)
    if value.size and (value.min() < 0 or value.max() >= n):
        raise IndexError(f"index outside [0, {n})")
    flat = value.astype(np.uint64).reshape(-1)
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = _keys(seed)
    flat = _feistel(flat, half, keys)
    while len(outside := np.flatnonzero(flat >= np.uint64(n))):
        flat[outside] = _feistel(flat[outside], half, keys)
    return flat.astype(np.int64).reshape(value.shape)


def epoch_seed(seed: int, epoch: int, part: int = 0) -> int:
    """Derive the seed of one pass over one part; neighbouring seeds and epochs have unrelated orders."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{part}/{epoch}".encode("ascii"), digest_size=8).digest(), "little")


def _keys(seed: int) -> list[np.uint64]:
    digest = hashlib.blake2b(str(seed).encode("ascii"), digest_size=8 * _ROUNDS).digest()
    return list(np.frombuffer(digest, dtype="<u8").astype(np.uint64))


def _feistel(value: np.ndarray, half: int, keys: list[np.uint64]) -> np.ndarray:
    """Shuffle numbers of 2·half bits one to one; the round function is the finaliser of splitmix64."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = value >> shift, value & mask
    for key in keys:
        mixed = right + key  # wraps modulo 2**64, as unsigned arrays do
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        left, right = right, left ^ (mixed & mask)
    return left << shift | right
