"""The control tokens that objectives need, by what they are for, in whichever spelling a vocabulary has them."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Tokenizer

MASK, CLS, SEP = "[MASK]", "[CLS]", "[SEP]"
FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
MODES = ("[NLU]", "[NLG]", "[S2S]")  # UL2's paradigms: regular, extreme, sequential
SPELLINGS = {  # BERT's name: what RoBERTa, ModernBERT, StarCoder, CodeLlama and others call it
    MASK: (MASK, "<mask>", "<|mask|>"),
    CLS: (CLS, "<s>", "<cls>"),
    SEP: (SEP, "</s>", "<sep>"),
    FIM[0]: (FIM[0], "<fim_prefix>", "<fim-prefix>", "▁<PRE>"),
    FIM[1]: (FIM[1], "<fim_middle>", "<fim-middle>", "▁<MID>"),
    FIM[2]: (FIM[2], "<fim_suffix>", "<fim-suffix>", "▁<SUF>"),
}


def sentinels(count: int) -> tuple[str, ...]:
    """Name the sentinels of span corruption, as T5 does."""
    return tuple(f"<extra_id_{i}>" for i in range(count))


class Signs:
    """A vocabulary as objectives see it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.special = np.zeros(tokenizer.vocab_size, bool)
        self.special[list(tokenizer.specials.values())] = True

    def id(self, name: str) -> int:
        """Return the id of a control token; an error where the vocabulary has none."""
        for spelling in SPELLINGS.get(name, (name,)):
            if (found := self.tokenizer.specials.get(spelling)) is not None:
                return found
        have = ", ".join(list(self.tokenizer.specials)[:8])
        raise TerakoyaError("tokenizer", f"has no {name}, which this objective needs", given=have or "no control token")

    @cached_property
    def ordinary(self) -> np.ndarray:
        """The ids of everything that stands for text."""
        return np.flatnonzero(~self.special)

    @cached_property
    def mask(self) -> int:
        return self.id(MASK)

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """What stands before and after each piece that an encoder reads: [CLS] and [SEP], or the document's ends."""
        specials = self.tokenizer.specials
        pair = [next((specials[s] for s in SPELLINGS[name] if s in specials), None) for name in (CLS, SEP)]
        if pair[0] is not None and pair[1] is not None:
            return [pair[0]], [pair[1]]
        return self.tokenizer.wrap()

    @cached_property
    def start(self) -> int:
        """The token that a decoder starts from: the pad (T5), else what begins or ends documents."""
        if self.tokenizer.pad is not None:
            return self.tokenizer.pad
        before, after = self.frame
        if not before and not after:
            raise TerakoyaError("tokenizer", "has no token for a decoder to start from", allowed="a pad, bos or eos")
        return (before or after)[0]

    @cached_property
    def end(self) -> int:
        """The token that ends a target."""
        before, after = self.frame
        if not before and not after:
            raise TerakoyaError("tokenizer", "has no token to end a text with", allowed="an eos or bos")
        return (after or before)[0]

    @cached_property
    def source(self) -> tuple[list[int], list[int]]:
        """What stands round what an encoder–decoder reads: what its file says (BART: <s>, </s>), or an end."""
        return self.tokenizer.around if any(self.tokenizer.around) else ([], [self.end])

    def body(self, ids: np.ndarray) -> np.ndarray:
        """Return a piece without its control tokens."""
        return ids[~self.special[ids]]

    def framed(self, body: np.ndarray) -> np.ndarray:
        """Return a body between the tokens that an encoder expects round it."""
        before, after = self.frame
        return np.concatenate([np.array(before, np.int64), body, np.array(after, np.int64)])
