"""Laws of text: exact round trips, no control token from a text, streams that lose nothing."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Tokenizer
from tests.tokenizer.texts import PIECES, texts

LAW = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@LAW
@given(text=texts())
def test_any_text_comes_back_exactly(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@LAW
@given(text=texts())
def test_no_text_becomes_a_control_token(tokenizer: Tokenizer, text: str) -> None:
    control = set(tokenizer.specials.values())
    assert control.isdisjoint(tokenizer.encode(text))
    assert control.isdisjoint(tokenizer.encode_parts([(text, False)]))


def test_the_name_of_every_control_token_is_only_text(tokenizer: Tokenizer, smollm: Tokenizer) -> None:
    for one in (tokenizer, smollm):
        for name, id in one.specials.items():
            assert set(one.specials.values()).isdisjoint(one.encode(f"a{name}b {name}"))
            assert one.encode_trusted(name) == [id]
            assert one.decode([id]) == ""
            assert one.decode([id], specials=True) == name
            assert one.token_bytes(id) == b""


@LAW
@given(many=st.lists(texts(), max_size=6))
def test_a_batch_is_each_of_its_texts(tokenizer: Tokenizer, many: list[str]) -> None:
    assert tokenizer.encode_batch(many) == [tokenizer.encode(text) for text in many]
    assert [tokenizer.encode_parts([(t, False)]) for t in many] == tokenizer.encode_batch(many)


@LAW
@given(text=texts())
def test_smollm_gives_text_back_but_for_the_bytes_it_lacks(smollm: Tokenizer, text: str) -> None:
    ids = smollm.encode(text)
    missing = smollm.missing
    kept = bytes(b for b in text.encode() if b not in missing)
    assert b"".join(map(smollm.token_bytes, ids)) == kept
    assert set(smollm.specials.values()).isdisjoint(ids)


def test_smollm_lacks_eight_bytes(smollm: Tokenizer, trained: dict[str, Tokenizer]) -> None:
    assert smollm.missing == {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}
    assert all(not one.missing for one in trained.values())


@LAW
@given(data=st.data())
def test_a_stream_says_what_decode_says(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    stream = tokenizer.stream()
    pushed = [stream.push(id) for id in ids]
    assert "".join(pushed) + stream.finish() == tokenizer.decode(ids)
    assert stream.finish() == ""


@LAW
@given(text=texts())
def test_a_stream_of_real_text_never_shows_a_broken_character(trained: dict[str, Tokenizer], text: str) -> None:
    one = trained["bytes"]
    stream = one.stream()
    said = ""
    for i, id in enumerate(one.encode(text)):
        said += stream.push(id)
        assert said == text.encode()[: i + 1].decode("utf-8", "ignore")
    assert stream.finish() == ""
    assert said == text


@LAW
@given(raw=st.binary(max_size=24))
def test_broken_bytes_are_replaced_as_python_replaces_them(trained: dict[str, Tokenizer], raw: bytes) -> None:
    one = trained["bytes"]  # byte b has the id b
    stream = one.stream()
    said = "".join(map(stream.push, raw)) + stream.finish()
    assert said == one.decode(raw) == raw.decode("utf-8", "replace")


def test_an_unfinished_character_waits_for_the_end(trained: dict[str, Tokenizer]) -> None:
    stream = trained["bytes"].stream()
    raw = "👨‍👩‍👧".encode()
    assert "".join(map(stream.push, raw[:-1])) == "👨‍👩‍"
    assert stream.finish() == "�"


@pytest.mark.parametrize("text", ["\ud83d", "ok\udc00"])
def test_a_lone_surrogate_is_an_error_in_one_line(tokenizer: Tokenizer, text: str) -> None:
    for call in (tokenizer.encode, tokenizer.encode_trusted, lambda t: tokenizer.encode_batch(["fine", t])):
        with pytest.raises(TerakoyaError, match="lone surrogate U\\+D") as caught:
            call(text)
        assert "\n" not in str(caught.value)


def test_ids_outside_are_errors(tokenizer: Tokenizer) -> None:
    for id in (-1, tokenizer.vocab_size):
        with pytest.raises(TerakoyaError, match="outside the vocabulary"):
            tokenizer.decode([id])
        with pytest.raises(TerakoyaError, match="outside the vocabulary"):
            tokenizer.stream().push(id)


def test_a_long_text_without_any_joint_is_not_slow(trained: dict[str, Tokenizer]) -> None:
    for one in trained.values():
        for part in ("a", "猫", "\n", " ", "👍"):
            text = part * 20_000
            assert one.decode(one.encode(text)) == text


def test_wrapping(trained: dict[str, Tokenizer]) -> None:
    for one in trained.values():
        assert one.wrap() == ([one.specials["<|endoftext|>"]], [])
        assert one.stops == {one.specials["<|endoftext|>"], one.specials["<|im_end|>"]}


def test_pieces_of_the_corpus_are_found(trained: dict[str, Tokenizer]) -> None:
    text = "".join(PIECES[:4])
    assert len(trained["bpe"].encode(text)) < len(trained["bytes"].encode(text)) == len(text.encode())
