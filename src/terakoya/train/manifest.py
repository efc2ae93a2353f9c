"""What a checkpoint holds, byte for byte: one JSON file that is itself checksummed.

Every byte of every file belongs to exactly one checksum: a file's first `head` bytes to the file's, the rest to one
of its tensors. CRC-32 finds every single flipped bit and every burst of up to 32 bits, at memory speed; it guards
against disks and cables, not against an adversary.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from terakoya.errors import TerakoyaError
from terakoya.train.tensorfile import DTYPES, nbytes

JSON = None | bool | int | float | str | list[Any] | dict[str, Any]
NAME = "manifest.json"
FORMAT = 1


class CorruptCheckpoint(TerakoyaError):
    """A checkpoint whose bytes are not those that were written."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in a file: bytes [start, end) and their checksum."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    crc32: int


@dataclass(frozen=True)
class FileEntry:
    """One file: its size, the checksum of its first `head` bytes, and the tensors that fill the rest."""

    size: int
    head: int
    crc32: int
    tensors: Mapping[str, TensorEntry]


@dataclass(frozen=True)
class Manifest:
    """Step, free notes (`meta`) and the files by path relative to the checkpoint, `/` between folders."""

    step: int
    meta: Mapping[str, JSON]
    files: Mapping[str, FileEntry]


def dump(manifest: Manifest) -> bytes:
    """Write as JSON whose last key is the checksum of all bytes before it."""
    files = {path: _file_json(entry) for path, entry in manifest.files.items()}
    body = {"format": FORMAT, "step": manifest.step, "meta": dict(manifest.meta), "files": files}
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, indent=1).encode().removesuffix(b"\n}")
    return text + _seal(text)


def parse(data: bytes, where: Path) -> Manifest:
    """Read what `dump` wrote; raise CorruptCheckpoint for anything else."""
    text, seal = data[: -len(_seal(b""))], data[-len(_seal(b"")) :]
    if seal != _seal(text):
        raise CorruptCheckpoint(str(where), "is damaged (checksum of the manifest)")
    try:
        body = json.loads(data)
        if body["format"] != FORMAT:
            raise TerakoyaError(str(where), "is a manifest format of another version", given=body["format"])
        files = {_relative(path): _file_entry(entry) for path, entry in body["files"].items()}
        step, meta = _count(body["step"]), body["meta"]
        if not isinstance(meta, dict):
            raise ValueError("meta is no table")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCheckpoint(str(where), f"is no manifest of a checkpoint ({error})") from error
    return Manifest(step, meta, files)


def check_paths(paths: Iterable[str]) -> None:
    """Raise ValueError where two files of one checkpoint would collide or one would lie outside it."""
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            raise ValueError(f"two files are called {path!r}")
        seen.add(_relative(path))


def _seal(text: bytes) -> bytes:
    return b',\n "crc32": "%08x"\n}\n' % zlib.crc32(text)


def _relative(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or str(pure) != path or set(path) & set("\\\0") or path in (".", NAME):
        raise ValueError(f"{path!r} cannot be a file of a checkpoint")
    return path


def _file_json(entry: FileEntry) -> dict[str, JSON]:
    tensors: dict[str, JSON] = {
        name: {"dtype": t.dtype, "shape": list(t.shape), "bytes": [t.start, t.end], "crc32": f"{t.crc32:08x}"}
        for name, t in entry.tensors.items()
    }
    return {"size": entry.size, "head": entry.head, "crc32": f"{entry.crc32:08x}", "tensors": tensors}


def _file_entry(body: dict[str, Any]) -> FileEntry:
    tensors = {name: _tensor_entry(t) for name, t in body["tensors"].items()}
    size, at = _count(body["size"]), _count(body["head"])
    for name, t in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if t.start != at or t.end - t.start != nbytes(t.dtype, t.shape):
            raise ValueError(f"tensor {name!r} does not fit its place")
        at = t.end
    if at != size:
        raise ValueError("a file's parts do not add up to its size")
    return FileEntry(size, body["head"], int(body["crc32"], 16), tensors)


def _tensor_entry(body: dict[str, Any]) -> TensorEntry:
    if body["dtype"] not in DTYPES:
        raise ValueError(f"unknown dtype {body['dtype']!r}")
    start, end = body["bytes"]
    shape = tuple(_count(n) for n in body["shape"])
    if prod(max(n, 1) for n in shape) >= 1 << 63:
        raise ValueError("a shape is out of range")
    return TensorEntry(body["dtype"], shape, _count(start), _count(end), int(body["crc32"], 16))


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
