"""Answers of a given form, and tools: a random model can say nothing but what is asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from terakoya.serve import asking, chat
from terakoya.serve.settings import Limits
from terakoya.serve.shelf import Shelf
from tests.serve.conftest import Running, listening, tiny_loaded

pytest.importorskip("llguidance", reason="the extra grammar is not installed")

USER = [{"role": "user", "content": "天気は？"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["京都", "大阪"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with listening(Shelf({"tiny": lambda: tiny_loaded(context=1024)}, Limits())) as found:
        yield found


@pytest.fixture(scope="module")
def client(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0, timeout=60)


def ask(client: openai.OpenAI, **more: Any) -> Any:
    how = {"model": "tiny", "messages": USER, "max_tokens": 200, "seed": 5}
    return client.chat.completions.create(**how | more)


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(3))
def test_json_of_a_schema(client: openai.OpenAI, seed: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
    said = ask(client, response_format=form, seed=seed).choices[0]
    found = json.loads(said.message.content)
    assert set(found) == {"name", "age"}
    assert 0 <= found["age"] <= 99
    assert said.finish_reason == "stop"
    chunks = ask(client, response_format=form, seed=seed, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == said.message.content


def test_other_forms(client: openai.OpenAI) -> None:
    said = ask(client, response_format={"type": "regex", "pattern": "[あ-ん]{3}-[0-9]{2}"}).choices[0].message.content
    assert re.fullmatch("[あ-ん]{3}-[0-9]{2}", said)
    assert ask(client, response_format={"type": "choice", "choices": ["はい", "no"]}).choices[0].message.content in (
        "はい",
        "no",
    )
    lark = {"type": "grammar", "grammar": 'start: "a" ("b" | "c")'}
    assert ask(client, response_format=lark).choices[0].message.content in ("ab", "ac")
    said = ask(client, response_format={"type": "json_object"}, max_tokens=400, temperature=0.2).choices[0]
    assert said.finish_reason == "length" or isinstance(json.loads(said.message.content), dict)


@pytest.mark.parametrize(
    "form",
    [
        {"type": "xml"}, {"type": "json_schema"}, {"type": "regex", "pattern": "("}, {"type": "regex"}, {},
        {"type": "grammar", "grammar": "start: nothing"}, {"type": "choice", "choices": []},
        {"type": "regex", "pattern": "(a{1000}){1000}"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"x-guidance": {}}}},
    ],
)  # fmt: skip
def test_forms_that_cannot_be(running: Running, form: dict[str, Any]) -> None:
    reply = running.post("/v1/chat/completions", {"messages": USER, "response_format": form})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"].startswith("response_format")
    assert running.post("/v1/chat/completions", {"messages": USER, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_that_must_be_called(client: openai.OpenAI, choice: Any) -> None:
    tools = [WEATHER] if choice == "required" else [CLOCK, WEATHER]
    said = ask(client, tools=tools, tool_choice=choice).choices[0]
    assert said.finish_reason == "tool_calls"
    assert said.message.content is None
    call = said.message.tool_calls[0]
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "weather"
    assert arguments["city"] in ("京都", "大阪")
    assert 1 <= arguments["days"] <= 7
    chunks = list(ask(client, tools=tools, tool_choice=choice, stream=True))
    calls = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()]
    assert [(c.index, c.function.name, c.function.arguments) for c in calls] == [
        (0, "weather", call.function.arguments)
    ]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    # The result goes back, message and all.
    result = {"role": "tool", "tool_call_id": call.id, "content": "晴れ"}
    again = ask(client, messages=[*USER, said.message, result], tools=tools, max_tokens=3)
    assert again.choices[0].message.content is not None


def test_how_tools_are_told(running: Running) -> None:
    served = running.shelf.open["tiny"]
    body = {"messages": [{"role": "system", "content": "S"}, *USER], "tools": [WEATHER]}
    talk = asking.chat(served, asking.ChatRequest.model_validate(body), Limits(), "")
    told = served.tokenizer.decode(talk.request.prompt)
    assert told.startswith("S\n\nYou may call functions")
    assert '"name": "weather"' in told
    without = asking.chat(served, asking.ChatRequest.model_validate(body | {"tool_choice": "none"}), Limits(), "")
    assert "weather" not in served.tokenizer.decode(without.request.prompt)


CALLS = [{"name": "weather", "arguments": {"city": "京都"}}, {"name": "clock", "arguments": {}}]
ANSWER = "そう。" + "".join(f"<tool_call>\n{json.dumps(c, ensure_ascii=False)}\n</tool_call>" for c in CALLS)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_calls_in_an_answer_however_it_is_cut(running: Running, size: int) -> None:
    served = running.shelf.open["tiny"]
    body = asking.ChatRequest.model_validate({"messages": USER, "tools": [WEATHER, CLOCK]})
    talk = asking.chat(served, body, Limits(), "")
    reader = chat.Reader(talk)
    pieces = [ANSWER[i : i + size] for i in range(0, len(ANSWER), size)]
    news = [d for i, p in enumerate(pieces) for d in reader.take(p, i == len(pieces) - 1)]
    text, _, calls = chat.read(talk, ANSWER)
    assert text == "そう。" == "".join(d.get("content", "") for d in news)
    told = [d["tool_calls"][0] for d in news if "tool_calls" in d]
    assert [(c["index"], c["function"]["name"]) for c in told] == [(0, "weather"), (1, "clock")]
    assert [c["function"]["arguments"] for c in told] == [c.arguments for c in calls]
    assert len({c["id"] for c in told}) == 2
    assert reader.reason("stop") == "tool_calls"
    assert reader.reason("length") == "length"
