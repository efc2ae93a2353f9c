"""Ollama's way of asking, in front of the same engine: JSON lines, options, times in nanoseconds."""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field, field_validator
from starlette.requests import Request
from starlette.responses import Response

from terakoya import __version__
from terakoya.serve import asking, chat, completions, schema
from terakoya.serve.embeddings import some, vectors
from terakoya.serve.fields import ChatRequest, CompletionRequest, Strict, Tool
from terakoya.serve.house import House
from terakoya.serve.job import Job, broken, unless_gone
from terakoya.serve.live import LINES, Live, line
from terakoya.serve.openai import answer, talked
from terakoya.serve.problem import Problem
from terakoya.serve.shelf import Served

REASONS = {"stop": "stop", "end": "stop", "length": "length"}


class Options(Strict):
    """How to draw. Defaults are Ollama's, but for repeat_penalty, which is off."""

    temperature: float | None = Field(None, ge=0, le=100)
    top_k: int | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repeat_penalty: float | None = Field(None, ge=0.01, le=100)
    repeat_last_n: int | None = Field(None, ge=-1, le=-1, description="all")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: str | list[str] | None = None
    num_predict: int | None = Field(None, ge=-2)
    num_ctx: int | None = Field(None, ge=1, description="at most the model's context, which there always is")
    mirostat: int | None = Field(None, ge=0, le=0)


class Function(Strict):
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Call(Strict):
    id: str | None = None
    function: Function


class Message(Strict):
    role: str = Field(max_length=64)
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    images: list[str] | None = Field(None, max_length=0)


class Kept(Strict):
    model: str = Field(max_length=200)
    keep_alive: float | str | None = None


class Asked(Kept):
    options: Options | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    stream: bool | None = None
    think: bool | None = None


class Context(Strict):
    num_ctx: int | None = Field(None, ge=1)


class Embed(Kept):
    """POST /api/embed"""

    input: str | list[str]
    truncate: bool | None = Field(None, description="true: of a text that is too long, the end is left out")
    dimensions: int | None = Field(None, ge=1)
    options: Context | None = None

    @field_validator("input")
    @classmethod
    def _some(cls, given: str | list[str]) -> str | list[str]:
        return some(given)


class OldEmbed(Kept):
    """POST /api/embeddings"""

    prompt: str
    options: Context | None = None


class OllamaChat(Asked):
    """POST /api/chat"""

    messages: list[Message] = Field(default_factory=list, max_length=4096)
    tools: list[Tool] | None = Field(None, max_length=128)


class Generate(Asked):
    """POST /api/generate"""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: Literal[""] | None = None
    template: Literal[""] | None = None
    images: list[str] | None = Field(None, max_length=0)


class Named(Strict):
    model: str = Field(max_length=200)
    verbose: bool | None = None


def routes(house: House) -> APIRouter:
    """Build the routes."""
    router = APIRouter(tags=["Ollama"])

    @router.post("/api/chat", responses=schema.LINES)
    async def api_chat(body: OllamaChat, http: Request) -> Response:
        """Answer a conversation."""
        await _settle(house, body)
        if not body.messages:
            return answer(_loaded(body.model, {"message": {"role": "assistant", "content": ""}}))
        rows = [_row(m) for m in body.messages]
        return await _talk(house, body, rows, body.tools, http, _message)

    @router.post("/api/generate", responses=schema.LINES)
    async def api_generate(body: Generate, http: Request) -> Response:
        """Answer a prompt; with `raw`, or from a model that has no chat template, continue it."""
        served = await _settle(house, body)
        if not body.prompt:
            return answer(_loaded(body.model, {"response": ""}))
        if body.raw or not served.chats:
            if body.system:
                raise Problem(400, "system: has no place where no template is used", param="system")
            return await _continue(house, body, http)
        rows = [{"role": "system", "content": body.system}] if body.system else []
        return await _talk(house, body, [*rows, {"role": "user", "content": body.prompt}], None, http, _response)

    @router.post("/api/embed")
    async def embed(body: Embed, http: Request) -> Response:
        """Turn texts into vectors of length one."""
        begun = time.perf_counter()
        await _settle(house, body)
        name = house.shelf.known(body.model)
        work = vectors(house, name, body.input, None, body.dimensions, cut=bool(body.truncate))
        found = await unless_gone(work, http.receive)
        took = round((time.perf_counter() - begun) * 1e9)
        told = {"total_duration": took, "load_duration": 0, "prompt_eval_count": found.tokens}
        return answer({"model": body.model, "embeddings": found.rows.tolist(), **told})

    @router.post("/api/embeddings")
    async def embeddings(body: OldEmbed, http: Request) -> Response:
        """Turn one text into a vector; the older form."""
        await _settle(house, body)
        work = vectors(house, house.shelf.known(body.model), body.prompt, None, None)
        return answer({"embedding": (await unless_gone(work, http.receive)).rows[0].tolist()})

    @router.get("/api/tags")
    async def tags() -> Response:
        """List the models."""
        return answer({"models": [_about(house, name) for name in house.shelf.names]})

    @router.get("/api/ps")
    async def ps() -> Response:
        """List the models that are open."""
        return answer({"models": [_about(house, name) for name in house.shelf.open]})

    @router.post("/api/show")
    async def show(body: Named) -> Response:
        """Tell of one model."""
        return answer(await house.quickly(body.model, _shown))

    @router.get("/api/version")
    async def version() -> Response:
        """Tell the version."""
        return answer({"version": __version__})

    return router


async def _settle(house: House, body: Asked | Embed | OldEmbed) -> Served:
    """Open the model; take note of how long it is to stay open."""
    lease = await house.shelf.lease(body.model)
    lease.close()
    served = lease.served
    if body.keep_alive is not None:
        served.stay = seconds(body.keep_alive)
    most = body.options.num_ctx if body.options else None
    if most is not None and most > served.context:
        message = f"options.num_ctx: {most} is more than the {served.context} tokens there are"
        raise Problem(400, message, param="options.num_ctx")
    if isinstance(body, Asked) and body.think and not any(r.kind == "reasoning" for r in served.regions):
        raise Problem(400, f"think: {served.name} does not think aloud", param="think")
    return served


def seconds(given: float | str) -> float:
    """Read a duration as Go writes it ("5m", "1h30m"), or seconds; below zero: for ever."""
    if isinstance(given, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", given)
        if given in ("0", "-1"):
            given = float(given)
        elif not parts or "".join(n + unit for n, unit in parts) != given.removeprefix("-"):
            raise Problem(400, f"keep_alive: {given[:40]!r} is no duration, such as 5m", param="keep_alive")
        else:
            total = sum(float(n) * {"ms": 1e-3, "s": 1, "m": 60, "h": 3600}[unit] for n, unit in parts)
            given = -total if given.startswith("-") else total
    return float("inf") if given < 0 else given


def _drawing(body: Asked) -> dict[str, Any]:
    o = body.options or Options.model_validate({})
    fields: dict[str, Any] = {
        "model": body.model,
        "temperature": 0.8 if o.temperature is None else o.temperature,
        "top_k": 40 if o.top_k is None else o.top_k,
        "top_p": 0.9 if o.top_p is None else o.top_p,
        "min_p": o.min_p,
        "typical_p": o.typical_p,
        "repetition_penalty": o.repeat_penalty,
        "presence_penalty": o.presence_penalty,
        "frequency_penalty": o.frequency_penalty,
        "seed": o.seed,
        "stop": o.stop,
    }
    if o.num_predict is not None and o.num_predict > 0:
        fields["max_tokens"] = o.num_predict
    if body.format == "json":
        fields["response_format"] = {"type": "json_object"}
    elif isinstance(body.format, dict):
        fields["response_format"] = {"type": "json_schema", "json_schema": {"schema": body.format}}
    return fields


def _row(message: Message) -> dict[str, Any]:
    row: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.tool_calls:
        row["tool_calls"] = [
            {"id": c.id, "function": {"name": c.function.name, "arguments": json.dumps(c.function.arguments)}}
            for c in message.tool_calls
        ]
    if message.tool_call_id or message.tool_name:
        row["tool_call_id"] = message.tool_call_id or message.tool_name
    if message.thinking:
        row["reasoning_content"] = message.thinking
    return row


Shape = Callable[[dict[str, Any]], dict[str, Any]]


def _message(said: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.get("content") or ""}
    if said.get("reasoning_content"):
        message["thinking"] = said["reasoning_content"]
    if said.get("tool_calls"):
        functions = [c["function"] for c in said["tool_calls"]]
        message["tool_calls"] = [
            {"function": {"name": f["name"], "arguments": json.loads(f["arguments"])}} for f in functions
        ]
    return {"message": message}


def _response(said: dict[str, Any]) -> dict[str, Any]:
    found = {"response": said.get("content") or ""}
    return found | ({"thinking": said["reasoning_content"]} if said.get("reasoning_content") else {})


async def _talk(
    house: House, body: Asked, rows: list[dict[str, Any]], tools: list[Tool] | None, http: Request, shape: Shape
) -> Response:
    fields = _drawing(body) | {"messages": rows}
    if tools:
        fields["tools"] = [tool.model_dump(exclude_none=True) for tool in tools]
    asked = ChatRequest.model_validate(fields)
    job, talk = await talked(house, asked, http)
    if body.stream is not False:
        return Live(_lines(job, talk, shape), job.close, house.limits, LINES)
    try:
        done = await job.finish(http.receive)
        whole = chat.answer(job, done, asked, talk)["choices"][0]["message"]
        return answer(_last(job, shape(whole), done[0].finish or "stop"))
    finally:
        job.close()


async def _continue(house: House, body: Generate, http: Request) -> Response:
    most = {"max_tokens": house.limits.answer}
    asked = CompletionRequest.model_validate(most | _drawing(body) | {"prompt": body.prompt})
    job = await house.begin(body.model, http, lambda s, who: asking.completions(s, asked, house.limits, who))
    if body.stream is not False:
        return Live(_lines(job, None, _response), job.close, house.limits, LINES)
    try:
        done = await job.finish(http.receive)
        text = completions.whole(job, done, asked, None)["choices"][0]["text"]
        return answer(_last(job, {"response": text}, done[0].finish or "stop"))
    finally:
        job.close()


async def _lines(job: Job, talk: asking.Talk | None, shape: Shape) -> AsyncIterator[bytes]:
    reader = chat.Reader(talk or _plain())
    async for delta in job.news():
        for said in reader.take(delta.text, delta.finish is not None):
            yield line({"model": job.served.name, "created_at": _now(), **shape(said), "done": False})
        if delta.finish is not None:
            problem = broken(delta)
            if problem is not None:
                yield line({"error": problem.message})
            else:
                yield line(_last(job, shape({}), delta.finish))


def _plain() -> asking.Talk:
    from terakoya.engine.request import Request as EngineRequest

    return asking.Talk(EngineRequest(()))


def _last(job: Job, said: dict[str, Any], finish: str) -> dict[str, Any]:
    usage, took = job.usage(), job.timings()
    first, total = round(took["first_token_ms"] * 1e6), round(took["total_ms"] * 1e6)
    return {
        "model": job.served.name,
        "created_at": _now(),
        **said,
        "done": True,
        "done_reason": REASONS.get(finish, finish),
        "total_duration": total,
        "load_duration": 0,
        "prompt_eval_count": usage["prompt_tokens"],
        "prompt_eval_duration": first,
        "eval_count": usage["completion_tokens"],
        "eval_duration": total - first,
    }


def _loaded(name: str, said: dict[str, Any]) -> dict[str, Any]:
    return {"model": name, "created_at": _now(), **said, "done": True, "done_reason": "load"}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")


def _about(house: House, name: str) -> dict[str, Any]:
    created = datetime.datetime.fromtimestamp(house.shelf.created, datetime.UTC).isoformat().replace("+00:00", "Z")
    found: dict[str, Any] = {"name": name, "model": name, "modified_at": created, "size": 0, "digest": ""}
    served = house.shelf.open.get(name)
    details = {
        "parent_model": "",
        "format": "",
        "family": "",
        "families": [],
        "parameter_size": "",
        "quantization_level": "",
    }
    if served is not None:
        found["size"] = sum(p.numel() * p.element_size() for p in served.loaded.model.parameters())
        found["context_length"] = served.context
        details |= _details(served)
    return found | {"details": details}


def _details(served: Served) -> dict[str, Any]:
    count = sum(p.numel() for p in served.loaded.model.parameters())
    size = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"
    family = served.loaded.family
    return {"format": "terakoya", "family": family, "families": [family], "parameter_size": size}


def _shown(served: Served) -> dict[str, Any]:
    tools = ["tools"] if served.chats else []
    thinking = ["thinking"] if any(r.kind == "reasoning" for r in served.regions) else []
    return {
        "modelfile": "",
        "parameters": "",
        "template": served.tokenizer.jinja or served.tokenizer.template or "",
        "details": {"parent_model": "", "quantization_level": "", **_details(served)},
        "model_info": {
            "general.architecture": served.loaded.family,
            "general.parameter_count": sum(p.numel() for p in served.loaded.model.parameters()),
            f"{served.loaded.family}.context_length": served.context,
        },
        "capabilities": [*(["completion"] if served.writes else []), "embedding", *tools, *thinking],
    }
