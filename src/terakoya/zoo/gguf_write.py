"""Write GGUF files (version 3, little-endian). Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np

from terakoya.errors import TerakoyaError
from terakoya.quant.blocks import BlockType
from terakoya.zoo.files import replacing
from terakoya.zoo.gguf import ALIGNMENT, MAGIC

_IDS = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "b1": 7, "u8": 10, "i8": 11, "f8": 12}
_STRING, _ARRAY = 8, 9


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[BlockType, Any, Sequence[int]]]
) -> None:
    """Write metadata and tensors, `name: (kind, bytes or array, shape in torch's order)`, in the order given.

    A Python int becomes uint32 (or int32, int64, uint64 where it must), a float float32 as readers expect; a NumPy
    scalar or array keeps its type; lists hold strings. The file appears whole or not at all. Raise TerakoyaError for
    values that GGUF has no type for, and for data whose size does not fit shape and kind.
    """
    path = Path(path)
    alignment = int(metadata.get("general.alignment", ALIGNMENT))
    head = [MAGIC, pack("<IQQ", 3, len(tensors), len(metadata))]
    head += [_string(key) + _value(key, value) for key, value in metadata.items()]
    offset, sizes = 0, []
    for name, (kind, _, shape) in tensors.items():
        if not 1 <= len(shape) <= 4 or shape[-1] % kind.elements:
            raise TerakoyaError(
                f"tensor {name}",
                f"of shape {tuple(shape)} cannot be stored as {kind.name}",
                allowed=f"1 to 4 dimensions, rows a multiple of {kind.elements}",
            )
        sizes.append(math.prod(shape) // kind.elements * kind.bytes)
        head.append(_string(name) + pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind.id, offset))
        offset += -(-sizes[-1] // alignment) * alignment
    start = b"".join(head)
    with replacing(path) as file:
        file.write(start + bytes(-len(start) % alignment))
        for (name, (kind, data, _)), size in zip(tensors.items(), sizes):
            raw = _raw(data)
            if raw.nbytes != size:
                raise TerakoyaError(f"tensor {name}", f"has {raw.nbytes} bytes, {kind.name} needs {size}")
            file.write(raw.data)
            file.write(bytes(-size % alignment))


def _raw(data: Any) -> np.ndarray:
    if isinstance(data, np.ndarray):
        data = data.astype(data.dtype.newbyteorder("<"), copy=False)
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return np.frombuffer(data, np.uint8)


def _string(text: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise TerakoyaError(f"{text!r:.80}", "cannot be written as UTF-8") from None
    return pack("<Q", len(raw)) + raw


def _value(key: str, value: Any) -> bytes:
    if isinstance(value, str):
        return pack("<I", _STRING) + _string(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    array = isinstance(value, np.ndarray)
    value = value if isinstance(value, np.ndarray | np.generic) else _number(key, value)
    kind = _IDS.get(value.dtype.str[1:])
    if kind is None or value.ndim > 1:
        raise TerakoyaError(f"metadata {key}", f"GGUF has no type for {value.dtype} of {value.ndim} dimensions")
    raw = value.astype(value.dtype.newbyteorder("<")).tobytes()
    return (pack("<IIQ", _ARRAY, kind, value.size) if array else pack("<I", kind)) + raw


def _number(key: str, value: Any) -> np.generic:
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, float):
        return np.float32(value)
    if isinstance(value, int):
        for kind in (np.uint32, np.int32, np.int64, np.uint64):
            if np.iinfo(kind).min <= value <= np.iinfo(kind).max:
                return kind(value)
    raise TerakoyaError(
        f"metadata {key}", "cannot be stored in GGUF", given=value, allowed="bool, int, float, str, list of str, array"
    )
