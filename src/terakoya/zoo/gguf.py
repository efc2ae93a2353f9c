"""GGUF files: metadata and tensors of a model in one memory-mapped file (versions 2 and 3, little-endian).

Nothing in the file is believed: every length is compared with the bytes that are left before anything of that size
is made. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from struct import Struct
from types import MappingProxyType
from typing import Any

import numpy as np

from terakoya.errors import TerakoyaError, nearest
from terakoya.quant.blocks import BLOCKS, BlockType, dequantise

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # where the file does not say
MAX_KEYS = 4096
MAX_TENSORS = 65_536
MAX_NAME = 65_535  # bytes of a key; the format's own limit
MAX_STRING = 64 << 20  # a whole tokenizer.json may stand in one string
MAX_ITEMS = 1 << 24
MAX_ALIGNMENT = 1 << 16
MAX_ELEMENTS = 1 << 56

_SCALARS = ("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", None, None, "<u8", "<i8", "<f8")  # by type id
_STRING, _ARRAY = 8, 9
_U32, _U64 = Struct("<I"), Struct("<Q")


@dataclass(frozen=True)
class Info:
    """A tensor of the file: `shape` in torch's order (rows first), `offset` in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: BlockType
    offset: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class GGUF:
    """An open GGUF file. Metadata values are int, float, bool, str, list[str] or numpy arrays."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Info]
    _bytes: np.ndarray = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> GGUF:
        """Map the file and read its header; tensors stay on disk until asked for.

        Raise TerakoyaError, naming the byte or the tensor, for anything that does not hold.
        """
        path = Path(path)
        data = _map(path)
        header = _Header(path, data)
        metadata, tensors = header.read()
        return cls(path, MappingProxyType(metadata), MappingProxyType(tensors), np.frombuffer(data, np.uint8))

    def raw(self, name: str) -> np.ndarray:
        """Return the stored bytes of a tensor, uint8 (nbytes,), without copying them."""
        info = self._info(name)
        return self._bytes[info.offset : info.offset + info.nbytes]

    def read(self, name: str) -> np.ndarray:
        """Decode a tensor into a new float32 array of its shape; raise TerakoyaError for a type we do not know."""
        info = self._info(name)
        if info.kind.id not in BLOCKS:
            raise TerakoyaError(
                f"{self.path}, tensor {name}",
                f"is of type {info.kind.id}, which cannot be read",
                allowed=[f"{kind.name} ({kind.id})" for kind in BLOCKS.values()],
            )
        return dequantise(self.raw(name), info.kind).reshape(info.shape)

    def _info(self, name: str) -> Info:
        if name not in self.tensors:
            raise TerakoyaError(
                str(self.path), "is not a tensor of this file", given=name, hint=nearest(name, self.tensors)
            )
        return self.tensors[name]


def is_gguf(path: Path) -> bool:
    """Say whether the file exists and begins as a GGUF file does."""
    try:
        with Path(path).open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            start = file.read(24)
            if start[:4] != MAGIC:
                raise TerakoyaError(str(path), f"is not a GGUF file: it begins with {start[:4]!r}", allowed=repr(MAGIC))
            if len(start) < 24:
                raise TerakoyaError(
                    f"{path} at byte {len(start)}", "the file ends inside the header; copy or download it again"
                )
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise TerakoyaError(str(path), f"cannot be opened: {error.strerror or error}") from None


class _Header:
    """A cursor over the header; `at` is the byte that is read next."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.end, self.at = path, data, len(data), 4

    def read(self) -> tuple[dict[str, Any], dict[str, Info]]:
        """Read metadata and tensor infos, and check that the tensors lie in the file, apart from each other."""
        version = self.u32("the version")
        if version not in VERSIONS:
            big = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            what = "is a big-endian file" if big else f"has GGUF version {version}"
            raise TerakoyaError(str(self.path), what, allowed="little-endian, version 2 or 3", hint="convert it again")
        tensors = self.count("tensors", MAX_TENSORS, least=32)
        keys = self.count("metadata keys", MAX_KEYS, least=13)
        metadata = self.metadata(keys)
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self.wrong(f"general.alignment is {alignment!r:.40}, not a power of two up to {MAX_ALIGNMENT}")
        found = self.infos(tensors, alignment)
        return metadata, found

    def metadata(self, keys: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for _ in range(keys):
            key = self.string("a metadata key", MAX_NAME)
            if not key or key in out:
                raise self.wrong(f"metadata key {_short(key)} is {'there twice' if key else 'empty'}")
            out[key] = self.value(key)
        return out

    def value(self, key: str) -> Any:
        what = f"the value of {_short(key)}"
        kind = self.u32(what)
        if kind == _STRING:
            return self.string(what, MAX_STRING)
        if kind != _ARRAY:
            return self.numbers(kind, 1, what)[0].item()
        kind = self.u32(what)
        items = self.u64(what)
        if items > MAX_ITEMS:
            raise self.wrong(f"{what} has {items} items, more than {MAX_ITEMS}")
        if kind == _ARRAY:
            raise self.wrong(f"{what} is an array of arrays, which no known writer makes")
        return self.strings(items, what) if kind == _STRING else self.numbers(kind, items, what)

    def numbers(self, kind: int, items: int, what: str) -> np.ndarray:
        dtype = _SCALARS[kind] if kind < len(_SCALARS) else None
        if dtype is None:
            raise self.wrong(f"{what} is of the unknown type {kind}")
        dtype = np.dtype(dtype)
        start = self.skip(items * dtype.itemsize, what)
        if dtype.kind == "b" and np.frombuffer(self.data, np.uint8, items, start).max(initial=0) > 1:
            raise self.wrong(f"{what} is neither true nor false")
        return np.frombuffer(self.data, dtype, items, start).copy()

    def strings(self, items: int, what: str) -> list[str]:
        if items * 8 > self.end - self.at:
            raise self.wrong(f"{what} has {items} strings, but {self.end - self.at} bytes are left in the file")
        # A vocabulary has 10⁵ strings: one tight loop over local names.
        data, at, end, size_at = self.data, self.at, self.end, _U64.unpack_from
        out: list[str] = []
        try:
            for _ in range(items):
                if at + 8 > end:
                    break
                start = at + 8
                at = start + size_at(data, at)[0]
                if at > end:
                    break
                out.append(data[start:at].decode())
        except UnicodeDecodeError:
            self.at = at
            raise self.wrong(f"{what} is not UTF-8 in string {len(out)}") from None
        if len(out) < items:
            raise self.wrong(f"the file ends inside {what}, string {len(out)} of {items}")
        self.at = at
        return out

    def infos(self, count: int, alignment: int) -> dict[str, Info]:
        found: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(count):
            name = self.string("a tensor name", MAX_NAME)
            if not name or name in found:
                raise self.wrong(f"tensor name {_short(name)} is {'there twice' if name else 'empty'}")
            what = f"tensor {_short(name)}"
            dims = self.u32(what)
            if not 1 <= dims <= 4:
                raise self.wrong(f"{what} has {dims} dimensions, not 1 to 4")
            shape = tuple(self.u64(what) for _ in range(dims))[::-1]
            kind, offset = self.u32(what), self.u64(what)
            if offset % alignment:
                raise self.wrong(f"{what} has offset {offset}, not a multiple of the alignment {alignment}")
            found[name] = shape, kind, offset
        start = -(-self.at // alignment) * alignment
        return self.placed(found, start)

    def placed(self, found: Mapping[str, tuple[tuple[int, ...], int, int]], start: int) -> dict[str, Info]:
        """Turn offsets from the data's start into offsets in the file; refuse what is outside or overlaps."""
        out: dict[str, Info] = {}
        for name, (shape, kind_id, offset) in found.items():
            kind, first = BLOCKS.get(kind_id), start + offset
            if math.prod(max(n, 1) for n in shape) >= MAX_ELEMENTS:  # a 0 must not hide the others
                raise self.misplaced(name, f"the shape {shape} is more than any file holds")
            if kind and shape[-1] % kind.elements:
                raise self.misplaced(name, f"rows of {shape[-1]} are not whole {kind.name} blocks of {kind.elements}")
            elements = math.prod(shape)
            # The size of a type we do not know is settled below; it has at least one byte.
            nbytes = elements // kind.elements * kind.bytes if kind else min(elements, 1)
            if nbytes and first + nbytes > self.end:
                raise self.misplaced(
                    name, f"needs bytes {first} to {first + nbytes} of {self.end}; copy or download the file again"
                )
            out[name] = Info(name, shape, kind or BlockType(kind_id, "unknown", 0, 0), first, nbytes)
        order = sorted((info for info in out.values() if info.nbytes), key=lambda info: info.offset)
        for info, after in pairwise(order):
            if info.offset + info.nbytes > after.offset:
                raise self.misplaced(info.name, f"overlaps with tensor {_short(after.name)}")
        for info, stop in zip(order, [after.offset for after in order[1:]] + [self.end]):
            if not info.kind.elements:
                out[info.name] = replace(info, nbytes=stop - info.offset)
        return out

    def misplaced(self, name: str, problem: str) -> TerakoyaError:
        return TerakoyaError(f"{self.path}, tensor {_short(name)}", problem)

    def count(self, of: str, most: int, least: int) -> int:
        n = self.u64(f"the number of {of}")
        if n > most or n * least > self.end - self.at:
            raise self.wrong(f"the header promises {n} {of}; {self.end - self.at} bytes are left, {most} at most")
        return n

    def string(self, what: str, most: int) -> str:
        size = self.u64(what)
        if size > most:
            raise self.wrong(f"{what} is {size} bytes long, more than {most}")
        start = self.skip(size, what)
        try:
            return self.data[start : self.at].decode()
        except UnicodeDecodeError:
            raise self.wrong(f"{what} is not UTF-8") from None

    def u32(self, what: str) -> int:
        return _U32.unpack_from(self.data, self.skip(4, what))[0]

    def u64(self, what: str) -> int:
        return _U64.unpack_from(self.data, self.skip(8, what))[0]

    def skip(self, size: int, what: str) -> int:
        """Pass over `size` bytes and return where they begin."""
        if size > self.end - self.at:
            raise self.wrong(f"the file ends inside {what}: {size} bytes wanted, {self.end - self.at} left")
        self.at += size
        return self.at - size

    def wrong(self, problem: str) -> TerakoyaError:
        return TerakoyaError(f"{self.path} at byte {self.at}", problem)


def _short(name: str) -> str:
    return repr(name) if len(name) <= 80 else repr(name[:80]) + "…"
