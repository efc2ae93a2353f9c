"""Every id as bytes: read from the decoder that a tokenizer.json declares."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from terakoya.errors import TerakoyaError
from terakoya.tokenizer.rust import Json

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@cache
def byte_letters() -> tuple[str, ...]:
    """The letter that stands for each byte in byte-level vocabularies (GPT-2: printable bytes are themselves)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    spare = iter(range(256, 512))
    return tuple(chr(b if b in plain else next(spare)) for b in range(256))


@cache
def _letter_bytes() -> dict[str, int]:
    return {letter: byte for byte, letter in enumerate(byte_letters())}


def parts(component: Json | None) -> list[Json]:
    """A normalizer, pre-tokenizer or decoder as a flat list (its Sequence opened)."""
    if component is None:
        return []
    if component.get("type") == "Sequence":
        inside = next((component[k] for k in ("normalizers", "pretokenizers", "decoders") if k in component), [])
        return [p for c in inside for p in parts(c)]
    return [component]


class Spelling:
    """How pieces become bytes; `strip` says that the first piece of a text loses one leading space."""

    def __init__(self, place: str, description: Json) -> None:
        self._steps = parts(description.get("decoder"))
        kinds = {s["type"] for s in self._steps}
        unknown = kinds - _KNOWN
        if unknown:
            raise TerakoyaError(place, "is a decoder we do not know", given=sorted(unknown)[0], allowed=sorted(_KNOWN))
        levels = {p["type"] for p in parts(description.get("pre_tokenizer"))}
        self.byte_level = "ByteLevel" in kinds or (not kinds and "ByteLevel" in levels)
        self._spaced = not kinds and not self.byte_level and description["model"]["type"] in ("WordLevel", "WordPiece")
        self.strip = self._spaced or any(map(_strips, self._steps))

    def bytes(self, piece: str) -> bytes:
        """The bytes of one vocabulary piece."""
        if self.byte_level:
            try:
                return bytes(map(_letter_bytes().__getitem__, piece))
            except KeyError:
                return piece.encode()
        for step in self._steps:
            kind = step["type"]
            if kind == "ByteFallback" and (byte := _BYTE.fullmatch(piece)):
                return bytes([int(byte[1], 16)])
            if kind == "Replace":
                piece = _replaced(piece, step)
            elif kind == "Metaspace":
                piece = piece.replace(step.get("replacement", "▁"), " ")
            elif kind == "WordPiece":
                prefix = step.get("prefix", "##")
                piece = piece[len(prefix) :] if piece.startswith(prefix) else f" {piece}"
            elif kind == "BPEDecoder":
                piece = piece.replace(step.get("suffix", "</w>"), " ")
        return (f" {piece}" if self._spaced else piece).encode()


_KNOWN = {"ByteLevel", "ByteFallback", "Replace", "Metaspace", "WordPiece", "BPEDecoder", "Fuse", "Strip"}


def _strips(step: Json) -> bool:
    """Does this decoder take one space from the start of the text?"""
    if step["type"] == "Strip":
        return step.get("content") == " " and step.get("start", 0) > 0
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True)
    return step["type"] == "WordPiece"


def _replaced(piece: str, step: Json) -> str:
    pattern: Any = step.get("pattern", {})
    if "String" not in pattern:
        raise TerakoyaError("decoder", "replaces by a pattern; only a plain string is allowed")
    return piece.replace(pattern["String"], step.get("content", ""))
