"""/v1/chat/completions."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from terakoya.engine.regions import Call, Piece, whole
from terakoya.engine.request import Completion, Delta
from terakoya.serve.asking import Talk
from terakoya.serve.fields import ChatRequest
from terakoya.serve.job import Job, broken
from terakoya.serve.live import DONE, event
from terakoya.serve.tokens import chat_logprobs

REASONS = {"stop": "stop", "end": "stop", "length": "length", "abort": "abort", "deadline": "deadline"}


async def events(job: Job, body: ChatRequest, talk: Talk) -> AsyncIterator[bytes]:
    """Yield the answer as server-sent events: role, words, reason, perhaps usage, and the end."""
    head = _head(job, "chat.completion.chunk")
    readers = [Reader(talk) for _ in job.done]
    for choice in job.done:
        yield event(_chunk(head, choice.index, {"role": "assistant", "content": ""}))
    async for delta in job.news():
        reader = readers[delta.index]
        shown = _shown(job, delta)
        news = reader.take(delta.text, delta.finish is not None)
        if shown and not news:
            news = [{"content": ""}]
        for said in news:
            chunk = _chunk(head, delta.index, said)
            if body.logprobs and shown is not None:
                chunk["choices"][0]["logprobs"] = {"content": shown, "refusal": None}
                shown = None
            yield event(chunk)
        if delta.finish is not None:
            problem = broken(delta)
            if problem is not None:
                yield event(problem.body())
                break
            yield event(_chunk(head, delta.index, {}, reader.reason(REASONS[delta.finish])))
    else:
        if body.stream_options and body.stream_options.include_usage:
            yield event({**head, "choices": [], "usage": job.usage(), "timings": job.timings()})
    yield DONE


class Reader:
    """One answer as it comes: what of it is text, reasoning or a call."""

    def __init__(self, talk: Talk) -> None:
        self._regions, self._single = talk.reader(), talk.single
        self.calls = 0

    def take(self, text: str, last: bool) -> list[dict[str, Any]]:
        """Take a piece of text; return the deltas that it makes."""
        return [self._delta(piece) for piece in self._pieces(text, last)]

    def whole(self, text: str) -> tuple[str, str, list[Call]]:
        """Read a whole answer -> (text, reasoning, calls)."""
        return whole(self._pieces(text, True))

    def _pieces(self, text: str, last: bool) -> list[Piece]:
        pieces = [*(self._regions.push(text) if text else ()), *(self._regions.finish() if last else ())]
        if not self._single:
            return pieces
        if self.calls:
            return []
        first = next((i for i, piece in enumerate(pieces) if piece.call), len(pieces))
        return pieces[: first + 1]

    def _delta(self, piece: Piece) -> dict[str, Any]:
        if piece.call is not None:
            self.calls += 1
            return {"tool_calls": [{"index": self.calls - 1, **called(piece.call)}]}
        return {"reasoning_content" if piece.kind == "reasoning" else "content": piece.text}

    def reason(self, reason: str) -> str:
        """Why the answer ended: calls count more than an ordinary end."""
        return "tool_calls" if self.calls and reason == "stop" else reason


def called(call: Call) -> dict[str, Any]:
    """Write a call, with an id of its own."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def read(talk: Talk, text: str) -> tuple[str, str, list[Call]]:
    """Read a whole answer -> (text, reasoning, calls)."""
    return Reader(talk).whole(text)


def answer(job: Job, done: Sequence[Completion], body: ChatRequest, talk: Talk) -> dict[str, Any]:
    """Return the answer in one piece: the deltas joined."""
    choices = []
    for completion in done:
        text, reasoning, calls = read(talk, completion.text)
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = [called(call) for call in calls]
        shown = None
        if body.logprobs:
            kept = (p for p in completion.logprobs if not _end(job, completion.index, p.id))
            shown = {"content": chat_logprobs(job.served, kept), "refusal": None}
        reason = REASONS[completion.finish or "stop"]
        reason = "tool_calls" if calls and reason == "stop" else reason
        choices.append({"index": completion.index, "message": message, "logprobs": shown, "finish_reason": reason})
    return {**_head(job, "chat.completion"), "choices": choices, "usage": job.usage(), "timings": job.timings()}


def _head(job: Job, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{job.key}", "object": kind, "created": job.created, "model": job.served.name}


def _chunk(head: dict[str, Any], index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {**head, "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}]}


def _shown(job: Job, delta: Delta) -> list[dict[str, Any]] | None:
    kept = [p for p in delta.logprobs if not _end(job, delta.index, p.id)]
    return chat_logprobs(job.served, kept)


def _end(job: Job, index: int, id: int) -> bool:
    """Whether a token says nothing but that the answer is over."""
    request = job.handles[0].request
    ends = request.stop_ids if request.ignore_end else request.stop_ids | job.served.tokenizer.stops
    return id in ends and len(job.done[index].ids) >= request.sampling.min_tokens
