"""What words there are and what follows from counting them; what subwords a word has."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from terakoya.errors import MissingExtra, TerakoyaError
from terakoya.vectors.cooccur import cooccurrences
from terakoya.vectors.subword import Subwords, fnv1a, read_parts, table
from terakoya.vectors.vocabulary import LONGEST, huffman, keep, noise, read
from terakoya.vectors.words import sentences


def test_sentences_of_each_sort() -> None:
    english = "It's HERE. We don't go…\nBye 3 times"
    assert list(sentences([english], "words")) == [["it's", "here"], ["we", "don't", "go"], ["bye", "3", "times"]]
    assert list(sentences(["ｶﾅ 👩‍👩‍👧 字。次"], "chars")) == [[*"ｶﾅ👩‍👩‍👧字。"], ["次"]]
    assert list(sentences(["a  b.\n\nc。d"], "spaces")) == [["a", "b."], ["c。d"]]


def test_japanese_is_not_cut_at_spaces() -> None:
    with pytest.raises(TerakoyaError, match="--split ja or chars"):
        list(sentences(["吾輩は猫である。名前はまだ無い。"], "words"))


def test_japanese_words() -> None:
    try:
        found = list(sentences(["吾輩は猫である。名前はまだ無い。"], "ja"))
    except MissingExtra:
        pytest.skip("fugashi and unidic-lite are not installed (extra ja)")
    assert found == [["吾輩", "は", "猫", "で", "ある"], ["名前", "は", "まだ", "無い"]]


def test_reading_counts_and_leaves_out_what_is_rare() -> None:
    said = [["b", "a", "x", "a"], ["y"], ["a", "b"], ["c"] * 2]
    vocabulary, text = read(said, 2)
    assert vocabulary.words == ("a", "b", "c")  # ties by spelling
    assert vocabulary.counts.tolist() == [3, 2, 2]
    cut = [text.ids[a:b].tolist() for a, b in pairwise(text.ends)]
    assert cut == [[1, 0, 0], [0, 1], [2, 2]]
    with pytest.raises(TerakoyaError, match="fewer than two words"):
        read(said, 9)
    with pytest.raises(TerakoyaError, match="has no words"):
        read([], 1)
    long, longs = read([["a", "b"] * LONGEST], 1)
    assert len(longs.ends) == 3
    assert long.counts.sum() == 2 * LONGEST


def test_frequent_words_are_thinned_out_as_in_word2vec() -> None:
    counts = np.array([9000, 900, 100])
    chance = keep(counts, 1e-3) / 0xFFFFFFFF
    for have, share in zip(chance, counts / counts.sum(), strict=True):
        assert have == pytest.approx(min(1, math.sqrt(1e-3 / share) + 1e-3 / share), abs=1e-6)
    assert (keep(counts, 0) == 0xFFFFFFFF).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_alias_table_is_the_noise_distribution(seed: int) -> None:
    counts = np.random.default_rng(seed).integers(1, 10_000, 50)
    chance, other = noise(counts)
    share = (chance / 0xFFFFFFFF) / 50
    np.add.at(share, other, (1 - chance / 0xFFFFFFFF) / 50)
    np.testing.assert_allclose(share, counts**0.75 / (counts**0.75).sum(), atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_huffman_codes_are_prefix_free_and_shortest(seed: int) -> None:
    counts = np.sort(np.random.default_rng(seed).integers(1, 1000, 60))[::-1]
    path, code, branch = huffman(counts)
    codes = ["".join(map(str, code[a:b])) for a, b in pairwise(branch)]
    assert sum(2.0 ** -len(c) for c in codes) == 1  # every way leads somewhere
    assert not any(a != b and b.startswith(a) for a in codes for b in codes)
    lengths = sum(len(c) * n for c, n in zip(codes, counts.tolist(), strict=True))
    merges, left = 0, sorted(counts.tolist())
    while len(left) > 1:  # the sum of all merges is the least total length there is
        merges += left[0] + left[1]
        left = sorted([left[0] + left[1], *left[2:]])
    assert lengths == merges
    assert {int(path[a]) for a in branch[:-1]} == {len(counts) - 2}  # all begin at the root
    assert path.max() < len(counts) - 1


def test_ngrams_are_fasttexts() -> None:
    assert Subwords(3, 4, 10).grams("abc") == ["<ab", "<abc", "abc", "abc>", "bc>"]
    assert Subwords(1, 2, 10).grams("語学") == ["<語", "語", "語学", "学", "学>"]
    assert fnv1a("a") == 0xE40C292C  # FNV's own test vectors hold where bytes are below 128
    assert fnv1a("foobar") == 0xBF9CF968
    h = 2166136261
    for byte in "猫".encode():
        h = ((h ^ ((byte - 256) % 2**32)) * 16777619) % 2**32
    assert fnv1a("猫") == h


def test_hashes_are_gensims() -> None:
    inner = pytest.importorskip("gensim.models.fasttext_inner")
    for word in ("寺子屋", "naïve", "🧑‍🏫", "school"):
        ours = sorted(fnv1a(g) % 1000 for g in Subwords(2, 5, 1000).grams(word))
        theirs = inner.compute_ngrams_bytes(word, 2, 5)
        assert ours == sorted(inner.ft_hash_bytes(g) % 1000 for g in theirs)


def test_characters_have_parts(tmp_path: Path) -> None:
    file = tmp_path / "parts.txt"
    file.write_text("# a comment\n語 : 言 五 口\n話 : 言 舌\n", encoding="utf-8")
    parts = read_parts(file)
    assert parts == {"語": "言五口", "話": "言舌"}
    some = Subwords(2, 3, 100_000)
    assert len(set(some.rows("語", parts)) & set(some.rows("話", parts))) == 1  # the radical they share
    assert not set(some.rows("語", {})) & set(some.rows("話", {}))
    file.write_text("語言\n", encoding="utf-8")
    with pytest.raises(TerakoyaError, match=r"parts\.txt:1"):
        read_parts(file)
    rows, first = table(["語", "話"], some, parts)
    assert rows[first[1]] == 1
    assert rows[1:].min() >= 1


def test_cooccurrences_are_counted_one_by_one() -> None:
    rng = random.Random(0)
    said = [[rng.choice("abcdef") for _ in range(rng.randint(1, 15))] for _ in range(30)]
    vocabulary, text = read(said, 1)
    i, j, x = cooccurrences(text, len(vocabulary.words), 4)
    wanted: Counter[tuple[str, str]] = Counter()
    for sentence in said:
        for a, word in enumerate(sentence):
            for b in range(max(0, a - 4), min(len(sentence), a + 5)):
                if a != b:
                    wanted[word, sentence[b]] += 1 / abs(a - b)  # pyright: ignore[reportArgumentType]
    found = {(vocabulary.words[a], vocabulary.words[b]): n for a, b, n in zip(i.tolist(), j.tolist(), x.tolist())}
    assert found == pytest.approx(dict(wanted), rel=1e-6)
