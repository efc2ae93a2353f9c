"""/v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from terakoya.engine.request import Completion, Delta
from terakoya.serve.fields import ChatRequest
from terakoya.serve.job import Job, broken
from terakoya.serve.live import DONE, event
from terakoya.serve.tokens import chat_logprobs

REASONS = {"stop": "stop", "end": "stop", "length": "length", "abort": "abort", "deadline": "deadline"}


async def events(job: Job, body: ChatRequest) -> AsyncIterator[bytes]:
    """Yield the answer as server-sent events: role, words, reason, perhaps usage, and the end."""
    head = _head(job, "chat.completion.chunk")
    for choice in job.done:
        yield event(_chunk(head, choice.index, {"role": "assistant", "content": ""}))
    async for delta in job.news():
        shown = _shown(job, delta)
        if delta.text or shown:
            chunk = _chunk(head, delta.index, {"content": delta.text})
            if body.logprobs:
                chunk["choices"][0]["logprobs"] = {"content": shown, "refusal": None}
            yield event(chunk)
        if delta.finish is not None:
            problem = broken(delta)
            if problem is not None:
                yield event(problem.body())
                break
            yield event(_chunk(head, delta.index, {}, REASONS[delta.finish]))
    else:
        if body.stream_options and body.stream_options.include_usage:
            yield event({**head, "choices": [], "usage": job.usage(), "timings": job.timings()})
    yield DONE


def whole(job: Job, done: list[Completion], body: ChatRequest) -> dict[str, Any]:
    """Return the answer in one piece: the deltas joined."""
    choices = []
    for completion in done:
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        shown = None
        if body.logprobs:
            kept = (p for p in completion.logprobs if not _end(job, completion.index, p.id))
            shown = {"content": chat_logprobs(job.served, kept), "refusal": None}
        reason = REASONS[completion.finish or "stop"]
        choices.append({"index": completion.index, "message": message, "logprobs": shown, "finish_reason": reason})
    return {**_head(job, "chat.completion"), "choices": choices, "usage": job.usage(), "timings": job.timings()}


def _head(job: Job, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{job.key}", "object": kind, "created": job.created, "model": job.served.name}


def _chunk(head: dict[str, Any], index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {**head, "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}]}


def _shown(job: Job, delta: Delta) -> list[dict[str, Any]]:
    kept = (p for p in delta.logprobs if not _end(job, delta.index, p.id))
    return chat_logprobs(job.served, kept)


def _end(job: Job, index: int, id: int) -> bool:
    """Whether a token says nothing but that the answer is over."""
    request = job.handles[0].request
    ends = request.stop_ids if request.ignore_end else request.stop_ids | job.served.tokenizer.stops
    return id in ends and len(job.done[index].ids) >= request.sampling.min_tokens
