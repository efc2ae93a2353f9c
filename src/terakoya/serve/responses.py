"""/v1/responses without memory: what is asked is in the request, and nothing is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from terakoya.serve import asking, chat
from terakoya.serve.fields import ChatRequest, JsonObject, PlainText, Strict
from terakoya.serve.house import House
from terakoya.serve.job import Job, broken
from terakoya.serve.live import Live, packed
from terakoya.serve.openai import answer, talked


class Part(Strict):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = Field(None, max_length=0)
    logprobs: list[Any] | None = Field(None, max_length=0)


class Item(Strict):
    type: Literal["message"] | None = None
    role: str
    content: str | list[Part]
    id: str | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class SchemaForm(Strict):
    type: Literal["json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextForm(Strict):
    format: PlainText | JsonObject | SchemaForm | None = None


class ResponsesRequest(Strict):
    """POST /v1/responses"""

    model: str | None = Field(None, max_length=200)
    input: str | list[Item]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=1 << 24)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    text: TextForm | None = None
    user: str | None = Field(None, max_length=512)
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    tools: list[Any] | None = Field(None, max_length=0)
    metadata: dict[str, str] | None = Field(None, max_length=0)


def routes(house: House) -> APIRouter:
    """Build the route."""
    router = APIRouter(tags=["OpenAI"])

    @router.post("/v1/responses")
    async def responses(body: ResponsesRequest, http: Request) -> Response:
        """Answer; nothing is stored, so there is no previous response to go on from."""
        asked = ChatRequest.model_validate(_chat(body))
        job, talk = await talked(house, asked, http)
        if body.stream:
            return Live(_events(job, body, talk), job.close, house.limits)
        try:
            done = (await job.finish(http.receive))[0]
            text, _, _ = chat.read(talk, done.text)
            return answer(_response(job, body, text, done.finish or "stop"))
        finally:
            job.close()

    return router


def _chat(body: ResponsesRequest) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    if body.instructions:
        rows.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        rows.append({"role": "user", "content": body.input})
    else:
        for item in body.input:
            text = item.content if isinstance(item.content, str) else "".join(part.text for part in item.content)
            rows.append({"role": item.role, "content": text})
    form = body.text.format if body.text else None
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": rows,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "user": body.user,
    }
    if isinstance(form, SchemaForm):
        fields["response_format"] = {"type": "json_schema", "json_schema": {"schema": form.schema_, "name": form.name}}
    elif form is not None:
        fields["response_format"] = {"type": form.type}
    return fields


def _response(job: Job, body: ResponsesRequest, text: str | None, finish: str | None) -> dict[str, Any]:
    status = "in_progress" if finish is None else "incomplete" if finish == "length" else "completed"
    usage = job.usage()
    return {
        "id": f"resp_{job.key}",
        "object": "response",
        "created_at": job.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": job.served.name,
        "output": [] if text is None else [_item(job, text, status)],
        "parallel_tool_calls": False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "metadata": {},
        "usage": None
        if finish is None
        else {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        },
    }


def _item(job: Job, text: str | None, status: str) -> dict[str, Any]:
    content = [] if text is None else [_part(text)]
    return {"type": "message", "id": f"msg_{job.key}", "status": status, "role": "assistant", "content": content}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


async def _events(job: Job, body: ResponsesRequest, talk: asking.Talk) -> AsyncIterator[bytes]:
    number = 0

    def event(kind: str, **more: Any) -> bytes:
        nonlocal number
        number += 1
        data = packed({"type": kind, "sequence_number": number - 1, **more})
        return f"event: {kind}\n".encode() + b"data: " + data + b"\n\n"

    place = {"item_id": f"msg_{job.key}", "output_index": 0, "content_index": 0}
    yield event("response.created", response=_response(job, body, None, None))
    yield event("response.in_progress", response=_response(job, body, None, None))
    yield event("response.output_item.added", output_index=0, item=_item(job, None, "in_progress"))
    yield event("response.content_part.added", **place, part=_part(""))
    reader, text = chat.Reader(talk.reader()), ""
    async for delta in job.news():
        for said in reader.take(delta.text, delta.finish is not None):
            if said.get("content"):
                text += said["content"]
                yield event("response.output_text.delta", **place, delta=said["content"], logprobs=[])
        if delta.finish is not None:
            if (problem := broken(delta)) is not None:
                error = problem.body()["error"]
                yield event("error", code=error["code"], message=error["message"], param=error["param"])
                return
            whole = _response(job, body, text, delta.finish)
            yield event("response.output_text.done", **place, text=text, logprobs=[])
            yield event("response.content_part.done", **place, part=_part(text))
            yield event("response.output_item.done", output_index=0, item=whole["output"][0])
            yield event(f"response.{whole['status']}", response=whole)
