"""Bytes from a file, plain or zstd, with bounds on memory: nothing here trusts what it opens."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from terakoya.errors import TerakoyaError

MAX_WINDOW = 2**27  # bytes a zstd frame may ask for
MAX_LINE = 2**26  # bytes in one line of JSON
MAX_TEXT = 2**30  # bytes in one file that is one document
_BITE = 4096  # compressed bytes opened at a time: zstd opens them to at most 128 MiB


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open `path` for reading bytes, unpacking it when it ends in .zst; system errors become one clear line."""
    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".zst":
                yield io.BufferedReader(_Blocks(_unpacked(file, path)), 2**16)
            else:
                yield file
    except OSError as error:
        raise TerakoyaError(str(path), f"cannot be read: {error.strerror or error}") from error


def lines(file: io.BufferedReader, path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, byte offset, bytes without the line end); a line above MAX_LINE is an error."""
    number, offset = 0, 0
    while line := file.readline(MAX_LINE + 2):
        number += 1
        body = line.rstrip(b"\r\n")
        if len(body) > MAX_LINE:
            raise TerakoyaError(f"{path}:{number}", f"is a line of more than {MAX_LINE} bytes")
        yield number, offset, body
        offset += len(line)


def whole(file: io.BufferedReader, path: Path) -> bytes:
    """Read all bytes; more than MAX_TEXT is an error."""
    data = file.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        hint = "a text file is one document: cut it into several, or write JSON lines"
        raise TerakoyaError(str(path), f"holds more than {MAX_TEXT} bytes", hint=hint)
    return data


def decoded(data: bytes, place: str, offset: int = 0) -> str:
    """Decode UTF-8; a byte that is not UTF-8 is named by its offset in the (unpacked) file, never replaced."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + error.start
        hint = "convert the file to UTF-8 (iconv -f SHIFT_JIS -t UTF-8, for one)"
        raise TerakoyaError(place, f"is not UTF-8 at byte {at} (0x{data[error.start]:02x})", hint=hint) from None


def _unpacked(file: io.BufferedReader, path: Path) -> Iterator[bytes]:
    """Unpack zstd frames one after another; a frame that ends early is an error (zstandard's reader says nothing)."""
    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    frame, fresh = unpacker.decompressobj(), True
    try:
        while data := file.read(_BITE):
            while data:
                out, fresh = frame.decompress(data), False
                data = b""
                if frame.eof:
                    data = frame.unused_data
                    frame, fresh = unpacker.decompressobj(), True
                if out:
                    yield out
    except zstandard.ZstdError as error:
        raise TerakoyaError(str(path), f"is not sound zstd data ({error})") from None
    if not fresh:
        raise TerakoyaError(
            str(path), "ends in the middle of a zstd frame", hint="the file was cut short; copy it anew"
        )


class _Blocks(io.RawIOBase):
    """A raw stream over blocks of bytes."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._left = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer, /) -> int:
        if not self._left:
            self._left = memoryview(next(self._blocks, b""))
        room = memoryview(buffer)
        taken = min(len(room), len(self._left))
        room[:taken] = self._left[:taken]
        self._left = self._left[taken:]
        return taken
