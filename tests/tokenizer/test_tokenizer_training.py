"""Training: joints of Japanese and English, ids in order, determinism, reports, and mistakes in one line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tokenizers import Regex, pre_tokenizers

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import KINDS, SAMPLES, Tokenizer, report, train
from terakoya.tokenizer.pattern import GPT2, LLAMA3, QWEN2, TERAKOYA, check_pattern
from tests.tokenizer.texts import CORPUS

SPLIT = pre_tokenizers.Split(Regex(TERAKOYA), "isolated")


def _cut(text: str) -> list[str]:
    return [piece for piece, _ in SPLIT.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("吾輩は猫である。", ["吾輩", "は", "猫", "である", "。"]),
        ("ラーメンとらーめん、ﾗｰﾒﾝ", ["ラーメン", "とらーめん", "、", "ﾗｰﾒﾝ"]),
        ("々人々〆切", ["々人々〆切"]),
        ("が\u3099ｶﾞ", ["が\u3099", "ｶﾞ"]),
        ("葛\U000e0100城", ["葛\U000e0100城"]),
        ("2024年 12.5", ["2", "0", "2", "4", "年", " ", "1", "2", ".", "5"]),
        ("１２", ["１", "２"]),
        ("I don't 'serve'", ["I", " don", "'t", " '", "serve", "'"]),
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),
        (
            "def f(x):\n        return x\n\n\ny",
            ["def", " f", "(", "x", "):\n", "       ", " return", " x", "\n\n\n", "y"],
        ),
        ("👨‍👩‍👧 안녕", ["👨‍👩‍👧", " 안녕"]),
        ("「猫」\n　次", ["「", "猫", "」\n", "　", "次"]),
    ],
)
def test_where_words_are_cut(text: str, pieces: list[str]) -> None:
    assert _cut(text) == pieces


def test_no_piece_crosses_a_script(trained: dict[str, Tokenizer]) -> None:
    for kind in ("bpe", "unigram"):
        one = trained[kind]
        for id in range(one.vocab_size):
            text = one.token_bytes(id).decode("utf-8", "ignore") if id != one.unk else ""
            assert len(_cut(text)) <= 1, (kind, text)
            assert sum(c.isdigit() for c in text) <= 1


def test_ids_are_in_order(trained: dict[str, Tokenizer]) -> None:
    for kind, one in trained.items():
        assert one.vocab_size <= 700
        first = 256 if kind == "bytes" else 0
        assert list(one.specials.values()) == [first, first + 1, first + 2]
    assert trained["bytes"].vocab_size == 259
    assert all(trained["bytes"].token_bytes(b) == bytes([b]) for b in range(256))
    assert {one.token_bytes(i) for one in [trained["unigram"]] for i in range(4, 260)} == {
        bytes([b]) for b in range(256)
    }


def test_the_vocabulary_is_never_larger_than_asked() -> None:
    many = ["".join(chr(0x4E00 + i) for i in range(k, k + 50)) for k in range(0, 1000, 50)]
    for kind in KINDS:
        one = train(iter(many), kind, 300)
        assert one.vocab_size <= 300
        assert one.decode(one.encode(many[7])) == many[7]


def test_training_twice_is_the_same(trained: dict[str, Tokenizer]) -> None:
    for kind in ("bpe", "bytes", "chars"):  # the library's unigram trainer is not repeatable
        assert train(iter(CORPUS * 20), kind, 700).hash() == trained[kind].hash()


def test_other_control_tokens() -> None:
    one = train(CORPUS, "bpe", 400, ("<s>", "</s>", "<pad>"))
    assert (one.bos, one.eos) == (0, 1)
    assert one.wrap() == ([0], [1])
    assert one.template is None
    bare = train(CORPUS, "chars", 400, ())
    assert bare.wrap() == ([], [])
    assert not bare.specials
    assert bare.decode(bare.encode(CORPUS[0])) == CORPUS[0]


def test_mistakes_are_named() -> None:
    def broken() -> Iterator[str]:
        yield "fine"
        yield "\ud800"

    def failing() -> Iterator[str]:
        yield "fine"
        raise OSError("the disk is gone")

    for kind in ("bpe", "unigram", "chars"):
        with pytest.raises(TerakoyaError, match="training text 1: holds the lone surrogate U\\+D800"):
            train(broken(), kind, 600)
        with pytest.raises(OSError, match="the disk is gone"):
            train(failing(), kind, 600)
        with pytest.raises(TerakoyaError, match="training texts: are empty"):
            train([], kind, 600)
    for kind in KINDS:
        with pytest.raises(TerakoyaError, match="must be at least 2"):
            train(["a"], kind, 100)
    with pytest.raises(TerakoyaError, match=r"'bqe' is not known.*did you mean 'bpe'"):
        train(["a"], "bqe", 600)
    for specials in (("<s>", "<s>"), (" ",), ("<0x41>",)):
        with pytest.raises(TerakoyaError, match="control token"):
            train(["a"], "bpe", 600, specials)


def test_report(trained: dict[str, Tokenizer]) -> None:
    for kind, one in trained.items():
        found = report(one)
        assert [row.name for row in found.rows] == list(SAMPLES)
        assert all(row.exact and row.unknown == 0 for row in found.rows), kind
        assert len(str(found).splitlines()) == 1 + len(SAMPLES)
        assert all(len(row.cells()) == len(found.head) for row in found.rows)
    ja = {kind: report(one).rows[0] for kind, one in trained.items()}
    assert ja["bytes"].bytes_per_token == 1
    assert ja["bytes"].single > 0.9
    assert ja["bpe"].chars_per_token > ja["chars"].chars_per_token >= 0.9 > ja["bytes"].chars_per_token
    rare = report(trained["bpe"], {"rare": "鬱蒼"}).rows[0]
    assert rare.single > 0
    assert rare.exact


@pytest.mark.parametrize("pattern", ["(a+)+$", r"(\s*\n)+\s*x", r"(?:a|a)*$", "(a{2,})*", "((?:ab?)+|c)*d"])
def test_explosive_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(TerakoyaError, match="can explode"):
        check_pattern("file", pattern)


@pytest.mark.parametrize(
    "pattern", [TERAKOYA, GPT2, LLAMA3, QWEN2, " {2,}", r"[(a+)+]", r"\(a+\)+", "(?i:'s|'t)", "x{1,3}"]
)
def test_ordinary_patterns_are_fine(pattern: str) -> None:
    check_pattern("file", pattern)
