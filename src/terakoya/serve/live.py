"""An answer that is sent as it comes: server-sent events, or JSON lines."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from terakoya.serve.job import gone
from terakoya.serve.settings import Limits

log = logging.getLogger("terakoya.serve")
DONE = b"data: [DONE]\n\n"
EVENTS, LINES = "text/event-stream; charset=utf-8", "application/x-ndjson"


def event(value: Any) -> bytes:
    """Write one server-sent event."""
    return b"data: " + packed(value) + b"\n\n"


def line(value: Any) -> bytes:
    """Write one line of JSON lines."""
    return packed(value) + b"\n"


def packed(value: Any) -> bytes:
    """Write JSON in few bytes, any script as itself."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


class Live(Response):
    """Send chunks as they come; stop, and `close`, as soon as the client has gone or takes nothing any more."""

    def __init__(
        self, chunks: AsyncIterator[bytes], close: Callable[[], None], limits: Limits, kind: str = EVENTS
    ) -> None:
        super().__init__(
            media_type=None, headers={"content-type": kind, "cache-control": "no-store", "x-accel-buffering": "no"}
        )
        self._chunks, self._close, self._limits = chunks, close, limits
        self._beat = b": still here\n\n" if kind == EVENTS else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        talking, leaving = asyncio.create_task(self._talk(send)), asyncio.create_task(gone(receive))
        try:
            await asyncio.wait((talking, leaving), return_when=asyncio.FIRST_COMPLETED)
            if talking.done():
                talking.result()
        except TimeoutError:
            log.info("a reader took nothing for %g s", self._limits.write_seconds)
        finally:
            self._close()
            talking.cancel()
            leaving.cancel()
            await asyncio.gather(talking, leaving, return_exceptions=True)

    async def _talk(self, send: Send) -> None:
        headers = [(k, v) for k, v in self.raw_headers if k != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for chunk in self._with_beats():
            async with asyncio.timeout(self._limits.write_seconds):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _with_beats(self) -> AsyncIterator[bytes]:
        """The chunks, with a sign of life where nothing comes for long."""
        ahead: asyncio.Task[bytes | None] | None = None
        try:
            while True:
                ahead = ahead or asyncio.create_task(self._next())
                await asyncio.wait((ahead,), timeout=self._limits.beat_seconds)
                if not ahead.done():
                    if self._beat:
                        yield self._beat
                    continue
                chunk, ahead = ahead.result(), None
                if chunk is None:
                    return
                yield chunk
        finally:
            if ahead is not None:
                ahead.cancel()

    async def _next(self) -> bytes | None:
        return await anext(self._chunks, None)
