"""The routes of OpenAI: models, chat, completions."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from terakoya.engine.request import Logprob
from terakoya.engine.request import Request as EngineRequest
from terakoya.serve import asking, chat, completions
from terakoya.serve.fields import ChatRequest, CompletionRequest
from terakoya.serve.house import House
from terakoya.serve.job import Job, unless_gone
from terakoya.serve.live import Live, packed
from terakoya.serve.problem import Problem
from terakoya.serve.schema import EVENTS
from terakoya.serve.shelf import Served
from terakoya.serve.tokens import prompt_logprobs


def answer(value: Any) -> Response:
    """Send JSON."""
    return Response(packed(value), media_type="application/json")


def routes(house: House) -> APIRouter:
    """Build the routes."""
    router = APIRouter(tags=["OpenAI"])

    @router.get("/v1/models")
    async def models() -> Response:
        """List the models."""
        return answer({"object": "list", "data": [_model(house, name) for name in house.shelf.names]})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """Tell of one model."""
        return answer(_model(house, house.shelf.known(name)))

    @router.post("/v1/chat/completions", responses=EVENTS)
    async def chat_completions(body: ChatRequest, http: Request) -> Response:
        """Answer a conversation."""
        job, talk = await talked(house, body, http)
        if body.stream:
            return Live(chat.events(job, body, talk), job.close, house.limits)
        try:
            return answer(chat.answer(job, await job.finish(http.receive), body, talk))
        finally:
            job.close()

    @router.post("/v1/completions", responses=EVENTS)
    async def text_completions(body: CompletionRequest, http: Request) -> Response:
        """Continue a text, or several."""
        return await _completions(house, body, http)

    return router


async def talked(house: House, body: ChatRequest, http: Request) -> tuple[Job, asking.Talk]:
    """Submit a conversation -> (the job, how its answer is to be read)."""
    kept: list[asking.Talk] = []

    def prepare(served: Served, who: str) -> list[EngineRequest]:
        kept.append(asking.chat(served, body, house.limits, who))
        return [kept[0].request]

    job = await house.begin(body.model, http, prepare)
    return job, kept[0]


async def _completions(house: House, body: CompletionRequest, http: Request) -> Response:
    scored = body.max_tokens == 0
    prompts: list[tuple[int, ...]] = []

    def prepare(served: Served, who: str) -> list[EngineRequest]:
        if body.echo and served.loaded.spec.sort != "decoder":
            raise Problem(400, "echo: this model reads the prompt and answers apart from it", param="echo")
        requests = asking.completions(served, body, house.limits, who)
        for request in requests:
            served.engine._check(request)
        prompts.extend(r.prompt for r in requests)
        return [] if scored else requests

    job = await house.begin(body.model, http, prepare)
    handed = False
    try:
        echo = await unless_gone(_echo(job, body, prompts), http.receive) if body.echo else None
        if scored:
            assert echo is not None
            return answer(completions.only_echo(job, body, echo, sum(map(len, prompts))))
        if body.stream:
            handed = True
            return Live(completions.events(job, body, echo), job.close, house.limits)
        return answer(completions.whole(job, await job.finish(http.receive), body, echo))
    finally:
        if not handed:
            job.close()


async def _echo(job: Job, body: CompletionRequest, prompts: list[tuple[int, ...]]) -> completions.Echo:
    """Write the prompts out, and score them one after another where log-probabilities are asked for."""
    tokenizer = job.served.tokenizer
    given = body.prompt
    texts: list[str] = []
    scores: list[list[tuple[int, Logprob | None]]] = []
    for i, ids in enumerate(prompts):
        one = given if isinstance(given, str) else given[i] if isinstance(given[0], str | list) else None
        texts.append(one if isinstance(one, str) else tokenizer.decode(ids))
        if body.logprobs is not None:
            found = await asyncio.to_thread(prompt_logprobs, job.served, ids, body.logprobs)
            scores.append(list(zip(ids, found, strict=True)))
        else:
            scores.append([])
    return completions.Echo(texts, scores)


def _model(house: House, name: str) -> dict[str, Any]:
    served = house.shelf.open.get(name)
    more: dict[str, Any] = {"loaded": served is not None, "parent": house.shelf.base(name)}
    if served is not None:
        more |= {"max_model_len": served.context, "chat": served.chats, "writes": served.writes is not None}
        more["template"] = served.tokenizer.template
    return {"id": name, "object": "model", "created": house.shelf.created, "owned_by": "terakoya", **more}
