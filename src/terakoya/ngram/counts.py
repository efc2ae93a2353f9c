"""Count n-grams of token streams into a trie of sorted arrays.

Level k holds every k-gram once, sorted by (the node of its first k - 1 tokens, its last token), so the continuations of
a context are neighbours. A node is a place in its level; the nodes of level 1 are the tokens themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terakoya.errors import TerakoyaError

MOST = 16  # tokens of an n-gram


@dataclass(frozen=True)
class Level:
    """The k-grams of one k. `first` (nodes above + 1,) says where each parent's children begin; level 1 has no parent.

    tokens (n,) last tokens; counts (n,) what smoothing counts: occurrences at the top, distinct left neighbours below;
    suffix (n,) the node, one level up the list, of the k-gram without its first token.
    """

    first: np.ndarray
    tokens: np.ndarray
    counts: np.ndarray
    suffix: np.ndarray

    @property
    def parents(self) -> np.ndarray:
        """Return the parent of each node: -> (n,) int64."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))


def count(text: np.ndarray, starts: np.ndarray, vocab: int, order: int) -> list[Level]:
    """Count all 1-grams to `order`-grams that lie within one document.

    text (T,) token ids, starts (documents + 1,) where documents begin, and T. Below the top a k-gram counts the
    distinct tokens to its left, plus its occurrences at a document's start, which has nothing to its left
    (Kneser and Ney 1995; Chen and Goodman 1998 count sentence starts so). Needs about 60 bytes per token.
    """
    if not 1 <= order <= MOST:
        raise TerakoyaError("ngram.order", given=order, allowed=f"1 to {MOST}")
    text = text.astype(np.int64)
    ends = np.repeat(starts[1:], np.diff(starts))
    room = ends - np.arange(len(text))  # tokens left in the document
    begins = starts[:-1][np.diff(starts) > 0]
    none = np.zeros(0, np.int64)
    nodes = text  # of the k-gram that begins at each place; meaningless where the document is too short
    levels = [Level(none, np.arange(vocab), np.bincount(text, minlength=vocab), none)]
    for k in range(2, order + 1):
        at = np.flatnonzero(room >= k)
        keys, once, inverse, times = np.unique(
            nodes[at] * vocab + text[at + k - 1], return_index=True, return_inverse=True, return_counts=True
        )
        suffix = nodes[at[once] + 1]
        above = levels[-1]
        left = np.bincount(suffix, minlength=len(above.tokens))
        left += np.bincount(nodes[begins[room[begins] >= k - 1]], minlength=len(above.tokens))
        levels[-1] = Level(above.first, above.tokens, left, above.suffix)
        first = np.searchsorted(keys, np.arange(len(above.tokens) + 1) * vocab)
        levels.append(Level(first, keys % vocab, times, suffix))
        nodes = np.zeros(len(text), np.int64)
        nodes[at] = inverse
    return levels
