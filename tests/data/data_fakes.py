"""A small tokenizer and small shards for the tests of data."""

from __future__ import annotations

from pathlib import Path

from terakoya.corpus import Document
from terakoya.data import Shards, build


class Bytes:
    """A token a byte, and one sign of document limits; `style` says where it stands."""

    END = 256

    def __init__(self, style: str = "prefix", vocab_size: int = 257) -> None:
        self.style, self.vocab_size = style, vocab_size

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [list(text.encode("utf-8")) for text in texts]

    def wrap(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return {
            "prefix": ((self.END,), ()),
            "suffix": ((), (self.END,)),
            "both": ((self.END,), (self.END,)),
            "none": ((), ()),
        }[self.style]

    def hash(self) -> str:
        return f"bytes-{self.style}-{self.vocab_size}"

    def token_bytes(self, id: int) -> bytes:
        return bytes([id]) if id < 256 else b"<end>"


TEXTS = ["いろはにほへと ちりぬるを", "a", "ﾃﾗｺﾔ half-width\nline", "👩‍👩‍👧‍👦 family", "漢字とかな" * 9, "z" * 50, "終"]


def documents(texts: list[str] = TEXTS) -> list[Document]:
    return [Document(text, f"made#{i}", "CC0-1.0", "ja") for i, text in enumerate(texts)]


def made(folder: Path, texts: list[str] = TEXTS, style: str = "prefix", **options: int) -> Shards:
    return build(documents(texts), Bytes(style), folder, **options)
