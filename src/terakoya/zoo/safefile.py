"""One safetensors file: its header, checked before anyone else sees the file, and the writing of one.

Format: https://github.com/huggingface/safetensors#format. Stricter than the library, which accepts names there twice,
10⁶ dimensions and a header of 100 MB that takes twelve seconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from terakoya.errors import TerakoyaError
from terakoya.zoo.files import replacing

MAX_HEADER = 16 << 20
MAX_TENSORS = 65_536
MAX_DIMS = 8
MAX_NAME = 512

# Bytes of an element, in the order in which the library ranks types: the last come first in a file.
SIZES: Mapping[str, int] = MappingProxyType(
    {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1}
    | {"I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8}
)
_RANK = MappingProxyType({dtype: rank for rank, dtype in enumerate(SIZES)})
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: type by its safetensors name, bytes `start` to `stop` after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the tensors in the order they lie in, and the metadata.

    Raise TerakoyaError unless the tensors fill the file exactly, one after the other.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            start = file.read(9)
            length = int.from_bytes(start[:8], "little")
            if len(start) < 9 or length > size - 8 or length > MAX_HEADER or start[8:] != b"{":
                raise TerakoyaError(str(path), _stranger(start, size, length))
            text = start[8:] + file.read(length - 1)
    except OSError as error:
        raise TerakoyaError(str(path), f"cannot be opened: {error.strerror or error}") from None
    raw = strict_json(path, text)
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise TerakoyaError(f"{path}, __metadata__", "is not a table of strings")
    if len(raw) > MAX_TENSORS:
        raise TerakoyaError(str(path), f"has {len(raw)} tensors", allowed=f"at most {MAX_TENSORS}")
    entries = {name: _entry(path, name, value) for name, value in raw.items()}
    return _ordered(path, entries, size - 8 - length), metadata


def write(
    path: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    content: Callable[[str], np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Write a file, whole or not at all: `tensors` has type and shape by name, `content` gives a tensor's bytes.

    The same tensors give the same bytes whatever their order, and the bytes that the library would write.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    names = sorted(tensors, key=lambda name: (-_RANK[tensors[name][0]], name))
    at = 0
    for name in names:
        dtype, shape = tensors[name]
        if name == "__metadata__" or not _good(name):
            raise TerakoyaError(f"tensor {name!r:.80}", "cannot be a name", allowed=f"1 to {MAX_NAME} printable signs")
        if len(shape) > MAX_DIMS:
            raise TerakoyaError(f"tensor {name}", f"has {len(shape)} dimensions", allowed=f"at most {MAX_DIMS}")
        size = math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER or len(names) > MAX_TENSORS:
        raise TerakoyaError(str(path), f"{len(names)} tensors are too many for one file", hint="use smaller shards")
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            raw = content(name)
            start, stop = header[name]["data_offsets"]
            assert raw.nbytes == stop - start
            file.write(raw.data)


def strict_json(path: Path, text: bytes) -> dict[str, Any]:
    """Parse a JSON object; refuse names that are there twice, NaN, and nesting without end."""
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_unique_constant)
    except (ValueError, RecursionError) as error:
        raise TerakoyaError(str(path), f"is not valid JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise TerakoyaError(str(path), "is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r:.80} is there twice")
    return out


def _unique_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _entry(path: Path, name: str, value: Any) -> Entry:
    place = f"{path}, tensor {name!r:.100}"
    if not _good(name):
        raise TerakoyaError(place, "cannot be a name", allowed=f"1 to {MAX_NAME} printable signs")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise TerakoyaError(place, "needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise TerakoyaError(place, f"dtype {dtype!r:.40} is not known", allowed=list(SIZES))
    if not _numbers(shape) or len(shape) > MAX_DIMS:
        raise TerakoyaError(place, f"shape {shape!r:.80} is not up to {MAX_DIMS} sizes")
    if not _numbers(offsets) or len(offsets) != 2:
        raise TerakoyaError(place, f"data_offsets {offsets!r:.80} is not a start and a stop")
    return Entry(dtype, tuple(shape), *offsets)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)


def _good(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME and name.isprintable()


def _ordered(path: Path, entries: Mapping[str, Entry], size: int) -> dict[str, Entry]:
    at, before = 0, ""
    order = sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop))
    for name, entry in order:
        place = f"{path}, tensor {name}"
        wanted = math.prod(entry.shape) * SIZES[entry.dtype]
        if math.prod(max(n, 1) for n in entry.shape) >= 1 << 56 or entry.stop - entry.start != wanted:
            raise TerakoyaError(
                place, f"{entry.dtype} of shape {entry.shape} does not fill bytes {entry.start} to {entry.stop}"
            )
        if entry.start < at:
            raise TerakoyaError(place, f"overlaps with tensor {before}")
        if entry.start > at:
            raise TerakoyaError(place, f"begins at byte {entry.start}, {entry.start - at} bytes after the one before")
        if entry.stop > size:
            raise TerakoyaError(
                place, f"ends at byte {entry.stop} of {size}", hint="the file is cut; copy or download it again"
            )
        at, before = entry.stop, name
    if at != size:
        raise TerakoyaError(str(path), f"has {size - at} bytes after the last tensor")
    return dict(order)


def _stranger(start: bytes, size: int, length: int) -> str:
    """Say what a file is that does not begin as a safetensors file."""
    if start.startswith(_PICKLES):
        return f"is a pickle, which can run code when it is read; {pickle_way_out()}"
    if start.startswith(b"GGUF"):
        return "is a GGUF file under another name; open it as GGUF"
    if start.startswith(b"version "):
        return "is a git-lfs pointer, not the weights; fetch them with: git lfs pull"
    if size < 9:
        return f"is not a safetensors file: it has {size} bytes"
    if start[8:] != b"{":
        return f"is not a safetensors file: it begins with {start[:8]!r}"
    return f"promises a header of {length} bytes; the file has {size}, {MAX_HEADER} are allowed"


def pickle_way_out() -> str:
    """Return what to do with weights that come as a pickle."""
    return (
        "convert with transformers, where you trust the file: "
        "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) writes safetensors"
    )
