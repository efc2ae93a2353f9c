"""How often words meet: the sparse matrix that GloVe factors."""

from __future__ import annotations

import numpy as np

from terakoya.errors import TerakoyaError
from terakoya.vectors.vocabulary import Text


def cooccurrences(text: Text, words: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count pairs of words at most `window` apart in a sentence, a pair at distance d as 1 / d, both ways round.

    -> (i, j, x), i and j (P,) int32, x (P,) float32, sorted by i, then j; `words` is the size of the vocabulary.
    """
    sentence = np.repeat(np.arange(len(text.ends) - 1), np.diff(text.ends))
    ids = text.ids.astype(np.int64)
    keys, sums = np.zeros(0, np.int64), np.zeros(0)
    for d in range(1, window + 1):
        near = sentence[:-d] == sentence[d:]
        a, b = ids[:-d][near], ids[d:][near]
        found, times = np.unique(np.concatenate([a * words + b, b * words + a]), return_counts=True)
        together, place = np.unique(np.concatenate([keys, found]), return_inverse=True)
        sums = np.bincount(place, np.concatenate([sums, times / d]), len(together))
        keys = together
    if not len(keys):
        raise TerakoyaError("corpus", "has no two words that meet")
    i, j = np.divmod(keys, words)
    return i.astype(np.int32), j.astype(np.int32), sums.astype(np.float32)
