"""The models that can be asked for: opened when somebody asks, put away when nobody has for a while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from terakoya.engine.engine import Engine
from terakoya.engine.regions import Region, regions_of
from terakoya.engine.template import Jinja
from terakoya.errors import TerakoyaError
from terakoya.serve.forms import Forms
from terakoya.serve.problem import Problem
from terakoya.serve.settings import Limits
from terakoya.tokenizer import Tokenizer
from terakoya.zoo.convert import Loaded

log = logging.getLogger("terakoya.serve")


class Served:
    """An open model with its engine, and how many are using it."""

    def __init__(self, name: str, loaded: Loaded, engine: Engine) -> None:
        if loaded.tokenizer is None:
            raise TerakoyaError(name, "has no tokenizer beside it", allowed="a folder with tokenizer.json")
        self.name, self.loaded, self.engine = name, loaded, engine
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.forms = Forms(loaded.tokenizer)
        self.users = 0
        self.used = time.monotonic()
        self.stay: float | None = None  # seconds to stay open when idle, where a client said so

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template: without one it continues texts, and is not asked to talk."""
        return self.tokenizer.template is not None or self.jinja is not None

    @cached_property
    def jinja(self) -> Jinja | None:
        """The template that came with the model's files, where it is one that can be read."""
        source = self.tokenizer.jinja
        return Jinja(source) if source else None

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The marks of reasoning and tool calls that this model knows."""
        return regions_of(" ".join((self.tokenizer.jinja or "", *self.tokenizer.specials)))


class Lease:
    """The right to use an open model; give it back with `close`, once or more often."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._open = True
        served.users += 1

    def close(self) -> None:
        """Give it back."""
        if self._open:
            self._open = False
            self.served.users -= 1
            self.served.used = time.monotonic()


class Shelf:
    """Models by name. `openers` open them, in a thread; `most` may be open, idle ones are closed after `idle` s."""

    def __init__(
        self,
        openers: dict[str, Callable[[], Loaded]],
        limits: Limits,
        *,
        most: int = 0,
        idle: float = 0.0,
        deterministic: bool = False,
        memory_bytes: int | None = None,
    ) -> None:
        self.openers, self.limits, self.most, self.idle = openers, limits, most or len(openers), idle
        self.deterministic, self.memory_bytes = deterministic, memory_bytes
        self.open: dict[str, Served] = {}
        self.created = int(time.time())
        self.failed: dict[str, str] = {}
        self._lock = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def names(self) -> list[str]:
        """All names, the first being the one that is meant where none is given."""
        return list(self.openers)

    def known(self, name: str | None) -> str:
        """Return the name of a model; Problem 404 for one that is not here."""
        if name is None:
            return self.names[0]
        found = name if name in self.openers else name.removesuffix(":latest")
        if found not in self.openers:
            here = ", ".join(self.names)
            raise Problem(
                404, f"there is no model {name[:100]!r} here; there is {here}", param="model", code="model_not_found"
            )
        return found

    async def lease(self, name: str | None) -> Lease:
        """Return a model to use, opening it where it is not; Problem 503 where there is no room for one more."""
        name = self.known(name)
        if name in self.open:
            served = self.open[name]
            if served.users >= self.limits.running + self.limits.waiting:  # O(1), before anything is read
                raise Problem(
                    429, f"{served.users} requests are waiting already; try again later", retry=1, code="overloaded"
                )
            return Lease(served)
        async with self._lock:
            if name not in self.open:
                await self._room()
                self.open[name] = await asyncio.to_thread(self._load, name)
            return Lease(self.open[name])

    def _load(self, name: str) -> Served:
        begun = time.monotonic()
        try:
            loaded = self.openers[name]()
            engine = Engine(
                loaded,
                max_running=self.limits.running,
                max_waiting=self.limits.waiting,
                max_waiting_tokens=self.limits.waiting_tokens,
                deterministic=self.deterministic,
                memory_bytes=self.memory_bytes,
            )
        except TerakoyaError as error:
            self.failed[name] = str(error)
            log.error("%s cannot be opened: %s", name, error)
            raise Problem(
                503, f"the model {name!r} cannot be opened; the server's log says why", param="model"
            ) from error
        self.failed.pop(name, None)
        log.info("%s: open after %.1f s · %s", name, time.monotonic() - begun, engine.describe())
        return Served(name, loaded, engine)

    async def _room(self) -> None:
        """Close whoever has been idle longest, until one more may be open."""
        while len(self.open) >= self.most:
            idle = [s for s in self.open.values() if not s.users]
            if not idle:
                raise Problem(503, f"{self.most} models are in use, which is all there is room for", retry=5)
            await self._close(min(idle, key=lambda s: s.used))

    async def _close(self, served: Served) -> None:
        del self.open[served.name]
        await asyncio.to_thread(served.engine.close)
        log.info("%s: closed", served.name)

    def start(self) -> None:
        """Begin to look after idle models."""
        self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(min(self.idle / 4 or 1.0, 1.0))
            async with self._lock:
                now = time.monotonic()
                for served in list(self.open.values()):
                    stay = served.stay if served.stay is not None else self.idle or float("inf")
                    if not served.users and now - served.used >= stay:
                        await self._close(served)

    def abort(self) -> None:
        """End everything that runs, now; the answers end with "abort"."""
        for served in self.open.values():
            served.engine.close()

    async def close(self) -> None:
        """Close all."""
        if self._keeper is not None:
            self._keeper.cancel()
        for served in list(self.open.values()):
            await self._close(served)


def named(models: Sequence[str], open_: Callable[[str], Loaded]) -> dict[str, Callable[[], Loaded]]:
    """Read `NAME=MODEL` or `MODEL` -> what to call it and how to open it; a path is called by its last part."""
    found: dict[str, Callable[[], Loaded]] = {}
    for given in models:
        name, equals, place = given.partition("=")
        if not equals:
            place = given
            path = Path(given)
            name = path.resolve().name if path.exists() else given
        if not name or not name.isprintable() or len(name) > 200:
            raise TerakoyaError("model", "has no name that a client could ask for", given=given)
        if name in found:
            raise TerakoyaError("model", "stands there twice", given=name, hint="name one of them: NAME=MODEL")
        found[name] = _opener(place, open_)
    if not found:
        raise TerakoyaError("model", "is missing", allowed="one or more")
    return found


def _opener(place: str, open_: Callable[[str], Loaded]) -> Callable[[], Loaded]:
    return lambda: open_(place)
