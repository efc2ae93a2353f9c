"""Cut texts into sentences of words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, get_args

from terakoya.errors import MissingExtra, TerakoyaError

Split = Literal["words", "ja", "chars", "spaces"]
SPLITS: tuple[Split, ...] = get_args(Split)
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|(?<=[。！？」』])|\n+")
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_KANA_KANJI = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
_SEEN = 100_000  # characters after which the writing is known


def sentences(texts: Iterable[str], split: Split) -> Iterator[list[str]]:
    """Yield the words of each sentence that has any.

    words: letters and digits, lower-cased. ja: MeCab with UniDic, surface forms without punctuation (needs the extra
    `ja`). chars: every character that is no space. spaces: cut at spaces and lines only.
    """
    cut = _cutter(split)
    guard = _Guard() if split == "words" else None
    for text in texts:
        if guard:
            guard.look(text)
        parts = text.splitlines() if split == "spaces" else _SENTENCE.split(text)
        yield from (words for part in parts if (words := cut(part)))


def _cutter(split: Split) -> Callable[[str], list[str]]:
    if split == "words":
        return lambda text: _WORD.findall(text.lower())
    if split == "ja":
        return _mecab()
    return (lambda text: [c for c in text if not c.isspace()]) if split == "chars" else str.split


def _mecab() -> Callable[[str], list[str]]:
    try:
        import fugashi
        import unidic_lite  # noqa: F401 - the dictionary that fugashi finds
    except ImportError:
        raise MissingExtra("fugashi and unidic-lite", "ja") from None
    tagger = fugashi.Tagger()  # pyright: ignore[reportAttributeAccessIssue] - compiled
    return lambda text: [
        word.surface for word in tagger(text) if word.feature.pos1 not in ("補助記号", "記号", "空白") and word.surface
    ]


class _Guard:
    """Refuse to cut at spaces what is written without them."""

    def __init__(self) -> None:
        self.seen = self.japanese = 0

    def look(self, text: str) -> None:
        if self.seen >= _SEEN:
            return
        self.seen += len(text)
        self.japanese += len(_KANA_KANJI.findall(text))
        if self.japanese > 0.3 * self.seen:
            raise TerakoyaError(
                "--split", "the text is written without spaces", given="words", hint="choose --split ja or chars"
            )
