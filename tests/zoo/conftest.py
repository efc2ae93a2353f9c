"""What the tests of file formats share: damage to files, and the memory a reader takes."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

_INTS = [0, 1, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 26, 1 << 62, 1 << 63, (1 << 64) - 1]


@pytest.fixture
def traced_peak() -> Iterator[Callable[[], int]]:
    """Return the peak of Python's memory, in bytes, since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.fixture
def damage() -> Callable[[random.Random, bytes], bytes]:
    """Return a function that damages a file's bytes in one to four places."""
    return _damage


def _damage(rng: random.Random, seed: bytes) -> bytes:
    b = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 4))):
        i, n = rng.randrange(len(b) + 1), rng.randrange(1, 16)
        kind = rng.randrange(6)
        if kind == 0:
            b[i : i + 1] = rng.randbytes(1)
        elif kind == 1:
            del b[i : i + n]
        elif kind == 2:
            b[i:i] = rng.randbytes(n)
        elif kind == 3:
            b[i : i + 8] = struct.pack("<Q", rng.choice(_INTS))
        elif kind == 4:
            b[i : i + 4] = struct.pack("<I", rng.choice(_INTS) & 0xFFFFFFFF)
        else:
            b[i:i] = b[i : i + 2 * n]
    return bytes(b)
