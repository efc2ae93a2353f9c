"""Learn word vectors from sentences, by C or by the plain definition."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from terakoya.errors import TerakoyaError
from terakoya.ops import words as native
from terakoya.ops.compile import NoCompiler
from terakoya.vectors import plain
from terakoya.vectors.cooccur import cooccurrences
from terakoya.vectors.subword import Subwords, table
from terakoya.vectors.table import Vectors
from terakoya.vectors.vocabulary import Text, Vocabulary, huffman, keep, noise

Method = Literal["skipgram", "cbow", "glove"]
Engine = Literal["auto", "native", "plain"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How to learn. What is None is the method's usual value: see `usual`."""

    method: Method = "skipgram"
    dim: int = 100
    window: int | None = None
    negative: int = 5  # noise words per pair; 0: hierarchical softmax
    epochs: int | None = None
    sample: float = 1e-3  # frequent words above this share are thinned out; 0: none
    rate: float | None = None
    seed: int = 0
    threads: int = 1  # more are faster and no longer give the same bits

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise TerakoyaError("--method", given=self.method, allowed=get_args(Method))
        for name, least, most in (("dim", 1, 8192), ("window", 1, 1000), ("epochs", 1, 10**6), ("threads", 1, 64)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise TerakoyaError(f"--{name}", given=value, allowed=f"{least} to {most}")
        if not 0 <= self.negative <= 1000:
            raise TerakoyaError("--negative", given=self.negative, allowed="0 (hierarchical softmax) to 1000")
        if not 0 <= self.sample <= 1:
            raise TerakoyaError("--sample", given=self.sample, allowed="a share from 0 to 1")
        if self.seed < 0:
            raise TerakoyaError("--seed", given=self.seed, allowed="0 or more")
        if self.rate is not None and not 0 < self.rate < 10:
            raise TerakoyaError("--rate", given=self.rate, allowed="above 0, below 10")

    def usual(self) -> tuple[int, int, float]:
        """Return (window, epochs, rate): those of word2vec.c, and of GloVe's demo."""
        window, epochs, rate = {"skipgram": (5, 5, 0.025), "cbow": (5, 5, 0.05), "glove": (10, 25, 0.05)}[self.method]
        return self.window or window, self.epochs or epochs, self.rate or rate


@dataclass(frozen=True)
class Epoch:
    """What a watcher is told after each pass over the text."""

    number: int
    epochs: int
    words_per_second: float


Watch = Callable[[Epoch], None]
LAST_RATE = 1e-4  # share of the first rate that is left at the end


def check(settings: Settings, subwords: Subwords | None) -> None:
    """Raise where settings do not go together."""
    if settings.method == "glove" and subwords:
        raise TerakoyaError("--subwords", "go with skipgram and cbow, not with glove")


def learn(
    settings: Settings,
    vocabulary: Vocabulary,
    text: Text,
    subwords: Subwords | None = None,
    parts: Mapping[str, str] | None = None,
    watch: Watch | None = None,
    engine: Engine = "auto",
) -> Vectors:
    """Learn vectors of a vocabulary from its text. Raises TerakoyaError for settings that do not go together."""
    check(settings, subwords)
    if parts and not subwords:
        raise TerakoyaError("--parts", "are subwords: they need --subwords")
    fast = _fast(engine)
    made = {**asdict(settings), **dict(zip(("window", "epochs", "rate"), settings.usual(), strict=True))}
    if settings.method == "glove":
        return Vectors(vocabulary.words, _glove(settings, text, len(vocabulary.words), watch, fast),
                       vocabulary.counts, made=made)  # fmt: skip
    rows, first = table(vocabulary.words, subwords, parts or {})
    inputs = _predicted(settings, vocabulary, text, (rows, first), subwords, watch, fast)
    if subwords is None:
        return Vectors(vocabulary.words, inputs, vocabulary.counts, made=made)
    whole = np.stack([inputs[rows[a:b]].mean(0) for a, b in pairwise(first)])
    buckets = inputs[len(vocabulary.words) :]
    return Vectors(vocabulary.words, whole, vocabulary.counts, subwords, buckets, dict(parts or {}), made)


def _fast(engine: Engine) -> bool:
    if engine == "plain":
        return False
    try:
        native.ready()
    except NoCompiler as error:
        if engine == "native":
            raise
        log.warning("word vectors are learnt by the slow definition: %s", error)
        return False
    return True


def _predicted(
    settings: Settings,
    vocabulary: Vocabulary,
    text: Text,
    bags: tuple[np.ndarray, np.ndarray],
    subwords: Subwords | None,
    watch: Watch | None,
    fast: bool,
) -> np.ndarray:
    """Run skip-gram or CBOW -> (rows, D)."""
    window, epochs, rate = settings.usual()
    size, dim = len(vocabulary.words), settings.dim
    wide = -(-dim // native.LANES) * native.LANES
    inputs = np.zeros((size + (subwords.buckets if subwords else 0), wide), np.float32)
    inputs[:, :dim] = (np.random.default_rng(settings.seed).random((len(inputs), dim), np.float32) - 0.5) / dim
    path, code, branch = huffman(vocabulary.counts) if not settings.negative else _no_tree(size)
    chance, other = noise(vocabulary.counts)
    arrays = {
        "ids": text.ids, "ends": text.ends, "rows": bags[0], "first": bags[1].astype(np.int64),
        "keep": keep(vocabulary.counts, settings.sample), "chance": chance, "other": other, "path": path, "code": code,
        "branch": branch.astype(np.int64), "inputs": inputs, "outputs": np.zeros((size, wide), np.float32),
    }  # fmt: skip
    for number in range(epochs):
        began = time.perf_counter()
        how = {
            "window": window, "negative": settings.negative, "cbow": settings.method == "cbow",
            "rate": (rate, rate * LAST_RATE), "done": number * len(text.ids), "total": epochs * len(text.ids),
            "seed": settings.seed * 1_000_003 + number * 64, "threads": settings.threads,
        }  # fmt: skip
        if fast:
            native.epoch(arrays, **how)
        else:
            plain.epoch(plain.Plan(**arrays, **how))
        if watch:
            watch(Epoch(number + 1, epochs, len(text.ids) / (time.perf_counter() - began)))
    return np.ascontiguousarray(inputs[:, :dim])


def _no_tree(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.zeros(0, np.int32), np.zeros(0, np.uint8), np.zeros(size + 1, np.int64)


def _glove(settings: Settings, text: Text, size: int, watch: Watch | None, fast: bool) -> np.ndarray:
    """Run GloVe -> (V, D): vector plus context vector, as the paper adds them."""
    window, epochs, rate = settings.usual()
    pairs = cooccurrences(text, size, window)
    rng, dim = np.random.default_rng(settings.seed), settings.dim
    w, c = (((rng.random((size, dim + 1), np.float32) - 0.5) / dim).astype(np.float32) for _ in range(2))
    gw, gc = np.ones_like(w), np.ones_like(c)
    for number in range(epochs):
        began = time.perf_counter()
        order = rng.permutation(len(pairs[0]))
        if fast:
            native.glove((w, c, gw, gc), pairs, order, rate=rate, most=MOST, power=0.75)
        else:
            plain.glove_epoch(plain.Glove(w, c, gw, gc, *pairs, order, rate, MOST, 0.75))
        if watch:
            watch(Epoch(number + 1, epochs, len(text.ids) / (time.perf_counter() - began)))
    return np.ascontiguousarray((w + c)[:, :dim])


MOST = 10.0  # meetings that count fully; the paper's 100 is for corpora of billions of words, GloVe's demo says 10
