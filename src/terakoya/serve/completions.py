"""/v1/completions: continue texts; with echo and logprobs, score them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from terakoya.engine.request import Completion, Logprob
from terakoya.serve.fields import CompletionRequest
from terakoya.serve.job import Job, broken
from terakoya.serve.live import DONE, event
from terakoya.serve.tokens import Legacy

REASONS = {"stop": "stop", "end": "stop", "length": "length", "abort": "abort", "deadline": "deadline"}


class Echo:
    """What stands before the answers: the prompts as text, and their log-probabilities where asked for."""

    def __init__(self, texts: Sequence[str], scores: Sequence[list[tuple[int, Logprob | None]]]) -> None:
        self.texts, self.scores = texts, scores


async def events(job: Job, body: CompletionRequest, echo: Echo | None) -> AsyncIterator[bytes]:
    """Yield the answers as server-sent events."""
    n = body.n or 1
    head = _head(job)
    legacy = [Legacy(job.served) for _ in job.done]
    for choice in job.done if echo else ():
        assert echo is not None
        told = legacy[choice.index].of(echo.scores[choice.index // n]) if body.logprobs is not None else None
        yield event(_chunk(head, choice.index, echo.texts[choice.index // n], told))
    async for delta in job.news():
        if delta.text or delta.logprobs:
            told = legacy[delta.index].of([(p.id, p) for p in delta.logprobs]) if body.logprobs is not None else None
            yield event(_chunk(head, delta.index, delta.text, told))
        if delta.finish is not None:
            problem = broken(delta)
            if problem is not None:
                yield event(problem.body())
                break
            yield event(_chunk(head, delta.index, "", None, REASONS[delta.finish]))
    else:
        if body.stream_options and body.stream_options.include_usage:
            yield event({**head, "choices": [], "usage": job.usage(), "timings": job.timings()})
    yield DONE


def whole(job: Job, done: list[Completion], body: CompletionRequest, echo: Echo | None) -> dict[str, Any]:
    """Return the answers in one piece."""
    choices = []
    for completion in done:
        which = completion.index // (body.n or 1)
        pairs = [*(echo.scores[which] if echo else ()), *((p.id, p) for p in completion.logprobs)]
        text = (echo.texts[which] if echo else "") + completion.text
        told = Legacy(job.served).of(pairs) if body.logprobs is not None else None
        choices.append(_choice(completion.index, text, told, REASONS[completion.finish or "stop"]))
    return {**_head(job), "choices": choices, "usage": job.usage(), "timings": job.timings()}


def only_echo(job: Job, body: CompletionRequest, echo: Echo, prompt_tokens: int) -> dict[str, Any]:
    """Return the prompts alone, for max_tokens=0."""
    choices = []
    for i, (text, score) in enumerate(zip(echo.texts, echo.scores, strict=True)):
        told = Legacy(job.served).of(score) if body.logprobs is not None else None
        choices.append(_choice(i, text, told, "length"))
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 0, "total_tokens": prompt_tokens}
    return {**_head(job), "choices": choices, "usage": usage}


def _head(job: Job) -> dict[str, Any]:
    return {"id": f"cmpl-{job.key}", "object": "text_completion", "created": job.created, "model": job.served.name}


def _choice(index: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _chunk(head: dict[str, Any], index: int, text: str, logprobs: Any, reason: str | None = None) -> dict[str, Any]:
    return {**head, "choices": [_choice(index, text, logprobs, reason)]}
