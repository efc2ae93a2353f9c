"""SentencePiece models read by our own hands: the ids that the sentencepiece library gives, and no crash on garbage."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Tokenizer, load
from terakoya.tokenizer.sentencepiece import read
from tests.tokenizer.texts import CORPUS, PIECES

spm = pytest.importorskip("sentencepiece")
LAW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# name → options of the trainer: T5 and mT5 (unigram, nmt_nfkc), Llama (bpe, identity, bytes), and their crossings.
MODELS: dict[str, dict[str, Any]] = {
    "unigram": {"model_type": "unigram"},
    "unigram bytes": {"model_type": "unigram", "byte_fallback": True},
    "bpe": {"model_type": "bpe"},
    "llama": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
    },
    "identity unigram": {
        "model_type": "unigram",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
    },
    "char": {"model_type": "char"},
}
EXACT = ("llama", "identity unigram")


def _train(options: dict[str, Any]) -> bytes:
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS * 10 for line in text.splitlines()]),
        model_writer=model,
        vocab_size=600,
        hard_vocab_limit=False,
        character_coverage=0.98,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {name: _train(options) for name, options in MODELS.items()}


@pytest.fixture(scope="module")
def pairs(files: dict[str, bytes]) -> dict[str, tuple[Any, Tokenizer]]:
    """(their processor, our tokenizer) of each model."""
    return {
        name: (spm.SentencePieceProcessor(model_proto=data), read(name, data, name)) for name, data in files.items()
    }


def japanese_and_english() -> st.SearchStrategy[str]:
    """Text as people write it: also half-width and decomposed kana, outer and double spaces, new lines."""
    letters = st.sampled_from("吾輩は猫である。、「」ー々ニャラメンｶﾊﾞガabcXYZ019 .,'-　\t\nがぎ髙①㍿ﬁ")
    free = st.text(letters, max_size=20)
    safe = [p for p in PIECES if not any(mark in p for mark in ("▁", "\x00", "<", "葛", "e\u0301"))]
    return st.lists(st.one_of(free, st.sampled_from([*safe, *CORPUS])), max_size=6).map("".join)


@LAW
@given(text=japanese_and_english())
def test_ids_are_those_of_the_library(pairs: dict[str, tuple[Any, Tokenizer]], text: str) -> None:
    for name, (theirs, ours) in pairs.items():
        assert ours.encode(text) == theirs.encode(text), name


@LAW
@given(text=japanese_and_english())
def test_texts_come_back(pairs: dict[str, tuple[Any, Tokenizer]], text: str) -> None:
    for name in EXACT:
        theirs, ours = pairs[name]
        ids = ours.encode(text)
        assert ours.decode(ids) == text == theirs.decode(ids), name
        stream = ours.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == text


def test_control_tokens(pairs: dict[str, tuple[Any, Tokenizer]]) -> None:
    for name, (theirs, ours) in pairs.items():
        assert (ours.bos, ours.eos, ours.unk) == (theirs.bos_id(), theirs.eos_id(), theirs.unk_id())
        assert ours.wrap() == ([theirs.bos_id()], [theirs.eos_id()])
        assert ours.vocab_size == theirs.get_piece_size()
        hostile = "</s> <s>a</s><unk> <0x41><0x0A>"
        assert {ours.bos, ours.eos}.isdisjoint(ours.encode(hostile)), name
        if name in EXACT:
            assert ours.decode(ours.encode(hostile)) == hostile
            assert ours.encode(hostile) == theirs.encode(hostile)


def test_the_bytes_of_pieces(pairs: dict[str, tuple[Any, Tokenizer]]) -> None:
    _, ours = pairs["llama"]
    theirs = pairs["llama"][0]
    assert ours.token_bytes(theirs.piece_to_id("<0xE3>")) == b"\xe3"
    assert ours.token_bytes(theirs.piece_to_id("▁")) == b" "
    assert ours.token_bytes(theirs.bos_id()) == b""


def test_text_goes_on_after_a_control_token(pairs: dict[str, tuple[Any, Tokenizer]]) -> None:
    _, ours = pairs["llama"]
    first = ours.encode("猫 cat")
    assert ours.encode_trusted("<s>猫 cat") == [ours.bos, *first]
    assert ours.encode_parts([(" cat", False)], after=first[0]) == ours.encode("cat")
    going_on = ours.stream(start=False)
    assert "".join(map(going_on.push, ours.encode("cat"))) == " cat"


def test_user_defined_pieces_are_text() -> None:
    # With the dummy prefix, text after such a piece opens anew (as llama.cpp and transformers have it); without, equal.
    symbols = {"byte_fallback": True, "add_dummy_prefix": False, "user_defined_symbols": ["猫である", "<think>"]}
    data = _train({"model_type": "bpe", **symbols})
    theirs, ours = spm.SentencePieceProcessor(model_proto=data), read("user", data, "user")
    text = "吾輩は猫である。"
    assert ours.encode(text) == theirs.encode(text)
    assert theirs.piece_to_id("猫である") in ours.encode(text)
    assert "<think>" in ours.specials
    assert theirs.piece_to_id("<think>") not in ours.encode("a <think> b")


def test_files_and_hash(files: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in files.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokenizer.model").write_bytes(data)
        one = load(folder)
        one.save(folder / "saved")
        again = load(folder / "saved")
        assert again.hash() == one.hash() == load(folder / "tokenizer.model").hash()
        assert again.encode("吾輩は  猫 cat") == one.encode("吾輩は  猫 cat")
        assert (again.bos, again.eos, again.name) == (one.bos, one.eos, name)


def test_transformers_gives_the_same_ids(pairs: dict[str, tuple[Any, Tokenizer]], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for name, (_, ours) in pairs.items():
        ours.save(tmp_path / name)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        for text in CORPUS:
            assert theirs.encode(text, add_special_tokens=False) == ours.encode(text), name
            if name in EXACT:
                assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text)), name


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_garbage_is_an_error_of_ours(files: dict[str, bytes], data: st.DataObject) -> None:
    """Cut, flip and insert bytes near the front and the end: a tokenizer or TerakoyaError, nothing else."""
    good = files["llama"]
    head, tail = good[:120], good[-400:]
    raw = bytearray(head + tail)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    with suppress(TerakoyaError):
        read("broken.model", bytes(raw), "broken")


def _varint(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: b"", "no pieces"),
        (lambda: b"\x0a" + _varint(1 << 62), "bytes promised"),
        (lambda: b"\x0a" + b"\xff" * 11, "more than ten bytes"),
        (lambda: b"\x0b\x00", "wire type 3"),
        (lambda: b"\x00", "field 0"),
        (lambda: b"\x0a\x04\x0a\x02\xff\xfe", "no UTF-8"),
        (lambda: b"\x08\x01", "a number where a message belongs"),
        (lambda: b"\x0a\x08\x0a\x01a\x15\x00\x00\xc0\x7f", "score that is no number"),
        (lambda: b"\x0a\x05\x0a\x01a\x18\x09", "no known kind"),
        (lambda: b"\x0a\x03\x0a\x01a", "one unknown piece"),
    ],
)
def test_handmade_garbage(make: Callable[[], bytes], match: str) -> None:
    with pytest.raises(TerakoyaError, match=match):
        read("broken.model", make(), "broken")
