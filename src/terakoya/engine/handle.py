"""The asker's end of a request: deltas as they come, to threads and to coroutines alike."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from terakoya.engine.request import Completion, Delta, Request


class Handle:
    """Iterate for the deltas of all choices (`for`, `async for`), or ask for the `result`. One consumer at a time.

    `drive` is called to make progress where the engine has no thread of its own.
    """

    def __init__(self, request: Request, drive: Callable[[], object] | None, wake: Callable[[], None]) -> None:
        self.request = request
        self.cancelled = False
        self.arrived = time.monotonic()
        self.open = request.n  # choices that have not ended
        self._drive, self._wake = drive, wake
        self._news: deque[Delta] = deque()
        self._changed = threading.Condition()
        self._patient = False  # nobody wants to know before the end
        self._sleepers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        limit = self.request.deadline
        return limit is not None and time.monotonic() - self.arrived >= limit

    def cancel(self) -> None:
        """Ask for the end; the deltas end with "abort" within a step. Again, or after the end, it does nothing."""
        self.cancelled = True
        self._wake()

    def put(self, delta: Delta) -> None:
        """Deliver (the engine calls this)."""
        with self._changed:
            self._news.append(delta)
            self.open -= delta.finish is not None
            if not (self._patient and self.open):
                self._changed.notify_all()
            sleepers, self._sleepers = self._sleepers, []
        for loop, future in sleepers:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_ring, future)

    def __iter__(self) -> Iterator[Delta]:
        while True:
            with self._changed:
                while not self._news and self.open and self._drive is None:
                    self._changed.wait()
                delta = self._news.popleft() if self._news else None
                done = not self.open
            if delta is not None:
                yield delta
            elif done:
                return
            else:
                assert self._drive is not None
                self._drive()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        try:
            while True:
                with self._changed:
                    delta = self._news.popleft() if self._news else None
                    done = not self.open
                    future = None
                    if delta is None and not done and self._drive is None:
                        loop = asyncio.get_running_loop()
                        future = loop.create_future()
                        self._sleepers.append((loop, future))
                if delta is not None:
                    yield delta
                elif done:
                    return
                elif future is not None:
                    await future
                else:
                    assert self._drive is not None
                    self._drive()
                    await asyncio.sleep(0)
        finally:
            if self.open:  # whoever listened has gone
                self.cancel()

    def result(self) -> list[Completion]:
        """Wait for the end; return the choices. An error is told in the completion, not raised."""
        if self._drive is None:
            with self._changed:
                self._patient = True  # to be woken for each token would take a core from the next step
                try:
                    self._changed.wait_for(lambda: not self.open)
                finally:
                    self._patient = False
        done = [Completion(i) for i in range(self.request.n)]
        for delta in self:
            done[delta.index].add(delta)
        return done


def _ring(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
