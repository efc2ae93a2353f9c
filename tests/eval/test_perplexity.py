"""Scores: every token once, none from the future, and bytes counted as they are written."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terakoya.errors import TerakoyaError
from terakoya.eval.perplexity import Score, compressed, score, windows
from terakoya.model.build import build, initialise
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer, train
from terakoya.zoo import lineage

TEXTS = ("寺子屋は、庶民の学校である。ｶﾅも👩‍👩‍👧もある。" * 3, "A school.", "読み書きと算盤 and reading " * 4)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(iter(TEXTS * 5), "bpe", 300)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    from dataclasses import replace

    s = lineage.rescale(lineage.sized("llama2/nano"), 32, 2, 16)
    return initialise(build(replace(s, vocab=tokenizer.vocab_size, context=256)), 0)


@settings(max_examples=200, deadline=None)
@given(length=st.integers(0, 300), window=st.integers(2, 64))
def test_windows_score_each_token_but_the_first_once(length: int, window: int) -> None:
    scored: list[int] = []
    for begin, end, first in windows(length, window):
        assert 0 <= begin < first < end <= length
        assert end - 1 - begin <= window  # the last prediction looks at no more than that
        assert first == 1 or first - begin >= window // 2  # and the first at half of it, at least
        scored += range(first, end)
    assert scored == list(range(1, length))


@torch.inference_mode()
def test_a_whole_text_is_scored_as_one_forward_pass(model: Model, tokenizer: Tokenizer) -> None:
    prefix, suffix = tokenizer.wrap()
    nats = tokens = 0
    for text in TEXTS:
        ids = torch.tensor([*prefix, *tokenizer.encode(text), *suffix])
        logits = model.head(model(ids[:-1], Packed([len(ids) - 1], ids.device)))
        nats += torch.nn.functional.cross_entropy(logits.double(), ids[1:], reduction="sum").item()
        tokens += len(ids) - 1
    found = score(model, tokenizer, TEXTS)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.tokens == tokens
    if prefix:
        assert found.bytes == sum(len(text.encode()) for text in TEXTS)


def test_windows_change_little_and_only_where_texts_are_long(model: Model, tokenizer: Tokenizer) -> None:
    assert score(model, tokenizer, TEXTS[1:2], window=200) == score(model, tokenizer, TEXTS[1:2])
    whole, cut = score(model, tokenizer, TEXTS), score(model, tokenizer, TEXTS, window=16)
    assert (cut.tokens, cut.bytes) == (whole.tokens, whole.bytes)
    assert cut.nats != whole.nats
    assert cut.nats == pytest.approx(whole.nats, rel=0.05)


def test_units() -> None:
    assert Score(nats=math.log(2) * 24, tokens=3, bytes=8).bits_per_byte == pytest.approx(3)
    assert Score(nats=math.log(256) * 3, tokens=3, bytes=3).perplexity == pytest.approx(256)
    data = "寺子屋".encode() * 50
    assert compressed(data, "zlib") == 8 * len(zlib.compress(data, 9)) / len(data)
    assert 0 < compressed(data, "lzma") < 8


@pytest.mark.parametrize("window", [1, 257])
def test_a_window_fits_the_model(model: Model, tokenizer: Tokenizer, window: int) -> None:
    with pytest.raises(TerakoyaError, match="2 to the model's context, 256"):
        score(model, tokenizer, TEXTS, window=window)


def test_nothing_to_score_is_an_error(model: Model, tokenizer: Tokenizer) -> None:
    with pytest.raises(TerakoyaError, match="nothing to score"):
        score(model, tokenizer, [])
