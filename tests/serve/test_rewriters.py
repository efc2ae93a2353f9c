"""An encoder-decoder behind the server: the prompt is what it reads, the answer what it writes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from terakoya.serve.settings import Limits
from terakoya.serve.shelf import Shelf
from terakoya.zoo.convert import Loaded
from tests.engine.engine_fakes import VOCAB, byte_tokenizer
from tests.engine.test_sources import translator
from tests.serve.conftest import Running, listening


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    model = translator("t5")
    tokenizer = byte_tokenizer()
    assert model.spec.vocab <= VOCAB
    with listening(Shelf({"t5": lambda: Loaded(model, tokenizer, "t5")}, Limits())) as found:
        yield found


def test_it_writes_and_does_not_repeat_the_prompt(running: Running) -> None:
    asked = {"prompt": [1, 2, 3, 4], "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    done = running.post("/v1/completions", asked)
    assert done.status_code == 200, done.text
    usage = done.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (4 + 2, 6)  # the text and its end; the start
    other = running.post("/v1/completions", asked | {"prompt": [9, 8, 7]}).json()
    assert other["choices"] != done.json()["choices"]
    assert running.post("/v1/completions", asked).json()["choices"] == done.json()["choices"]
    for path, body, field in (
        ("/v1/completions", asked | {"echo": True, "logprobs": 1}, "echo"),
        ("/v1/embeddings", {"input": [1, 2]}, "model"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "model"),
    ):
        reply = running.post(path, body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, field), reply.text
    running.idle()
