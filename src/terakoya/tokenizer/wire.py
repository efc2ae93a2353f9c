"""Protocol buffers, as much as SentencePiece needs: fields of a message, every length checked against what is there."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from terakoya.errors import TerakoyaError

Value = int | float | bytes


def fields(place: str, data: bytes) -> Iterator[tuple[int, Value]]:
    """Yield (field number, value): varints as int, 32-bit as float, 64-bit and length-delimited as bytes.

    Source: protobuf encoding specification. Raises TerakoyaError at the first byte that does not fit.
    """
    at = 0
    while at < len(data):
        key, at = _varint(place, data, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise TerakoyaError(place, f"is corrupt: field 0 before byte {at}")
        if kind == 0:
            value, at = _varint(place, data, at)
            yield number, value
        elif kind in (1, 2, 5):
            length = {1: 8, 5: 4}.get(kind)
            if length is None:
                length, at = _varint(place, data, at)
            if length > len(data) - at:
                raise TerakoyaError(place, f"is corrupt: {length} bytes promised at byte {at}, {len(data) - at} left")
            part, at = data[at : at + length], at + length
            yield number, struct.unpack("<f", part)[0] if kind == 5 else part
        else:
            raise TerakoyaError(place, f"is corrupt: wire type {kind} before byte {at}")


def _varint(place: str, data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise TerakoyaError(place, "is corrupt: it ends within a number")
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise TerakoyaError(place, f"is corrupt: a number of more than ten bytes before byte {at}")
