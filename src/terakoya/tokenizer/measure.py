"""How well a tokenizer spells: length, coverage and exactness, by language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from terakoya.tokenizer.core import Tokenizer

# 夏目漱石『吾輩は猫である』 and Lewis Carroll, "Alice's Adventures in Wonderland": both in the public domain.
SAMPLES: Mapping[str, str] = MappingProxyType(
    {
        "ja": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で"
        "ニャーニャー泣いていた事だけは記憶している。吾輩はここで始めて人間というものを見た。\n",
        "en": "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to "
        "do: once or twice she had peeped into the book her sister was reading.\n",
        "code": "def total(rows: list[int]) -> int:\n    found = 0\n    for row in rows:\n"
        "        if row % 2 == 0:\n            found += row\n    return found\n",
    }
)


@dataclass(frozen=True)
class Row:
    """One sample measured."""

    name: str
    chars: int
    bytes: int
    tokens: int
    single: float  # share of tokens that are one byte of a longer character: what the vocabulary could not name
    unknown: int  # tokens that stand for what is lost
    exact: bool  # decode(encode(text)) == text

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per token; comparable between languages and tokenizers."""
        return self.bytes / max(self.tokens, 1)

    @property
    def chars_per_token(self) -> float:
        """Characters per token."""
        return self.chars / max(self.tokens, 1)

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `Report.head`."""
        return (
            self.name,
            f"{self.tokens:,}",
            f"{self.bytes_per_token:.2f}",
            f"{self.chars_per_token:.2f}",
            f"{self.single:.1%}",
            f"{self.unknown:,}",
            "yes" if self.exact else "no",
        )


@dataclass(frozen=True)
class Report:
    """What `report` found."""

    name: str
    vocab_size: int
    rows: tuple[Row, ...]
    missing: int  # bytes of UTF-8 that have no piece and are left out of any text
    head: tuple[str, ...] = ("sample", "tokens", "bytes/token", "chars/token", "part bytes", "unknown", "exact")

    def __str__(self) -> str:
        table = [self.head, *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in table)


def report(tokenizer: Tokenizer, samples: Mapping[str, str] | None = None) -> Report:
    """Measure a tokenizer on samples by name (default: a little Japanese, English and code)."""
    rows = tuple(_row(tokenizer, name, text) for name, text in (samples or SAMPLES).items())
    return Report(tokenizer.name, tokenizer.vocab_size, rows, len(tokenizer.missing))


def _row(tokenizer: Tokenizer, name: str, text: str) -> Row:
    ids = tokenizer.encode(text)
    parts = sum(_is_part(tokenizer.token_bytes(i)) for i in ids)
    return Row(
        name=name,
        chars=len(text),
        bytes=len(text.encode()),
        tokens=len(ids),
        single=parts / max(len(ids), 1),
        unknown=sum(i == tokenizer.unk for i in ids),
        exact=tokenizer.decode(ids) == text,
    )


def _is_part(piece: bytes) -> bool:
    return len(piece) == 1 and piece[0] >= 0x80
