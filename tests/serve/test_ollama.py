"""The ollama package, unchanged."""

from __future__ import annotations

import json
from typing import Any

import ollama
import pytest

from terakoya.serve.ollama import seconds
from terakoya.serve.problem import Problem
from tests.serve.conftest import Running

USER = [{"role": "user", "content": "寺子屋とは？"}]
HOW = {"num_predict": 10, "seed": 3, "temperature": 1.0}


@pytest.fixture(scope="module")
def client(running: Running) -> ollama.Client:
    return ollama.Client(running.url)


def test_chat(client: ollama.Client) -> None:
    done = client.chat("tiny", USER, options=HOW)
    assert done.done
    assert done.done_reason == "length"
    assert done.eval_count == 10
    assert done.prompt_eval_count and done.total_duration
    pieces = list(client.chat("tiny", USER, options=HOW, stream=True))
    assert "".join(p.message.content for p in pieces) == done.message.content
    assert [p.done for p in pieces] == [False] * (len(pieces) - 1) + [True]


def test_generate(client: ollama.Client) -> None:
    raw = client.generate("base", "むかし", options=HOW, raw=True)
    assert client.generate("base", "むかし", options=HOW).response == raw.response
    assert "".join(p.response for p in client.generate("base", "むかし", options=HOW, stream=True)) == raw.response
    talk = client.generate("tiny", "寺子屋とは？", options=HOW)
    assert talk.response == client.chat("tiny", USER, options=HOW).message.content
    assert client.generate("tiny").done_reason == "load"


def test_lists(client: ollama.Client, running: Running) -> None:
    assert [m.model for m in client.list().models] == ["tiny", "base"]
    assert "tiny" in [m.model for m in client.ps().models]
    shown = client.show("tiny:latest")
    assert "completion" in shown.capabilities
    assert shown.details.family == "llama2"
    assert running.http.get("/api/version").json()["version"]


def test_json(client: ollama.Client) -> None:
    pytest.importorskip("llguidance", reason="the extra grammar is not installed")
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    said = client.chat("tiny", USER, format=schema, options=HOW | {"num_predict": 60}).message.content
    assert json.loads(said)["a"] in (1, 2)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"messages": USER, "options": {"mirostat": 2}}),
        ("/api/chat", {"messages": USER, "options": {"num_ctx": 99999}}),
        ("/api/chat", {"messages": USER, "options": {"num_gpu": 1}}),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aa"]}]}),
        ("/api/chat", {"messages": USER, "think": True}),
        ("/api/chat", {"messages": USER, "keep_alive": "soon"}),
        ("/api/chat", {"messages": USER, "format": "xml"}),
        ("/api/generate", {"prompt": "x", "suffix": "y"}),
        ("/api/generate", {"prompt": "x", "raw": True, "system": "y"}),
        ("/api/generate", {"prompt": "x", "options": {"stop": ["x"] * 20}}),
        ("/api/embed", {"input": "x", "options": {"num_ctx": 99999}}),
        ("/api/embed", {"input": []}),
    ],
)  # fmt: skip
def test_what_cannot_be_done(running: Running, path: str, body: dict[str, Any]) -> None:
    reply = running.post(path, {"model": "tiny", **body})
    assert reply.status_code == 400, reply.text
    assert isinstance(reply.json()["error"], str)
    assert running.post("/api/chat", {"model": "nobody", "messages": USER}).status_code == 404


def test_durations() -> None:
    assert [seconds(x) for x in ("5m", "1h30m", "10s", "0", 0, 3.5, "250ms")] == [300, 5400, 10, 0, 0, 3.5, 0.25]
    assert seconds(-1) == seconds("-1m") == float("inf")
    for bad in ("", "5", "m5", "5x", "5m5"):
        with pytest.raises(Problem):
            seconds(bad)
