"""Word vectors to look up: neighbours, analogies, and a folder or a word2vec file to keep them in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from terakoya.errors import TerakoyaError, nearest
from terakoya.vectors.subword import Subwords
from terakoya.zoo.convert import read_json
from terakoya.zoo.files import replacing
from terakoya.zoo.weights import open_weights, save_weights

CONFIG, WORDS = "vectors.json", "words.tsv"
LONGEST_WORD = 1000  # bytes, in a binary file


@dataclass(frozen=True)
class Found:
    """A word and its cosine."""

    word: str
    cosine: float


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors by word: table (V, D) float32. With subwords, words that were never seen have vectors too."""

    words: Sequence[str]
    table: np.ndarray
    counts: np.ndarray | None = None
    subwords: Subwords | None = None
    buckets: np.ndarray | None = None  # (buckets, D)
    parts: Mapping[str, str] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)  # the settings it was trained with

    def __post_init__(self) -> None:
        index = {word: i for i, word in enumerate(self.words)}
        length = np.linalg.norm(self.table, axis=1, keepdims=True)
        object.__setattr__(self, "_index", index)
        object.__setattr__(self, "_unit", self.table / np.maximum(length, 1e-12))

    @property
    def index(self) -> dict[str, int]:
        return self.__dict__["_index"]

    def vector(self, word: str) -> np.ndarray:
        """Return a word's vector (D,); an unknown word's from its parts, an error where there are none."""
        if not word:
            raise TerakoyaError("word", "is empty, and not in the vocabulary")
        if word in self.index:
            return self.table[self.index[word]]
        rows = self.subwords.rows(word, self.parts) if self.subwords else []
        if self.buckets is None or not rows:
            raise TerakoyaError("word", "is not in the vocabulary", given=word, hint=nearest(word, self.words))
        return self.buckets[rows].mean(0)

    def cosine(self, a: str, b: str) -> float:
        """Return how alike two words are, from -1 to 1."""
        x, y = self.vector(a), self.vector(b)
        return float(x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-12))

    def neighbours(self, word: str, count: int = 10) -> list[Found]:
        """Return the words nearest in direction, without the word itself."""
        return self._nearest(self.vector(word), {word}, count)

    def analogy(self, a: str, b: str, c: str, count: int = 10) -> list[Found]:
        """Return what is to c as b is to a: nearest to b - a + c of unit vectors (3CosAdd, Mikolov 2013)."""
        unit = [v / max(float(np.linalg.norm(v)), 1e-12) for v in (self.vector(word) for word in (a, b, c))]
        return self._nearest(unit[1] - unit[0] + unit[2], {a, b, c}, count)

    def _nearest(self, to: np.ndarray, without: set[str], count: int) -> list[Found]:
        if count < 1:
            raise TerakoyaError("--count", given=count, allowed="1 or more")
        scores = self.__dict__["_unit"] @ (to / max(float(np.linalg.norm(to)), 1e-12))
        most = min(count + len(without), len(scores))
        order = np.argpartition(-scores, most - 1)[:most]
        best = [int(i) for i in order[np.argsort(-scores[order], kind="stable")]]
        return [Found(self.words[i], float(scores[i])) for i in best if self.words[i] not in without][:count]

    def save(self, folder: Path) -> None:
        """Write a folder: settings, words with their counts, tables as safetensors."""
        tensors = {"vectors": torch.from_numpy(self.table)}
        if self.buckets is not None:
            tensors["buckets"] = torch.from_numpy(self.buckets)
        save_weights(folder, tensors)
        counts = self.counts if self.counts is not None else np.zeros(len(self.words), np.int64)
        with replacing(folder / WORDS) as file:
            file.writelines(f"{word}\t{count}\n".encode() for word, count in zip(self.words, counts.tolist()))
        said = {"made": dict(self.made), "parts": dict(self.parts)}
        if self.subwords:
            said["subwords"] = asdict(self.subwords)
        with replacing(folder / CONFIG) as file:
            file.write((json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode())

    def export(self, file: Path, *, binary: bool) -> None:
        """Write word2vec's text or binary format, which gensim, fastText and others read."""
        with replacing(file) as out:
            out.write(b"%d %d\n" % self.table.shape)
            for word, row in zip(self.words, self.table):
                name = word.replace(" ", "_").encode()  # a space would end the word
                if binary:
                    out.write(name + b" " + row.astype("<f4").tobytes() + b"\n")
                else:
                    out.write(name + b" " + " ".join(f"{x:.7g}" for x in row.tolist()).encode() + b"\n")


def open_vectors(path: Path) -> Vectors:
    """Open a folder of ours, or a word2vec file: .bin is binary, anything else text."""
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise TerakoyaError(str(path), "no such folder or file of word vectors")
    try:
        return _binary(path) if path.suffix == ".bin" else _text(path)
    except (ValueError, UnicodeDecodeError, EOFError) as error:
        raise TerakoyaError(str(path), f"is no word2vec file: {error}") from None


def _folder(path: Path) -> Vectors:
    said, weights = read_json(path / CONFIG), open_weights(path)
    try:
        lines = (path / WORDS).read_text(encoding="utf-8").split("\n")[:-1]
        words, counts = zip(*(line.rsplit("\t", 1) for line in lines), strict=True)
        subwords = Subwords(**said["subwords"]) if "subwords" in said else None
        buckets = weights.get("buckets").numpy() if "buckets" in weights else None
        table, number = weights.get("vectors").numpy(), np.array([int(c) for c in counts])
    except (OSError, ValueError, TypeError, UnicodeDecodeError) as error:
        raise TerakoyaError(str(path), f"is damaged: {error}") from None
    fits = table.ndim == 2 and len(table) == len(words) and (buckets is None) == (subwords is None)
    if not fits or (subwords and buckets is not None and buckets.shape != (subwords.buckets, table.shape[1])):
        raise TerakoyaError(str(path), "words, settings and tables do not fit together")
    return Vectors(words, table, number, subwords, buckets, said.get("parts", {}), said.get("made", {}))


def _size(head: bytes, file: int) -> tuple[int, int]:
    numbers = head.split()
    if len(numbers) != 2 or not all(n.isdigit() for n in numbers):
        raise ValueError("it does not begin with the number of words and the width")
    count, width = int(numbers[0]), int(numbers[1])
    if not 0 < count * width <= file:  # every number takes a byte or more
        raise ValueError(f"it promises {count} vectors of {width} numbers and has {file} bytes")
    return count, width


def _text(path: Path) -> Vectors:
    with path.open("rb") as file:
        count, width = _size(file.readline(200), path.stat().st_size)
        table, words = np.empty((count, width), np.float32), list[str]()
        for i in range(count):
            name, *numbers = file.readline().rstrip().split(b" ")
            if len(numbers) != width:
                raise ValueError(f"line {i + 2} has {len(numbers)} numbers, not {width}")
            words.append(name.decode())
            table[i] = [float(n) for n in numbers]
    return Vectors(words, table)


def _binary(path: Path) -> Vectors:
    with path.open("rb") as file:
        count, width = _size(file.readline(200), path.stat().st_size)
        table, words = np.empty((count, width), np.float32), list[str]()
        for i in range(count):
            words.append(b"".join(_until_space(file)).lstrip(b"\n").decode())
            row = file.read(4 * width)
            if len(row) < 4 * width:
                raise EOFError(f"it ends in vector {i + 1} of {count}")
            table[i] = np.frombuffer(row, "<f4")
    return Vectors(words, table)


def _until_space(file: Any) -> Iterator[bytes]:
    for _ in range(LONGEST_WORD):
        sign = file.read(1)
        if sign in (b" ", b""):
            return
        yield sign
    raise ValueError(f"a word is longer than {LONGEST_WORD} bytes")
