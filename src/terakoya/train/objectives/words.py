"""Where words begin among tokens, for whole-word masking: by script, or by MeCab where it is installed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import numpy as np

from terakoya.errors import MissingExtra
from terakoya.tokenizer import Tokenizer

Cut = Callable[[str], Sequence[str]]
Words = Literal["script", "mecab"]

# Without a dictionary: a run of kanji with the kana that inflect it (読み, 新しく) is a word up to four kana, katakana
# and Latin runs are words, what is left is by the character. Rough where kanji compounds or particles run on.
# What only changes the sign before it belongs to that sign: accents, sound marks, variants, the joints of emoji.
_HAN, _KANA, _KATA = (
    r"\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003134f々〆〇\ufe00-\ufe02\U000e0100-\U000e01ef",
    r"\u3041-\u309fー",
    r"\u30a0-\u30ff\uff66-\uff9f\u3099\u309a",
)
_ACCENT, _VARIANT = r"\u0300-\u036f", r"\ufe0f\u20e3\u0300-\u036f\u3099\u309a\U0001f3fb-\U0001f3ff"
SCRIPT = re.compile(
    rf" ?[{_HAN}]+[{_KANA}]{{0,4}}| ?[{_KATA}]+| ?[{_KANA}]{{1,3}}"
    rf"| ?(?:[^\W\d_{_HAN}{_KANA}{_KATA}][{_ACCENT}]*)+| ?\d+[\ufe0f\u20e3]*|\s+|[\U0001f1e6-\U0001f1ff]{{2}}"
    rf"|.[{_VARIANT}]*(?:\u200d.[{_VARIANT}]*)*",
    re.DOTALL,
)
BROKEN = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of such bytes


def by_script(text: str) -> list[str]:
    """Cut a text into words by its scripts; the words joined are the text."""
    return SCRIPT.findall(text)


@cache
def _tagger():
    try:
        import fugashi
    except ImportError:
        raise MissingExtra("fugashi", "ja") from None
    return fugashi.Tagger()  # pyright: ignore[reportAttributeAccessIssue] - compiled


def by_mecab(text: str) -> list[str]:
    """Cut a text into MeCab's morphemes; white space belongs to the one that follows it.

    Bytes that are no character by themselves (a piece may begin inside one) are read as 〓.
    """
    shown, found, at = BROKEN.sub("〓", text), [], 0
    for word in _tagger()(shown):
        end = shown.index(word.surface, at) + len(word.surface)
        found.append(text[at:end])
        at = end
    return [*found, text[at:]] if at < len(text) else found


def cutter(words: Words) -> Cut:
    """Return the function that cuts; MissingExtra where its library is absent."""
    if words == "mecab":
        _tagger()
        return by_mecab
    return by_script


def starts(ids: Sequence[int] | np.ndarray, tokenizer: Tokenizer, cut: Cut) -> np.ndarray:
    """Mark the tokens at which a word begins: ids (n,) -> (n,) bool.

    A token that reaches over a word's end ties the words together, and a character split over tokens stays whole.
    """
    pieces = [tokenizer.token_bytes(int(id)) for id in ids]
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    lengths = [len(word.encode("utf-8", "surrogateescape")) for word in cut(text)]
    edges = np.concatenate([[0], np.cumsum(lengths)])
    begins = np.cumsum([0, *map(len, pieces)])[:-1]
    return np.isin(begins, edges) & (np.array([len(p) for p in pieces]) > 0)
