"""One request on its way through the engine: its choices as news, its end, and what it took."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from terakoya.engine.handle import Handle
from terakoya.engine.request import Completion, Delta, EngineError, Request
from terakoya.serve.guard import Receive
from terakoya.serve.metrics import Metrics
from terakoya.serve.problem import Problem, problem_of
from terakoya.serve.shelf import Lease

T = TypeVar("T")


class Job:
    """The choices of one HTTP request, numbered through over its prompts. `close` frees everything, at any time."""

    def __init__(self, lease: Lease, requests: Sequence[Request], metrics: Metrics) -> None:
        self.served, self.metrics = lease.served, metrics
        self.created, self._begun = int(time.time()), time.monotonic()
        self.key = secrets.token_hex(12)
        self._lease, self.handles = lease, list[Handle]()
        self._first: float | None = None
        self._last: float | None = None
        self.done: list[Completion] = []
        metrics.open += 1
        self._open = True
        try:
            for request in requests:
                self.handles.append(self.served.engine.submit(request))
                self.done += [Completion(len(self.done) + i) for i in range(request.n)]
        except BaseException as error:
            self.close()
            if isinstance(error, EngineError):
                metrics.rejected += error.kind == "overloaded"
                raise problem_of(error, retry=self._patience()) from None
            raise

    def close(self) -> None:
        """Cancel what still runs and give the model back."""
        if self._open:
            self._open = False
            left = any(handle.open for handle in self.handles)
            for handle in self.handles:
                handle.cancel()
            self._lease.close()
            self.metrics.open -= 1
            self.metrics.disconnected += left

    def _patience(self) -> int:
        """Seconds after which asking again makes sense: what an answer takes on average."""
        whole = self.metrics.whole
        return max(1, min(60, round(whole.sum / whole.total))) if whole.total else 1

    async def news(self) -> AsyncIterator[Delta]:
        """Yield the deltas of all choices as they come, `index` numbered through; `done` has them joined."""
        if len(self.handles) == 1:
            async for delta in self.handles[0]:
                yield self._note(delta)
            return
        queue: asyncio.Queue[Delta | None] = asyncio.Queue()
        pumps = [asyncio.create_task(_pump(h, i, queue)) for i, h in self._starts()]
        try:
            left = len(pumps)
            while left:
                delta = await queue.get()
                if delta is None:
                    left -= 1
                else:
                    yield self._note(delta)
        finally:
            for pump in pumps:
                pump.cancel()

    def _starts(self) -> list[tuple[int, Handle]]:
        found, at = [], 0
        for handle in self.handles:
            found.append((at, handle))
            at += handle.request.n
        return found

    def _note(self, delta: Delta) -> Delta:
        now = time.monotonic()
        if delta.ids:
            if self._first is None:
                self._first = now
                self.metrics.first.add(now - self._begun)
            elif self._last is not None:
                self.metrics.between.add(now - self._last)
            self._last = now
        self.done[delta.index].add(delta)
        if delta.finish is not None:
            self.metrics.finish(delta.finish)
            if delta.usage is not None:
                self.metrics.answer_tokens += delta.usage.completion
                self.metrics.cached_tokens += delta.usage.cached
            if all(c.finish is not None for c in self.done):
                self.metrics.whole.add(now - self._begun)
                self.metrics.prompt_tokens += self.prompt_tokens
        return delta

    async def finish(self, receive: Receive) -> list[Completion]:
        """Wait for all choices; where the client leaves, stop. Problem where an answer broke off."""
        await unless_gone(self._drain(), receive)
        for completion in self.done:
            if (problem := broken(completion)) is not None:
                raise problem
        return self.done

    async def _drain(self) -> None:
        async for _ in self.news():
            pass

    # ---- what it took

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, each counted once."""
        return sum(len(handle.request.prompt) + len(handle.request.source or ()) for handle in self.handles)

    def usage(self) -> dict[str, Any]:
        """Return the counts of tokens as OpenAI writes them."""
        answer = sum(c.usage.completion or len(c.ids) for c in self.done)
        cached = sum(self.done[at].usage.cached for at, _ in self._starts())
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": answer,
            "total_tokens": self.prompt_tokens + answer,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def timings(self) -> dict[str, Any]:
        """Return how long the first token and all of them took."""
        now = time.monotonic()
        first = (self._first or now) - self._begun
        answer = sum(len(c.ids) for c in self.done)
        rest = (self._last or now) - (self._first or now)
        rate = (answer - len(self.done)) / rest if rest > 0 and answer > len(self.done) else None
        return {
            "first_token_ms": round(first * 1e3, 1),
            "total_ms": round((now - self._begun) * 1e3, 1),
            "tokens_per_second": None if rate is None else round(rate, 2),
        }


def broken(completion: Completion | Delta) -> Problem | None:
    """Return why a choice has no good end, None where it has."""
    if completion.error is not None:
        return problem_of(completion.error)
    if completion.finish == "abort":
        return Problem(503, "the server ended before the answer did", code="aborted", retry=1)
    if completion.finish == "deadline":
        return Problem(504, "the answer took longer than the server allows", code="deadline")
    return None


async def _pump(handle: Handle, start: int, queue: asyncio.Queue[Delta | None]) -> None:
    async for delta in handle:
        queue.put_nowait(replace(delta, index=start + delta.index))
    queue.put_nowait(None)


async def unless_gone(work: Awaitable[T], receive: Receive) -> T:
    """Await `work`; cancel it where the client leaves first."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.create_task(gone(receive))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Problem(499, "the client left")
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
