"""The C library of `csrc` through ctypes: programs, packed weights, and one call per step."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache

import numpy as np

from terakoya.errors import TerakoyaError
from terakoya.ops.compile import library

ISAS = ("portable", "avx2", "avx512", "vnni")
ISA = "TERAKOYA_NATIVE_ISA"  # forces one of them
LINE = 64  # bytes; where weights begin
PAGE = 16  # positions of a page of memory

Op = IntEnum(
    "Op",
    "EMBED PLACE NORM LINEAR ROTARY CLIP TEMPER ATTEND GLU ACT ADD COPY TAKE ROUTE SPREAD EXPERTS GATHER GATE LOGITS",
    start=0,
)
Format = IntEnum("Format", "F32 Q8 Q4 F16 B16 Q5 S4 S5 K4 K5 K6", start=0)
Rows = IntEnum("Rows", "TOKENS CHOICES OUTPUTS", start=0)
ACTS = ("gelu", "gelu_tanh", "relu", "relu2", "silu", "quick_gelu", "swiglu_clamped", "sigmoid")
ADD, ACT, BY_TOKEN = 1, 2, 4  # flags of linear layers
WEIGHED = 1  # flag of spread and gather
HIDDEN, LOGITS = 0, 1  # buffers that the caller brings


class Instruction(ctypes.Structure):
    """`tk_instruction` of terakoya.h, field by field."""

    _fields_ = [
        *((name, c_int32) for name in (
            "op", "rows", "dst", "dst_at", "src", "src_at", "n", "k", "format", "flags", "heads", "stride", "kind",
            "act", "table", "groups", "key_at", "value_at", "key_width", "value_width", "memory_at", "window", "chunk",
            "distances", "alibi", "top", "group_keep", "score", "normalise",
        )),
        *((name, c_float) for name in ("scale", "limit", "eps")),
        *((name, c_void_p) for name in ("weight", "bias", "extra")),
    ]  # fmt: skip


class Memory_(ctypes.Structure):
    """`tk_memory`: keys and values of one layer by pages, and which list of pages is theirs."""

    _fields_ = [("keys", c_void_p), ("values", c_void_p), ("table", c_int32)]


class Sequence_(ctypes.Structure):
    """`tk_sequence`: where the memory of one sequence is, and its part in a step."""

    _fields_ = [
        ("memory", POINTER(Memory_)),
        ("pages", c_void_p),
        ("stride", c_int32),
        ("start", c_int32),
        ("count", c_int32),
    ]


class Rotary(ctypes.Structure):
    """`tk_rotary`: tables of cosines and sines, by position or by row of the step."""

    _fields_ = [("cos", c_void_p), ("sin", c_void_p), ("by_row", c_int32)]


class _Step(ctypes.Structure):
    _fields_ = [
        ("sequences", c_int32),
        ("outputs", c_int32),
        ("tokens", c_void_p),
        ("output", c_void_p),
        ("sequence", POINTER(Sequence_)),
        ("rotary", POINTER(Rotary)),
        ("hidden", c_void_p),
        ("logits", c_void_p),
    ]


@cache
def _library() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(library()))
    lib.tk_make.restype = c_void_p
    lib.tk_make.argtypes = [
        POINTER(Instruction), c_int32, POINTER(c_int32), c_int32, c_int32, c_int32, c_char_p,
    ]  # fmt: skip
    lib.tk_free.argtypes, lib.tk_free.restype = [c_void_p], None
    lib.tk_run.argtypes, lib.tk_run.restype = [c_void_p, c_int32, c_int32, POINTER(_Step)], c_int32
    lib.tk_isa.argtypes, lib.tk_isa.restype = [c_void_p], c_char_p
    lib.tk_can.argtypes, lib.tk_can.restype = [c_char_p], c_int32
    lib.tk_packed_bytes.argtypes, lib.tk_packed_bytes.restype = [c_int32, c_int32, c_int32], c_int64
    for name in ("tk_pack", "tk_pack_blocks", "tk_unpack"):
        function = getattr(lib, name)
        function.argtypes, function.restype = [c_int32, c_int32, c_int32, c_void_p, c_void_p], None
    lib.tk_block_row.argtypes, lib.tk_block_row.restype = [c_int32, c_int32], c_int64
    lib.tk_read_speed.argtypes, lib.tk_read_speed.restype = [c_void_p, c_void_p, c_int64, c_int32], c_double
    return lib


def isas() -> list[str]:
    """Return the instruction sets that this machine can run, the plainest first."""
    return [name for name in ISAS if _library().tk_can(name.encode())]


def packed_bytes(form: Format, n: int, k: int) -> int:
    """Return the size of a packed weight of n rows and k columns."""
    return _library().tk_packed_bytes(form, n, k)


def pack(w: np.ndarray, form: Format, out: np.ndarray) -> None:
    """Pack w (N, K) float32 into out (bytes,): Q8 and Q4: rounded to the nearest in groups of 32 columns; F32, and
    F16 and B16 for what `exact` says: as it is.
    """
    w = np.ascontiguousarray(w, np.float32)
    assert out.nbytes == packed_bytes(form, *w.shape)
    _library().tk_pack(form, *w.shape, w.ctypes.data, out.ctypes.data)


def exact(*weights: np.ndarray) -> Format:
    """Return the smallest format of numbers that holds these float32 weights without loss: B16, F16 or F32."""
    if all((w.view(np.uint32) & 0xFFFF == 0).all() for w in weights):
        return Format.B16
    with np.errstate(over="ignore"):
        return Format.F16 if all((w.astype(np.float16) == w).all() for w in weights) else Format.F32


def pack_blocks(rows: np.ndarray, kind: int, k: int, out: np.ndarray) -> None:
    """Pack rows (N, bytes) uint8 of GGUF blocks as they are: `kind` is one of `lower.GGUF_KINDS`."""
    rows = np.ascontiguousarray(rows)
    assert rows.shape[1] == _library().tk_block_row(kind, k)
    _library().tk_pack_blocks(kind, len(rows), k, rows.ctypes.data, out.ctypes.data)


def unpack(packed: np.ndarray, form: Format, n: int, k: int) -> np.ndarray:
    """Return what a packed weight stands for: (N, K) float32."""
    out = np.empty((n, k), np.float32)
    _library().tk_unpack(form, n, k, packed.ctypes.data, out.ctypes.data)
    return out


class Arena:
    """One stretch of memory for all weights, in huge pages where the system has them."""

    def __init__(self) -> None:
        self.size = 0
        self._fills: list[tuple[int, int, Callable[[np.ndarray], None]]] = []

    def reserve(self, size: int, fill: Callable[[np.ndarray], None]) -> int:
        """Return where `size` bytes will stand; `fill` writes them when all is known."""
        at = self.size
        self.size += -(-size // LINE) * LINE
        self._fills.append((at, size, fill))
        return at

    def build(self, threads: int = 1) -> np.ndarray:
        """Allocate and fill, by so many threads at once: (bytes,) uint8, at the start of a page."""
        pages = mmap.mmap(-1, self.size + 4096)  # kernels read ahead of the end
        if hasattr(mmap, "MADV_HUGEPAGE"):
            pages.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(pages, np.uint8)
        with ThreadPoolExecutor(threads) as pool:  # copying and packing let go of Python's lock
            done = [pool.submit(fill, whole[at : at + size]) for at, size, fill in self._fills]
            for one in done:
                one.result()
        self._fills.clear()
        return whole


@dataclass
class Code:
    """A program before it is made: instructions whose weights are places in the arena."""

    instructions: list[Instruction] = field(default_factory=list)
    places: list[tuple[int, str, int]] = field(default_factory=list)  # instruction, field, where in the arena
    widths: list[int] = field(default_factory=lambda: [0, 0])  # of buffers, floats a row
    arena: Arena = field(default_factory=Arena)
    choices: int = 1  # experts a token

    def buffer(self, width: int) -> int:
        """Add a buffer."""
        self.widths.append(width)
        return len(self.widths) - 1

    def add(self, op: Op, *, places: dict[str, int | None] | None = None, **fields: int | float) -> None:
        """Append an instruction; `places` are fields that point into the arena."""
        instruction = Instruction(op=op, **({"scale": 1.0} | fields))
        for name, at in (places or {}).items():
            if at is not None:
                self.places.append((len(self.instructions), name, at))
        self.instructions.append(instruction)


class Program:
    """A program ready to run, with its weights and threads. Not to be run by two at once."""

    def __init__(self, code: Code, threads: int) -> None:
        isa = os.environ.get(ISA, "")
        if isa and isa not in isas():
            raise TerakoyaError(f"${ISA}", given=isa, allowed=isas())
        self.weights = code.arena.build(threads)
        self.length = len(code.instructions)
        array = (Instruction * self.length)(*code.instructions)
        for number, name, at in code.places:
            setattr(array[number], name, self.weights.ctypes.data + at)
        widths = (c_int32 * len(code.widths))(*code.widths)
        lib = _library()
        self._pointer = lib.tk_make(array, self.length, widths, len(widths), code.choices, threads, isa.encode())
        if not self._pointer:
            raise MemoryError("the native program does not fit")
        self.isa: str = lib.tk_isa(self._pointer).decode()
        self.threads = threads

    def run(
        self,
        tokens: np.ndarray,
        sequences: Sequence[Sequence_],
        rotary: Sequence[Rotary],
        *,
        first: int = 0,
        last: int | None = None,
        output: np.ndarray | None = None,
        hidden: np.ndarray | None = None,
        logits: np.ndarray | None = None,
    ) -> None:
        """Run instructions [first, last): tokens (T,) int32; output (n,) int32 rows or None: all; float32 in, out."""
        assert self._pointer, "this program is closed"
        step = _Step(
            len(sequences),
            len(tokens) if output is None else len(output),
            tokens.ctypes.data,
            None if output is None else output.ctypes.data,
            (Sequence_ * len(sequences))(*sequences),
            (Rotary * len(rotary))(*rotary),
            None if hidden is None else hidden.ctypes.data,
            None if logits is None else logits.ctypes.data,
        )
        if _library().tk_run(self._pointer, first, self.length if last is None else last, step):
            raise MemoryError("a step of the native program does not fit")

    def read_speed(self, times: int = 4) -> float:
        """Return bytes per second at which the threads read the weights: the bound of decoding one sequence."""
        seconds = _library().tk_read_speed(self._pointer, self.weights.ctypes.data, self.weights.nbytes, times)
        return self.weights.nbytes * times / seconds

    def close(self) -> None:
        """Let the threads and the buffers go."""
        pointer, self._pointer = self._pointer, None
        if pointer:
            _library().tk_free(pointer)

    def __del__(self) -> None:
        if getattr(self, "_pointer", None):
            self.close()
