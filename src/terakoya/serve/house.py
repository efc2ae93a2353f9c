"""What all routes share: the models, the limits, the numbers, and whether the house is closing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from terakoya.engine.request import Request
from terakoya.serve.job import Job
from terakoya.serve.metrics import Metrics
from terakoya.serve.problem import Problem
from terakoya.serve.settings import Settings
from terakoya.serve.shelf import Served, Shelf

T = TypeVar("T")


class House:
    """The server's state; one per application."""

    def __init__(self, shelf: Shelf, settings: Settings) -> None:
        self.shelf, self.settings, self.limits = shelf, settings, settings.limits
        self.metrics = Metrics()
        self.closing = False
        self.ready = False

    def admit(self) -> None:
        """Refuse what comes while the server is closing."""
        if self.closing:
            raise Problem(503, "the server is closing", retry=5)

    async def begin(
        self, model: str | None, http: HttpRequest, prepare: Callable[[Served, str], Sequence[Request]]
    ) -> Job:
        """Open the model, turn the body into engine requests (in a thread: texts may be long), and submit them."""
        self.admit()
        lease = await self.shelf.lease(model)
        try:
            _ = lease.served.engine  # before anything of the text is read
            requests = await asyncio.to_thread(prepare, lease.served, tenant(http))
            return Job(lease, requests, self.metrics)
        except BaseException:
            lease.close()
            raise

    async def quickly(self, model: str | None, work: Callable[[Served], T]) -> T:
        """Do something with an open model in a thread."""
        lease = await self.shelf.lease(model)
        try:
            return await asyncio.to_thread(work, lease.served)
        finally:
            lease.close()


def tenant(http: HttpRequest) -> str:
    """Who asks, by the key: cached prompts are not shared between keys."""
    return http.scope.get("state", {}).get("tenant", "")
