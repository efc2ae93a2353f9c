"""Listening: uvicorn with deadlines for headers, a bound on connections, and an end that lets answers finish."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from terakoya.serve.app import application
from terakoya.serve.house import House
from terakoya.serve.settings import LOOPBACK, Limits, Settings
from terakoya.serve.shelf import Shelf

log = logging.getLogger("terakoya.serve")


def protocol(limits: Limits) -> type[H11Protocol]:
    """Make a connection that is dropped where its headers do not come in time, or where there are too many."""

    class Connection(H11Protocol):
        deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections or self._crowded():
                transport.abort()
            self._expect()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                if self.deadline is None:
                    self._expect()
            elif self.deadline is not None:
                self.deadline.cancel()
                self.deadline = None

        def connection_lost(self, exc: Exception | None) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
            super().connection_lost(exc)

        def _crowded(self) -> bool:
            """Tell whether another machine has more connections than its share."""
            if self.client is None or self.client[0] in LOOPBACK:
                return False
            own = [c for c in self.connections if isinstance(c, Connection) and c.client]
            return sum(c.client[0] == self.client[0] for c in own if c.client) > limits.per_address

        def _expect(self) -> None:
            self.deadline = self.loop.call_later(limits.header_seconds, self._late)

        def _late(self) -> None:
            self.deadline = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.abort()

    return Connection


class Server(uvicorn.Server):
    """Serve a house. The first SIGTERM or Ctrl-C lets answers finish for `grace` seconds, the second ends at once."""

    def __init__(self, house: House) -> None:
        limits, settings = house.limits, house.settings
        config = uvicorn.Config(
            application(house),
            host=settings.host,
            port=settings.port,
            http=protocol(limits),
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=True,
            proxy_headers=False,
            timeout_keep_alive=round(limits.idle_seconds),
            timeout_graceful_shutdown=round(settings.grace) + 3,
            h11_max_incomplete_event_size=limits.headers,
        )
        super().__init__(config)
        self.house = house
        self.announce: Callable[[], object] = lambda: None

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if self.started:
            self.announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take the signals over without raising them again at the end: a server that was told to end, ended well."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to close, or stop waiting."""
        if self.house.closing:
            self.force_exit = True
        self.house.closing = True
        self.should_exit = True

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Let answers finish; after the grace, end them with the reason "abort"."""
        self.house.closing = True
        timer = asyncio.create_task(self._abort())
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    async def _abort(self) -> None:
        await asyncio.sleep(self.house.settings.grace)
        log.warning("answers that are not finished after %g s end now", self.house.settings.grace)
        await asyncio.to_thread(self.house.shelf.abort)

    @property
    def address(self) -> str:
        """Where it listens, once it does."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def server(shelf: Shelf, settings: Settings) -> Server:
    """Make a server; `run` it."""
    return Server(House(shelf, settings))
