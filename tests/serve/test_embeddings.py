"""Texts to vectors: pooling against a plain loop, the openai and ollama packages, and what is refused."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
import ollama
import openai
import pytest
import torch

from terakoya.engine.embed import STEP, batches, embed, pool, shortened
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.ngram.counts import count
from terakoya.ngram.model import NGram
from terakoya.serve.settings import Limits
from terakoya.serve.shelf import Shelf
from terakoya.zoo.convert import Loaded
from tests.engine.engine_fakes import byte_tokenizer
from tests.serve.conftest import Running, listening, tiny_loaded

TEXTS = ["寺子屋", "a school for children of the village", "👩‍👩‍👧 ﾊﾝｶｸ", "x"]


def plain(model: Any, ids: list[int], how: str) -> torch.Tensor:
    """One text by itself, as the definition says."""
    with torch.inference_mode():
        hidden = model(torch.tensor(ids), Packed([len(ids)]))
    vector = {"mean": hidden.mean(0), "last": hidden[-1], "first": hidden[0]}[how]
    return vector / vector.norm()


@pytest.mark.parametrize("how", ["mean", "last", "first"])
def test_together_as_alone(how: Any) -> None:
    loaded = tiny_loaded()
    texts = [loaded.tokenizer.encode(t) for t in TEXTS]
    found = shortened(embed(loaded.model, texts, how), None)
    for ids, row in zip(texts, found, strict=True):
        torch.testing.assert_close(row, plain(loaded.model, ids, how), atol=1e-5, rtol=1e-4)


def test_pooling_by_hand() -> None:
    hidden = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 12.0]])
    assert pool(hidden, [0, 2, 3], "mean").tolist() == [[2.0, 2.0], [5.0, 12.0]]
    assert pool(hidden, [0, 2, 3], "last").tolist() == [[3.0, 4.0], [5.0, 12.0]]
    assert pool(hidden, [0, 2, 3], "first").tolist() == [[1.0, 0.0], [5.0, 12.0]]
    assert shortened(torch.tensor([[3.0, 4.0, 12.0]]), 2)[0].tolist() == pytest.approx([0.6, 0.8])
    with pytest.raises(TerakoyaError, match="dimensions"):
        shortened(hidden, 3)
    with pytest.raises(TerakoyaError, match="pooling"):
        embed(tiny_loaded().model, [[1]], "max")  # type: ignore[arg-type]


def test_every_text_is_in_one_batch_that_fits() -> None:
    lengths = [5, STEP, 1, STEP - 1, 7, STEP + 9]
    found = list(batches(lengths, alone=False))
    assert sorted(i for batch in found for i in batch) == list(range(6))
    assert all(sum(lengths[i] for i in batch) <= STEP or len(batch) == 1 for batch in found)
    assert [len(b) for b in batches(lengths, alone=True)] == [1] * 6
    assert list(batches([], alone=False)) == []


@pytest.fixture(scope="module")
def client(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0, timeout=60)


def test_openai(client: openai.OpenAI, running: Running) -> None:
    """The package asks for base64 and unpacks it; floats, text by text, say the same, in the order of the texts."""
    done = client.embeddings.create(model="tiny", input=TEXTS)
    assert [e.index for e in done.data] == [0, 1, 2, 3]
    assert done.usage.prompt_tokens == done.usage.total_tokens > 20
    for text, one in zip(TEXTS, done.data, strict=True):
        alone = client.embeddings.create(model="tiny", input=text, encoding_format="float").data[0].embedding
        assert alone == pytest.approx(one.embedding, abs=1e-5)
        assert math.hypot(*alone) == pytest.approx(1, abs=1e-5)
    raw = running.post("/v1/embeddings", {"input": "x", "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(raw), "<f4").tolist() == pytest.approx(done.data[3].embedding, abs=1e-6)
    ids = running.post("/tokenize", {"prompt": TEXTS[0]}).json()["tokens"]
    byids = client.embeddings.create(model="tiny", input=[ids], dimensions=5, extra_body={"pooling": "last"}).data[0]
    assert len(byids.embedding) == 5
    assert math.hypot(*byids.embedding) == pytest.approx(1, abs=1e-5)
    want = plain(running.shelf.open["tiny"].loaded.model, ids, "last")[:5]
    assert byids.embedding == pytest.approx((want / want.norm()).tolist(), abs=1e-5)


def test_ollama(running: Running, client: openai.OpenAI) -> None:
    theirs = ollama.Client(running.url)
    done = theirs.embed("tiny", TEXTS)
    wanted = client.embeddings.create(model="tiny", input=TEXTS).data
    for row, other in zip(done.embeddings, wanted, strict=True):
        assert list(row) == pytest.approx(other.embedding, abs=1e-5)
    assert done.prompt_eval_count > 20
    assert theirs.embeddings("tiny", "x").embedding == pytest.approx(wanted[3].embedding, abs=1e-5)
    long = "長" * 300
    with pytest.raises(ollama.ResponseError, match="room for 256"):
        theirs.embed("tiny", long)
    assert theirs.embed("tiny", long, truncate=True).prompt_eval_count == 256


def test_alone_and_together_to_the_bit_where_that_is_asked_for() -> None:
    with listening(Shelf({"tiny": tiny_loaded}, Limits(), deterministic=True)) as running:
        together = [e["embedding"] for e in running.post("/v1/embeddings", {"input": TEXTS}).json()["data"]]
        for text, one in zip(TEXTS, together, strict=True):
            assert running.post("/v1/embeddings", {"input": text}).json()["data"][0]["embedding"] == one


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"input": []}, 400), ({"input": ["a", 1]}, 400), ({"input": [[]]}, 400), ({"input": [[999]]}, 400),
        ({"input": None}, 400), ({"input": "長" * 300}, 400), ({"input": ["x"] * 2049}, 400), ({"dimensions": 0}, 400),
        ({"dimensions": 33}, 400), ({"encoding_format": "int8"}, 400), ({"pooling": "max"}, 400),
        ({"frobnicate": 1}, 400), ({"model": "nobody"}, 404),
    ],
)  # fmt: skip
def test_what_cannot_be_done(running: Running, more: dict[str, Any], status: int) -> None:
    reply = running.post("/v1/embeddings", {"model": "tiny", "input": "x", **more})
    assert reply.status_code == status, reply.text
    assert next(iter(more)) in reply.json()["error"]["message"] + (reply.json()["error"]["param"] or "")
    assert running.shelf.open["tiny"].users == 0


def test_counts_continue_texts_and_have_no_vectors() -> None:
    """An n-gram model's states are places in a tree: a mean of such numbers means nothing."""
    tokenizer = byte_tokenizer()
    ids = np.array(tokenizer.encode("寺子屋は学校である。" * 4))
    counted = NGram(count(ids, np.array([0, len(ids)]), tokenizer.vocab_size, 3))
    with listening(Shelf({"grams": lambda: Loaded(counted, tokenizer, "ngram")}, Limits())) as server:
        reply = server.post("/v1/embeddings", {"model": "grams", "input": "学校"})
        assert reply.status_code == 400
        assert "has no vectors" in reply.text
        done = server.post("/v1/completions", {"model": "grams", "prompt": "寺", "max_tokens": 5, "temperature": 0})
        assert done.json()["choices"][0]["text"].startswith("子")
