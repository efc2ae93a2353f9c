"""Ids in, text out, as it comes: only whole characters leave, nothing is lost."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class Stream:
    """Decode ids one by one; the joined results equal `Tokenizer.decode` of all of them.

    U+FFFD comes only for bytes that are no UTF-8 whatever may follow, or from `finish`.
    """

    def __init__(self, spell: Callable[[int], bytes], *, strip: bool = False) -> None:
        self._spell = spell
        self._strip = strip  # the first bytes lose one leading space (SentencePiece puts it there)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Take one id; return the characters that it completes, perhaps none."""
        new = self._spell(id)
        if self._strip and new:
            new, self._strip = new.removeprefix(b" "), False
        return self._decoder.decode(new)

    def finish(self) -> str:
        """Return what is left: nothing, or U+FFFD for an unfinished character. The stream is then as new, mid-text."""
        rest = self._decoder.decode(b"", True)
        self._decoder.reset()
        return rest
