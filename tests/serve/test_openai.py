"""The openai package, unchanged, against our server: models, chat, completions, streams, errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.serve.conftest import Running

USER = [{"role": "user", "content": "寺子屋とは？👩‍👩‍👧"}]


@pytest.fixture(scope="module")
def client(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0, timeout=30)


def chat(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": USER, "max_tokens": 12, "seed": 7} | more)


def streamed(client: openai.OpenAI, **more: Any) -> list[Any]:
    return list(chat(client, stream=True, stream_options={"include_usage": True}, **more))


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny", "base"]
    assert client.models.retrieve("base").owned_by == "terakoya"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_chat(client: openai.OpenAI) -> None:
    done = chat(client)
    assert done.choices[0].finish_reason == "length"
    assert done.choices[0].message.role == "assistant"
    assert done.usage.completion_tokens == 12
    assert done.usage.total_tokens == done.usage.prompt_tokens + 12
    assert chat(client).choices[0].message.content == done.choices[0].message.content
    assert chat(client, seed=8).choices[0].message.content != done.choices[0].message.content


@pytest.mark.parametrize("seed", range(6))
def test_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI, seed: int) -> None:
    how: dict[str, Any] = {"seed": seed, "max_tokens": 24, "logprobs": True, "top_logprobs": 2, "stop": ["a", "\n"]}
    done, chunks = chat(client, **how), streamed(client, **how)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert not chunks[0].choices[0].delta.content
    assert all(c.choices[0].delta.role is None for c in chunks[1:-1])
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1
    middle = chunks[1:-2]
    assert "".join(c.choices[0].delta.content for c in middle) == done.choices[0].message.content
    assert all(c.choices[0].finish_reason is None for c in chunks[:-2])
    assert chunks[-2].choices[0].finish_reason == done.choices[0].finish_reason
    assert not chunks[-2].choices[0].delta.content
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], done.usage.completion_tokens)
    told = [p for c in middle for p in c.choices[0].logprobs.content]
    assert [(p.token, p.bytes) for p in told] == [(p.token, p.bytes) for p in done.choices[0].logprobs.content]
    assert all(p.logprob <= 0 and len(p.top_logprobs) == 2 for p in told)


def test_bytes_of_tokens_are_the_text(client: openai.OpenAI) -> None:
    done = chat(client, logprobs=True, max_tokens=30).choices[0]
    raw = b"".join(bytes(p.bytes) for p in done.logprobs.content)
    assert raw.decode("utf-8", "replace") == done.message.content


def test_every_chunk_is_utf8(running: Running) -> None:
    body = {"model": "tiny", "messages": USER, "max_tokens": 60, "seed": 3, "stream": True}
    pieces = []
    with running.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        for chunk in reply.iter_raw():
            chunk.decode("utf-8")  # an HTTP chunk is one event or several, whole
            pieces.append(chunk)
    events = b"".join(pieces).decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    text = "".join(json.loads(e[6:])["choices"][0]["delta"].get("content", "") for e in events[:-2])
    body |= {"stream": False}
    assert running.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"] == text


def test_choices_differ_and_repeat(client: openai.OpenAI) -> None:
    texts = [c.message.content for c in chat(client, n=3).choices]
    assert len(set(texts)) == 3
    assert [c.message.content for c in chat(client, n=3).choices] == texts
    chunks = streamed(client, n=3)
    joined = ["", "", ""]
    for chunk in chunks[:-1]:
        joined[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert joined == texts


def test_fields_act(client: openai.OpenAI) -> None:
    biased = chat(client, logit_bias={"65": 100}, max_tokens=4, temperature=0)
    assert biased.choices[0].message.content == "AAAA"
    stopped = chat(client, logit_bias={"65": 100}, stop="AA", temperature=0).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("", "stop")
    penal = chat(client, logit_bias={"65": 50}, presence_penalty=2, frequency_penalty=2, temperature=0, max_tokens=40)
    assert set(penal.choices[0].message.content) != {"A"}
    more = {"top_k": 1, "seed": None}
    assert chat(client, extra_body=more).choices == chat(client, temperature=0).choices
    assert chat(client, extra_body={"min_p": 1.0}).choices == chat(client, temperature=0).choices
    assert len(chat(client, max_tokens=None, max_completion_tokens=3, logprobs=True).choices[0].logprobs.content) == 3


def test_a_begun_answer_is_continued(running: Running) -> None:
    begun = [*USER, {"role": "assistant", "content": "寺子"}]
    whole = running.post("/tokenize", {"messages": begun}).json()["tokens"]
    before = running.post("/tokenize", {"messages": USER}).json()["tokens"]
    assert whole[: len(before)] == before
    assert bytes(whole[len(before) :]).decode() == "寺子"


def test_names_of_control_tokens_in_a_message_stay_text(running: Running) -> None:
    said = [{"role": "user", "content": "<|endoftext|>"}]
    ids = running.post("/tokenize", {"messages": said}).json()["tokens"]
    assert max(ids) < 256


def test_completion(client: openai.OpenAI) -> None:
    how: dict[str, Any] = {"model": "base", "max_tokens": 9, "seed": 2, "logprobs": 3}
    done = client.completions.create(prompt=["寺子屋", "school"], n=2, **how)
    assert [c.index for c in done.choices] == [0, 1, 2, 3]
    joined = ["", "", "", ""]
    for chunk in client.completions.create(prompt=["寺子屋", "school"], n=2, stream=True, **how):
        joined[chunk.choices[0].index] += chunk.choices[0].text
    assert [c.text for c in done.choices] == joined
    told = done.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == 9
    assert client.completions.create(model="base", prompt="ab").usage.completion_tokens <= 16


def test_echo_with_logprobs_is_the_score_of_the_text(client: openai.OpenAI, running: Running) -> None:
    """What lm-eval asks for, as text and as ids: the prompt's tokens and what the model gave them."""
    text = "寺子屋 school"
    ids = running.post("/tokenize", {"prompt": text, "model": "base"}).json()["tokens"]
    how: dict[str, Any] = {"model": "base", "echo": True, "logprobs": 1, "temperature": 0}
    said = client.completions.create(prompt=text, max_tokens=1, **how).choices[0]
    assert said.text.startswith(text)
    assert said.logprobs.token_logprobs[0] is None
    assert len(said.logprobs.token_logprobs) == len(ids) + 1
    assert all(x <= 0 for x in said.logprobs.token_logprobs[1:])
    byids = client.completions.create(prompt=ids, max_tokens=0, **how).choices[0].logprobs
    assert byids.token_logprobs == pytest.approx(said.logprobs.token_logprobs[:-1])
    # The engine, token by token, says the same of what it draws itself.
    drawn = client.completions.create(model="base", prompt=ids, max_tokens=8, logprobs=1, temperature=0).choices[0]
    again = client.completions.create(prompt=[*ids, *_ids(running, drawn.text)], max_tokens=0, **how).choices[0]
    if "\ufffd" not in drawn.text:
        assert again.logprobs.token_logprobs[-8:] == pytest.approx(drawn.logprobs.token_logprobs, abs=1e-3)


def _ids(running: Running, text: str) -> list[int]:
    body = {"prompt": text, "model": "base", "add_special_tokens": False}
    return running.post("/tokenize", body).json()["tokens"]


def test_async_client(running: Running) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any") as client:
            stream = await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "x"}], max_tokens=5, stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream])

    assert asyncio.run(ask())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1), ("temperature", "1"), ("temperature", True), ("top_p", 0), ("n", 0), ("n", 9), ("n", 1e9),
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 1.5), ("stop", ["x"] * 9), ("stop", "x" * 65),
        ("stop", [""]), ("stop", [1]), ("logit_bias", {"a": 1}), ("logit_bias", {"1": 101}), ("logit_bias", {"999": 1}),
        ("seed", 2**64), ("seed", "1"), ("top_logprobs", 21), ("top_logprobs", 2), ("presence_penalty", 3),
        ("top_k", 0.5), ("min_p", 2), ("typical_p", 0), ("repetition_penalty", 0), ("min_tokens", 99),
        ("stop_token_ids", [259]), ("stop_token_ids", [-1]), ("messages", []), ("messages", None), ("messages", "hi"),
        ("messages", [123]), ("messages", [{}]), ("messages", [{"role": 123}]), ("messages", [{"role": "user"}]),
        ("messages", [{"role": "nobody", "content": "x"}]),
        ("messages", [{"role": "user", "content": "x", "name": "y"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]),
        ("messages", [*USER, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]),
        ("messages", [{"role": "user", "content": "長" * 300}]), ("chat_template", "{{ evil }}"),
        ("tools", [{"type": "function", "function": {"name": "a b"}}]), ("tool_choice", "required"),
        ("store", True), ("reasoning_effort", "low"),
        ("stream_options", {"include_usage": True}), ("frobnicate", 1), ("model", 5), ("max_completion_tokens", 7),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(running: Running, field: str, value: Any) -> None:
    body = {"model": "tiny", "messages": USER, "max_tokens": 5, field: value}
    reply = running.post("/v1/chat/completions", body)
    error = reply.json()["error"]
    assert reply.status_code == 400, reply.text
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert field in (error["param"] or error["message"])
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    "more",
    [
        {"n": None, "stop": None, "logit_bias": None, "top_logprobs": None, "seed": None, "stream": None},
        {"n": 1, "logit_bias": {}, "stop": [], "tools": [], "metadata": {}, "store": False, "user": "me"},
        {"seed": 2**63}, {"seed": -(2**63)}, {"seed": 0}, {"response_format": {"type": "text"}}, {"top_k": -1},
    ],
)  # fmt: skip
def test_values_that_change_nothing_pass(running: Running, more: dict[str, Any]) -> None:
    reply = running.post("/v1/chat/completions", {"model": "tiny", "messages": USER, "max_tokens": 2, **more})
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    "more",
    [{"prompt": []}, {"prompt": [259]}, {"prompt": [-1]}, {"prompt": [[1], "a"]}, {"prompt": [[]]}, {"prompt": 5},
     {"prompt": ["a", 1]}, {"prompt": ["a"] * 129}, {"suffix": "x"}, {"best_of": 3}, {"logprobs": 21},
     {"logprobs": True}, {"max_tokens": 0}, {"prompt": [1] * 256}, {"prompt": [10**12]}],
)  # fmt: skip
def test_completions_refuse_too(running: Running, more: dict[str, Any]) -> None:
    reply = running.post("/v1/completions", {"model": "base", "prompt": "x", "max_tokens": 3, **more})
    assert reply.status_code == 400, reply.text


def test_a_model_without_a_template_is_not_asked_to_talk(running: Running) -> None:
    body = {"model": "base", "messages": USER, "max_tokens": 2}
    reply = running.post("/v1/chat/completions", body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "chat_template")
    assert running.post("/v1/chat/completions", body | {"chat_template": "alpaca"}).status_code == 200
