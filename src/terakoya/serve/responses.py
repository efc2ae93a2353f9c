"""/v1/responses without memory: what is asked is in the request, and nothing is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Discriminator, Field, Tag, field_validator, model_validator
from starlette.requests import Request
from starlette.responses import Response

from terakoya.serve import asking, chat
from terakoya.serve.fields import ChatRequest, JsonObject, No, PlainText, Strict
from terakoya.serve.house import House
from terakoya.serve.items import Output, written
from terakoya.serve.job import Job, broken
from terakoya.serve.live import Live, packed
from terakoya.serve.openai import answer, talked
from terakoya.serve.schema import EVENTS


class Part(Strict):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = Field(None, max_length=0)
    logprobs: list[Any] | None = Field(None, max_length=0)


class Numbered(Strict):
    """What our own items have, and clients send back."""

    id: str | None = Field(None, max_length=256)
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class Said(Numbered):
    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]


class Thought(Strict):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class Reasoned(Numbered):
    type: Literal["reasoning"]
    summary: list[Thought] = Field(default_factory=list, max_length=64)
    content: list[Thought] | None = Field(None, max_length=64)
    encrypted_content: None = None


class Called(Numbered):
    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=256)
    name: str = Field(max_length=256)
    arguments: str


class CallOutput(Numbered):
    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=256)
    output: str | list[Part]


def _kind(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else None
    return f"{kind}:" if kind in ("reasoning", "function_call", "function_call_output") else "message:"


# The colon keeps the tags out of the names of fields in errors.
Item = Annotated[
    Annotated[Said, Tag("message:")]
    | Annotated[Reasoned, Tag("reasoning:")]
    | Annotated[Called, Tag("function_call:")]
    | Annotated[CallOutput, Tag("function_call_output:")],
    Discriminator(_kind),
]


class SchemaForm(Strict):
    type: Literal["json_schema"]
    name: str | None = Field(None, max_length=256)
    description: str | None = Field(None, max_length=16_384)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextForm(Strict):
    format: Annotated[PlainText | JsonObject | SchemaForm, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class Tool(Strict):
    type: Literal["function"]
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = Field(None, max_length=16_384)
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Strict):
    type: Literal["function"]
    name: str


class Reasoning(Strict):
    """A model that thinks aloud does so as its template says: how much cannot be asked for."""

    effort: None = None
    summary: None = None


class Options(Strict):
    include_obfuscation: No | None = None


class ResponsesRequest(Strict):
    """POST /v1/responses"""

    model: str | None = Field(None, max_length=200)
    input: str | Annotated[list[Item], Field(min_length=1, max_length=4096)]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: Options | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=1 << 24)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    text: TextForm | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: one call at most")
    reasoning: Reasoning | None = None
    user: str | None = Field(None, max_length=512, description="cached prompts are not shared between users")
    prompt_cache_key: str | None = Field(None, max_length=512, description="keeps cached prompts apart, like user")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="comes back as it is")
    # Fields with one value that changes nothing; any other is refused.
    store: No | None = None
    background: No | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    previous_response_id: str | None = None

    @field_validator("previous_response_id")
    @classmethod
    def _none(cls, given: str | None) -> None:
        if given is not None:
            raise ValueError("no response is kept here: send the whole conversation as input")

    @model_validator(mode="after")
    def _agree(self) -> ResponsesRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=true")
        return self


def routes(house: House) -> APIRouter:
    """Build the route."""
    router = APIRouter(tags=["OpenAI"])

    @router.post("/v1/responses", responses=EVENTS)
    async def responses(body: ResponsesRequest, http: Request) -> Response:
        """Answer; nothing is stored, so there is no previous response to go on from."""
        asked = ChatRequest.model_validate(asked_as_chat(body))
        job, talk = await talked(house, asked, http)
        if body.stream:
            return Live(_events(job, body, talk), job.close, house.limits)
        try:
            done = (await job.finish(http.receive))[0]
            output = Output(job.key)
            for said in chat.Reader(talk).take(done.text, True):
                output.take(said)
            output.end(done.finish or "stop")
            return answer(written(job, body, output, done.finish or "stop"))
        finally:
            job.close()

    return router


def asked_as_chat(body: ResponsesRequest) -> dict[str, Any]:
    """Return the fields of the same question to /v1/chat/completions."""
    form = body.text.format if body.text else None
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": _rows(body),
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "user": body.user,
        "prompt_cache_key": body.prompt_cache_key,
        "parallel_tool_calls": body.parallel_tool_calls,
        "tool_choice": body.tool_choice,
    }
    if body.tools:
        told = (tool.model_dump(exclude_none=True, exclude={"type"}) for tool in body.tools)
        fields["tools"] = [{"type": "function", "function": function} for function in told]
    if isinstance(body.tool_choice, NamedTool):
        fields["tool_choice"] = {"type": "function", "function": {"name": body.tool_choice.name}}
    if isinstance(form, SchemaForm):
        fields["response_format"] = {"type": "json_schema", "json_schema": {"schema": form.schema_, "name": form.name}}
    elif form is not None:
        fields["response_format"] = {"type": form.type}
    return fields


def _rows(body: ResponsesRequest) -> list[dict[str, Any]]:
    """Turn items into messages: reasoning, text and calls that follow one another are one turn of the assistant."""
    rows: list[dict[str, Any]] = []
    if body.instructions:
        rows.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*rows, {"role": "user", "content": body.input}]
    for item in body.input:
        match item:
            case Said():
                turn = rows[-1] if rows else {}
                if item.role == "assistant" and turn.get("reasoning_content") and not turn["content"]:
                    turn["content"] = _text(item.content)
                else:
                    rows.append({"role": item.role, "content": _text(item.content)})
            case CallOutput():
                rows.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
            case Reasoned():
                thoughts = "".join(one.text for one in item.content or item.summary)
                rows.append({"role": "assistant", "content": "", "reasoning_content": thoughts or None})
            case Called():
                if not rows or rows[-1]["role"] != "assistant":
                    rows.append({"role": "assistant", "content": ""})
                function = {"name": item.name, "arguments": item.arguments}
                rows[-1].setdefault("tool_calls", []).append({"id": item.call_id, "function": function})
    return rows


def _text(content: str | list[Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


async def _events(job: Job, body: ResponsesRequest, talk: asking.Talk) -> AsyncIterator[bytes]:
    number = 0

    def event(kind: str, more: dict[str, Any]) -> bytes:
        nonlocal number
        number += 1
        data = packed({"type": kind, "sequence_number": number - 1, **more})
        return f"event: {kind}\n".encode() + b"data: " + data + b"\n\n"

    output, reader = Output(job.key), chat.Reader(talk)
    for kind in ("response.created", "response.in_progress"):
        yield event(kind, {"response": written(job, body, output, None)})
    async for delta in job.news():
        for said in reader.take(delta.text, delta.finish is not None):
            for kind, more in output.take(said):
                yield event(kind, more)
        if delta.finish is not None:
            if (problem := broken(delta)) is not None:
                error = problem.body()["error"]
                yield event("error", {"code": error["code"], "message": error["message"], "param": error["param"]})
                return
            for kind, more in output.end(delta.finish):
                yield event(kind, more)
            whole = written(job, body, output, delta.finish)
            yield event(f"response.{whole['status']}", {"response": whole})
