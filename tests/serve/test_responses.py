"""/v1/responses by the openai package: items and events, tools and reasoning, and what is refused by name."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from terakoya.serve import asking, chat
from terakoya.serve.fields import ChatRequest
from terakoya.serve.items import Output
from terakoya.serve.responses import ResponsesRequest, asked_as_chat
from terakoya.serve.settings import Limits
from terakoya.serve.shelf import Shelf
from tests.serve.conftest import Running, listening, tiny_loaded

SAY = "寺子屋とは？"
PLACES = {"type": "object", "properties": {"city": {"enum": ["京都", "大阪"]}}, "required": ["city"]}
WEATHER = {"type": "function", "name": "weather", "parameters": PLACES | {"additionalProperties": False}}
grammar = pytest.mark.skipif(not importlib.util.find_spec("llguidance"), reason="the extra grammar is not installed")


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with listening(Shelf({"tiny": lambda: tiny_loaded(context=1024)}, Limits())) as found:
        yield found


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0, timeout=60) as found:
        yield found


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.responses.create(**{"model": "tiny", "input": SAY, "max_output_tokens": 10, "temperature": 0} | more)


def test_text(client: openai.OpenAI) -> None:
    done = ask(client, metadata={"a": "b"}, store=False)
    assert (done.status, done.usage.output_tokens, done.metadata) == ("incomplete", 10, {"a": "b"})
    assert done.incomplete_details.reason == "max_output_tokens"
    events = list(ask(client, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.incomplete"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == done.output_text
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert events[-1].response.output_text == done.output_text
    talk = [{"role": "user", "content": [{"type": "input_text", "text": SAY}]}]
    assert ask(client, input=talk).output_text == done.output_text


@grammar
def test_a_call_and_its_result(client: openai.OpenAI) -> None:
    """Forced, streamed and whole; then everything goes back, as the package's users do it."""
    how: dict[str, Any] = {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}}
    done = ask(client, max_output_tokens=200, **how)
    (call,) = done.output
    assert (call.type, call.name, done.status) == ("function_call", "weather", "completed")
    assert json.loads(call.arguments)["city"] in ("京都", "大阪")
    assert (done.tools[0].name, done.tool_choice.name) == ("weather", "weather")
    events = list(ask(client, max_output_tokens=200, stream=True, **how))
    kinds = [e.type for e in events]
    assert kinds[2:] == [
        "response.output_item.added", "response.function_call_arguments.delta",
        "response.function_call_arguments.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert events[2].item.arguments == ""
    assert events[3].delta == events[4].arguments == events[5].item.arguments == call.arguments
    assert events[5].item.call_id == events[6].response.output[0].call_id
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "晴れ"}
    again = ask(client, input=[{"role": "user", "content": SAY}, *done.output, result], tools=[WEATHER])
    assert again.output[0].type == "message"


def test_what_goes_back_becomes_turns() -> None:
    """Reasoning, text and calls in a row are one turn; results are turns of the tool."""
    text = {"type": "output_text", "text": "見ます", "annotations": []}
    items = [
        {"role": "user", "content": SAY},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "えっと"}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [text]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "晴れ"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "雨"}]},
    ]
    asked = ChatRequest.model_validate(
        asked_as_chat(ResponsesRequest.model_validate({"input": items, "instructions": "S", "tools": [WEATHER]}))
    )
    assert [(m.role, m.text) for m in asked.messages] == [
        ("system", "S"), ("user", SAY), ("assistant", "見ます"), ("tool", "晴れ"), ("tool", "雨")
    ]  # fmt: skip
    turn = asked.messages[2]
    assert turn.reasoning_content == "えっと"
    assert [c.id for c in turn.tool_calls or ()] == ["c1", "c2"]
    assert [m.tool_call_id for m in asked.messages[3:]] == ["c1", "c2"]


CALLS = "".join(f'<tool_call>{{"name": "weather", "arguments": {{"city": "{c}"}}}}</tool_call>' for c in "京大")


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize("single", [False, True])
def test_items_however_the_answer_is_cut(running: Running, size: int, single: bool) -> None:
    """Reasoning, text, two calls: the same items from one piece as from many; `parallel_tool_calls` false: one call."""
    said = "<think>えっと</think>見ます" + CALLS
    body = {"messages": [{"role": "user", "content": SAY}], "parallel_tool_calls": not single}
    tool = {"type": "function", "function": {k: v for k, v in WEATHER.items() if k != "type"}}
    served = running.shelf.open["tiny"]
    plain = asking.chat(served, ChatRequest.model_validate(body | {"tools": [tool]}), Limits(), "")
    from terakoya.engine.regions import THINK

    talk = asking.Talk(plain.request, (THINK, *plain.regions), None, plain.bare, plain.single)
    reader, output = chat.Reader(talk), Output("k")
    pieces = [said[i : i + size] for i in range(0, len(said), size)]
    events = [
        event
        for i, piece in enumerate(pieces)
        for delta in reader.take(piece, i == len(pieces) - 1)
        for event in output.take(delta)
    ] + output.end("stop")
    assert [i["type"] for i in output.items] == ["reasoning", "message", *["function_call"] * (2 - single)]
    assert output.reasoning() == "えっと"
    assert output.items[1]["content"][0]["text"] == "見ます"
    assert [json.loads(i["arguments"])["city"] for i in output.items[2:]] == list("京大")[: 2 - single]
    for kind, text in (("reasoning_text", "えっと"), ("output_text", "見ます")):
        assert "".join(more["delta"] for name, more in events if name == f"response.{kind}.delta") == text
    added = [more["output_index"] for name, more in events if name == "response.output_item.added"]
    assert added == list(range(4 - single))
    assert all(i["status"] == "completed" for i in output.items)
    assert len({i["id"] for i in output.items}) == len(output.items)
    assert len(chat.read(talk, said)[2]) == 2 - single


def test_nothing_said_is_an_empty_message() -> None:
    output = Output("k")
    events = output.end("length")
    assert events[0][0] == "response.output_item.added"
    assert (output.items[0]["content"][0]["text"], output.items[0]["status"]) == ("", "incomplete")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "x"), ("store", True), ("store", 0), ("background", True),
        ("tools[0].type", [{"type": "web_search"}]), ("tools[0].name", [{"type": "function", "name": "a b"}]),
        ("tool_choice", "required"), ("include", ["message.output_text.logprobs"]), ("truncation", "auto"),
        ("reasoning.effort", {"effort": "low"}), ("text.verbosity", {"verbosity": "low"}), ("max_tool_calls", 1),
        ("input", []), ("input", None), ("input[0].role", [{"role": "nobody", "content": "x"}]),
        ("input[0].call_id", [{"type": "function_call_output", "output": "x"}]),
        ("input[0].type", [{"type": "item_reference", "id": "x", "role": "user", "content": "x"}]),
        ("input[0].content[0].type", [{"role": "user", "content": [{"type": "input_image", "text": ""}]}]),
        ("text.format.type", {"format": {"type": "xml"}}), ("temperature", 101), ("top_logprobs", 1), ("seed", 1),
        ("conversation", "x"), ("prompt", {"id": "x"}), ("service_tier", "flex"), ("stream_options", {}),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(running: Running, field: str, value: Any) -> None:
    name = field.partition("[")[0].partition(".")[0]
    reply = running.post("/v1/responses", {"input": SAY, "max_output_tokens": 2, name: value})
    error = reply.json()["error"]
    assert reply.status_code == 400, reply.text
    assert field in (error["param"] or "") + error["message"]
    assert "\n" not in error["message"]
