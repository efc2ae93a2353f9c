"""Word vectors by `csrc/words.c`: one call per epoch."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_uint64, c_void_p
from functools import cache

import numpy as np

from terakoya.errors import TerakoyaError
from terakoya.ops.compile import library

LANES = 16  # widths are multiples of it


class Words(ctypes.Structure):
    """`tk_words` of words.c, field by field."""

    _fields_ = [
        *((name, c_void_p) for name in (
            "ids", "ends", "rows", "first", "keep", "chance", "other", "path", "code", "branch", "inputs", "outputs",
        )),
        *((name, c_int64) for name in ("sentences", "done", "total")),
        ("seed", c_uint64),
        *((name, c_int32) for name in ("words", "dim", "window", "negative", "cbow", "threads")),
        *((name, c_float) for name in ("rate_from", "rate_to")),
    ]  # fmt: skip


TYPES = {
    "ids": np.int32, "ends": np.int64, "rows": np.int32, "first": np.int64, "keep": np.uint32, "chance": np.uint32,
    "other": np.int32, "path": np.int32, "code": np.uint8, "branch": np.int64, "inputs": np.float32,
    "outputs": np.float32,
}  # fmt: skip


@cache
def _library() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(library()))
    lib.tk_words_epoch.argtypes, lib.tk_words_epoch.restype = [ctypes.POINTER(Words)], c_int32
    lib.tk_glove_epoch.argtypes = [
        *(c_void_p for _ in range(8)), c_int64, c_int32, c_int32, c_float, c_float, c_float,
    ]  # fmt: skip
    lib.tk_glove_epoch.restype = None
    return lib


def ready() -> None:
    """Build the library where that was not done yet; NoCompiler says why it cannot be."""
    _library()


def epoch(
    arrays: dict[str, np.ndarray], *, window: int, negative: int, cbow: bool, rate: tuple[float, float], done: int,
    total: int, seed: int, threads: int,
) -> None:  # fmt: skip
    """Read all sentences once; `inputs` (rows, D) and `outputs` (V, D) change in place, D a multiple of LANES."""
    for name, array in arrays.items():
        assert array.dtype == TYPES[name] and array.flags.c_contiguous, name
    dim = arrays["inputs"].shape[1]
    assert dim % LANES == 0 and dim == arrays["outputs"].shape[1]
    plan = Words(
        **{name: array.ctypes.data for name, array in arrays.items()}, sentences=len(arrays["ends"]) - 1, done=done,
        total=total, seed=seed, words=len(arrays["outputs"]), dim=dim, window=window, negative=negative, cbow=cbow,
        threads=threads, rate_from=rate[0], rate_to=rate[1],
    )  # fmt: skip
    if _library().tk_words_epoch(ctypes.byref(plan)):
        raise TerakoyaError("word vectors", "memory or threads ran out")


def glove(
    tables: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    order: np.ndarray, *, rate: float, most: float, power: float,
) -> None:  # fmt: skip
    """Pass over co-occurrences (i, j, x) in `order`; tables w, c, gw, gc (V, D + 1) change in place."""
    i, j, x = pairs
    assert all(t.dtype == np.float32 and t.flags.c_contiguous for t in tables)
    assert (i.dtype, j.dtype, x.dtype, order.dtype) == (np.int32, np.int32, np.float32, np.int64)
    width = tables[0].shape[1]
    addresses = [a.ctypes.data for a in (*tables, i, j, x, order)]
    _library().tk_glove_epoch(*addresses, len(order), width - 1, width, rate, most, power)
