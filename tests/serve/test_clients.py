"""Clients that people have: LangChain and LiteLLM, each used as its own documentation says."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator

import pytest

from terakoya.serve.settings import Limits
from terakoya.serve.shelf import Shelf
from tests.serve.conftest import Running, listening, tiny_loaded

USER = "寺子屋とは？"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["京都", "大阪"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with listening(Shelf({"tiny": lambda: tiny_loaded(context=1024)}, Limits())) as found:
        yield found


def test_langchain(running: Running) -> None:
    """Ask, stream, async, forced tool, vectors."""
    library = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    where = {"base_url": f"{running.url}/v1", "api_key": "any", "model": "tiny", "max_retries": 0}
    model = library.ChatOpenAI(**where, temperature=0, max_tokens=12)
    whole = model.invoke(USER)
    assert whole.usage_metadata["output_tokens"] == 12
    assert "".join(chunk.content for chunk in model.stream(USER)) == whole.content
    assert asyncio.run(model.ainvoke(USER)).content == whole.content
    if importlib.util.find_spec("llguidance"):
        forced = library.ChatOpenAI(**where, temperature=0, max_tokens=200).bind_tools([TOOL], tool_choice="weather")
        (call,) = forced.invoke(USER).tool_calls
        assert (call["name"], call["args"]["city"] in ("京都", "大阪")) == ("weather", True)
    # Its own tokenizer is that of OpenAI's models: it must send texts, not ids.
    vectors = library.OpenAIEmbeddings(**where, check_embedding_ctx_length=False)
    rows = vectors.embed_documents(["a", "寺子屋"])
    assert rows[1] == pytest.approx(vectors.embed_query("寺子屋"), abs=1e-5)


def test_litellm(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """By OpenAI's routes; by Ollama's it sends no content-type, which is refused."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks the network when it is imported
    if importlib.util.find_spec("litellm") is None:
        pytest.skip("litellm is not installed")
    import litellm

    asked = {"messages": [{"role": "user", "content": USER}], "temperature": 0, "max_tokens": 12}
    where = {"model": "openai/tiny", "api_base": f"{running.url}/v1", "api_key": "any"}
    whole = litellm.completion(**asked, **where)
    assert whole.usage.completion_tokens == 12
    pieces = litellm.completion(**asked, **where, stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == whole.choices[0].message.content
    assert len(litellm.embedding(input=["a", "b"], **where).data) == 2
