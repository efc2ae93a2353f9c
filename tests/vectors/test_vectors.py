"""C equals its definition, structure that was planted is found, and what is written is read again."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from terakoya.errors import TerakoyaError
from terakoya.vectors.subword import Subwords
from terakoya.vectors.table import Vectors, open_vectors
from terakoya.vectors.train import Engine, Settings, learn
from terakoya.vectors.vocabulary import Text, Vocabulary, read
from tests.cli.conftest import Terakoya, quick, terakoya  # noqa: F401 - fixtures

SUBWORDS = Subwords(1, 3, 50)


def noisy(seed: int = 0, sentences: int = 25) -> tuple[Vocabulary, Text]:
    rng = random.Random(seed)
    words = ["猫", "犬小屋", "school", "読む", "a", "👩‍🏫"]
    return read([[rng.choice(words) for _ in range(rng.randint(1, 12))] for _ in range(sentences)], 1)


def learnt(settings: Settings, subwords: Subwords | None, engine: Engine) -> Vectors:
    return learn(settings, *noisy(), subwords, {"猫": "犭苗"} if subwords else {}, engine=engine)


@pytest.mark.parametrize(
    ("method", "negative", "subwords"), list(product(["skipgram", "cbow"], [0, 3], [None, SUBWORDS]))
)
def test_c_does_what_the_definition_says(method: str, negative: int, subwords: Subwords | None) -> None:
    settings = Settings(method, dim=20, window=3, negative=negative, epochs=3, sample=0.05, rate=0.3, seed=1)  # type: ignore[arg-type]
    fast, slow = (learnt(settings, subwords, engine) for engine in ("native", "plain"))
    np.testing.assert_allclose(fast.table, slow.table, rtol=2e-4, atol=2e-6)
    assert np.abs(fast.table).max() > 0.1  # it has moved: the start is within 0.025
    if subwords:
        assert fast.buckets is not None and slow.buckets is not None
        np.testing.assert_allclose(fast.buckets, slow.buckets, rtol=2e-4, atol=2e-6)


def test_glove_in_c_does_what_the_definition_says() -> None:
    settings = Settings("glove", dim=7, window=4, epochs=4, seed=2)
    fast, slow = (learnt(settings, None, engine) for engine in ("native", "plain"))
    np.testing.assert_allclose(fast.table, slow.table, rtol=2e-4, atol=2e-6)


def test_glove_reaches_the_logarithms() -> None:
    from terakoya.vectors.cooccur import cooccurrences
    from terakoya.vectors.plain import Glove, glove_epoch

    vocabulary, text = noisy(3, 60)
    i, j, x = cooccurrences(text, len(vocabulary.words), 3)
    rng = np.random.default_rng(0)
    w, c = (((rng.random((6, 9)) - 0.5) / 8).astype(np.float32) for _ in range(2))
    gw, gc = np.ones_like(w), np.ones_like(c)
    for _ in range(300):
        glove_epoch(Glove(w, c, gw, gc, i, j, x, np.arange(len(i)), 0.1, 1.0, 0.75))
    fit = (w[i, :-1] * c[j, :-1]).sum(1) + w[i, -1] + c[j, -1]
    np.testing.assert_allclose(fit, np.log(x), atol=0.02)


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    a, b = (learnt(Settings(dim=8, epochs=2, seed=4), None, "native").table for _ in range(2))
    assert (a == b).all()
    assert not np.allclose(a, learnt(Settings(dim=8, epochs=2, seed=5), None, "native").table)


def planted(sentences: int = 6000) -> tuple[Vocabulary, Text]:
    """Two topics, and four words that differ in two ways: sex and rank."""
    rng = random.Random(7)
    topics = [[f"{t}{i}" for i in range(12)] for t in ("sea", "hill")]
    people = {"king": "mr", "queen": "fr", "man": "mc", "woman": "fc"}
    signs = {s: [f"{s}{i}" for i in range(6)] for s in "mfrc"}
    said = list[list[str]]()
    for _ in range(sentences):
        said.append([rng.choice(rng.choice([topics[0]])) for _ in range(7)])
        said.append([rng.choice(topics[1]) for _ in range(7)])
        who = rng.choice(list(people))
        about = [rng.choice(signs[s]) for s in people[who] * 2]
        rng.shuffle(about)
        said.append([*about[:2], who, *about[2:]])
    return read(said, 1)


@pytest.mark.parametrize(
    ("settings", "subwords"),
    [
        (Settings("skipgram", dim=24, sample=0, epochs=3), None),
        (Settings("skipgram", dim=24, sample=0, epochs=3, negative=0), None),
        (Settings("cbow", dim=24, sample=0, epochs=5), None),
        (Settings("skipgram", dim=24, sample=0, epochs=3), Subwords(3, 4, 2000)),
        (Settings("glove", dim=24, epochs=15), None),
    ],
    ids=["skipgram", "hierarchical", "cbow", "subwords", "glove"],
)
def test_what_was_planted_is_found(settings: Settings, subwords: Subwords | None) -> None:
    found = learn(settings, *planted(), subwords)
    for word in ("sea3", "hill5"):
        near = found.neighbours(word, 8)
        assert all(n.word.startswith(word[:3]) for n in near), near
        assert near[0].cosine > found.cosine("sea3", "hill5") + 0.2
    assert "queen" in [f.word for f in found.analogy("man", "king", "woman", 2)]


def test_subwords_know_words_that_were_never_seen() -> None:
    found = learn(Settings(dim=24, sample=0, epochs=3), *planted(), Subwords(3, 4, 2000))
    assert found.cosine("sea77", "sea3") > 0.5 > found.cosine("sea77", "hill3")
    with pytest.raises(TerakoyaError, match="not in the vocabulary"):
        found.vector("")  # too short to have a part
    with pytest.raises(TerakoyaError, match="did you mean 'king'"):
        learn(Settings(dim=4, epochs=1), *planted(10)).vector("kimg")


def test_threads_learn_too() -> None:
    found = learn(Settings(dim=24, sample=0, epochs=3, threads=2), *planted())
    assert all(n.word.startswith("sea") for n in found.neighbours("sea3", 8))


def test_folders_and_files_give_back_what_they_got(tmp_path: Path) -> None:
    found = learnt(Settings(dim=9, epochs=1), SUBWORDS, "native")
    found.save(tmp_path / "v")
    again = open_vectors(tmp_path / "v")
    assert again.words == found.words
    assert (again.table == found.table).all()
    assert (again.vector("未知") == found.vector("未知")).all()
    assert again.parts == {"猫": "犭苗"}
    for binary, name in ((True, "v.bin"), (False, "v.txt")):
        found.export(tmp_path / name, binary=binary)
        back = open_vectors(tmp_path / name)
        assert tuple(back.words) == tuple(found.words)
        np.testing.assert_allclose(back.table, found.table, rtol=0 if binary else 1e-6)
    models = pytest.importorskip("gensim.models")
    for binary, name in ((True, "v.bin"), (False, "v.txt")):
        theirs = models.KeyedVectors.load_word2vec_format(str(tmp_path / name), binary=binary)
        np.testing.assert_allclose(theirs["猫"], found.vector("猫"), rtol=1e-6)


@pytest.mark.parametrize(
    "data",
    [b"", b"hello\n", b"2 3\na 1 2 3\n", b"2 2\na 1 2\nb 1\n", b"1 2\na 1 x\n", b"999999999 300\na 1\n", b"\xff 2\n"],
)
def test_broken_files_are_named(data: bytes, tmp_path: Path) -> None:
    for name in ("v.txt", "v.bin"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(TerakoyaError, match="is no word2vec file") as caught:
            open_vectors(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_the_verbs(tmp_path: Path, terakoya: Terakoya) -> None:  # noqa: F811
    text = "".join(
        f"{a} likes {b}.\n" for a, b in product(("tom", "sam", "ann"), ("tea", "milk", "rice")) for _ in "12345"
    )
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    said = terakoya("vectors", "train", "text.txt", "v", "--dim", 12, "--epochs", 2, "--subwords")
    assert said.code == 0, said.err
    assert "7 words" in said.out
    said = terakoya("vectors", "neighbours", "v", "tea", "--count", 3)
    assert said.code == 0 and "cosine" in said.out
    said = terakoya("vectors", "analogy", "v", "tom", "tea", "sam", "--count", 2)
    assert said.code == 0 and "tom : tea = sam : ?" in said.out
    assert terakoya("vectors", "export", "v", "v.bin", "--format", "binary").code == 0
    assert terakoya("vectors", "neighbours", "v.bin", "tea").code == 0


def test_japanese_words_come_apart_into_short_parts(tmp_path: Path, terakoya: Terakoya) -> None:  # noqa: F811
    (tmp_path / "text.txt").write_text("海と空と山。\n" * 9, encoding="utf-8")
    said = terakoya("vectors", "train", "text.txt", "chars", "--split", "chars", "--subwords", "--dim", 4,
                    "--epochs", 1)  # fmt: skip
    assert said.code == 0, said.err
    made = open_vectors(tmp_path / "chars").subwords
    assert made is not None and (made.shortest, made.longest) == (1, 3)
    assert terakoya("vectors", "neighbours", "chars", "海空").code == 0
    assert "is empty" in terakoya("vectors", "neighbours", "chars", "").err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["train", "text.txt", "v", "--dim", 0], "--dim"),
        (["train", "text.txt", "v", "--method", "glove", "--subwords"], "not with glove"),
        (["train", "text.txt", "v", "--subwords", "--min-n", 7], "--min-n"),
        (["train", "text.txt", "v", "--min-count", 99], "fewer than two words"),
        (["train", "text.txt", "v", "--parts", "none.txt"], "none.txt"),
        (["train", "nowhere", "v"], "nowhere"),
        (["train", "text.txt", "v", "--seed", -1], "--seed"),
        (["train", "text.txt", "v", "--method", "glove", "--negative", 5], "--negative"),
        (["train", "text.txt", "v", "--method", "glove", "--sample", 0], "--sample"),
        (["train", "text.txt", "v", "--min-n", 2], "add --subwords"),
        (["train", "text.txt", "v", "--buckets", 9], "add --subwords"),
        (["neighbours", "nowhere", "x"], "nowhere"),
        (["neighbours", "text.txt", "x"], "no word2vec file"),
    ],
)
def test_mistakes_get_one_line(words: list[object], problem: str, tmp_path: Path, terakoya: Terakoya) -> None:  # noqa: F811
    (tmp_path / "text.txt").write_text("a b c d\n" * 9, encoding="utf-8")
    said = terakoya("vectors", *words)
    assert (said.code, said.err.count("\n")) == (2, 1), said.err
    assert problem in said.err
    assert not (tmp_path / "v").exists()
