"""Hold documents out for evaluation; which ones is a function of what they say, not of where they stand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from terakoya.corpus.document import Document
from terakoya.errors import TerakoyaError


def held_out(document: Document, holdout: float, seed: int) -> bool:
    """Whether `document` is in the held-out share (0 < holdout < 1).

    A pure function of the seed and the document's group (or else its text), so that parts of one file stay together,
    copies of one text stay together, and adding documents moves none of the others.
    """
    key = f"group:{document.group}" if document.group else f"text:{document.text}"
    digest = hashlib.blake2b(key.encode("utf-8"), digest_size=8, key=str(seed).encode("ascii")).digest()
    return int.from_bytes(digest, "little") < holdout * 2**64


def split(
    documents: Callable[[], Iterable[Document]], holdout: float, seed: int
) -> tuple[Iterator[Document], Iterator[Document]]:
    """Return (train, held-out) iterators; each reads `documents()` anew, so nothing is kept in memory.

    A side on which no document falls is an error when its iterator ends: use `cut` for a corpus of few documents.
    """
    _checked(holdout)
    return _side(documents, holdout, seed, False), _side(documents, holdout, seed, True)


def cut(documents: Iterable[Document], holdout: float, *, tail: bool) -> Iterator[Document]:
    """Yield the head of every document, or with `tail` its last `holdout` share, cut at a line (or else a letter).

    For corpora of few long documents, such as one book, where whole documents cannot be held out.
    """
    _checked(holdout)
    for document in documents:
        at = _seam(document.text, holdout)
        text = document.text[at:] if tail else document.text[:at]
        if text.strip():
            yield replace(document, text=text, source=f"{document.source}@{at if tail else 0}")


def _checked(holdout: float) -> None:
    if not 0 < holdout < 1:
        raise TerakoyaError("holdout", given=holdout, allowed="a share between 0 and 1, both excluded")


def _side(documents: Callable[[], Iterable[Document]], holdout: float, seed: int, out: bool) -> Iterator[Document]:
    total = count = 0
    for document in documents():
        total += 1
        if held_out(document, holdout, seed) == out:
            count += 1
            yield document
    if not count:
        side = "held out" if out else "left to train on"
        hint = "choose another holdout share, or cut the tails of documents instead"
        raise TerakoyaError("holdout", f"none of {total} documents is {side} at a share of {holdout}", hint=hint)


def _seam(text: str, holdout: float) -> int:
    """The place to cut: the last line end at or before the share, unless that moves it by more than half the share."""
    at = len(text) - round(len(text) * holdout)
    line = text.rfind("\n", 0, at) + 1
    return line if line and at - line <= (len(text) - at) // 2 else at
