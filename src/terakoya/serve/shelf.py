"""The models that can be asked for: opened when somebody asks, put away when nobody has for a while or memory is short.

An adapter is a model of its own name: its base with the adapter folded in. Layers it leaves alone are the base's own.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from terakoya.engine.engine import Engine
from terakoya.engine.regions import Region, regions_of
from terakoya.engine.runner import By
from terakoya.engine.template import Jinja
from terakoya.errors import TerakoyaError
from terakoya.ops.lower import Weights
from terakoya.serve import memory
from terakoya.serve.encoder import Encoder
from terakoya.serve.forms import Forms
from terakoya.serve.problem import Problem
from terakoya.serve.settings import Limits
from terakoya.tokenizer import Tokenizer
from terakoya.tune import merge, peft
from terakoya.zoo.convert import Loaded

log = logging.getLogger("terakoya.serve")
RESERVE = 0.05  # of all memory: where less is free, models that nobody uses are closed


@dataclass(frozen=True)
class Adapter:
    """An adapter as `peft` saves it, and the name of the model that it belongs on."""

    base: str
    folder: Path

    def on(self, served: Served) -> Loaded:
        """Return the base with the adapter folded in; tensors that it does not touch are shared."""
        if served.writes is None:
            raise TerakoyaError("adapter", "belongs on a model that writes", given=self.base)
        base = served.loaded
        model = merge.merged(base.model)  # other modules, the same tensors: the base stays as it is
        peft.load(model, base.family, self.folder, name="served")
        return Loaded(merge.merged(model), base.tokenizer, base.family, base.config)


class Served:
    """An open model with its engine, and how many are using it. `base` is held while an adapter on it is open.

    An encoder has no engine: it reads texts, and `writes` nothing.
    """

    def __init__(self, name: str, loaded: Loaded, by: Engine | Encoder, base: Lease | None = None) -> None:
        if loaded.tokenizer is None:
            raise TerakoyaError(name, "has no tokenizer beside it", allowed="a folder with tokenizer.json")
        self.name, self.loaded, self.base = name, loaded, base
        self.encoder = by if isinstance(by, Encoder) else None
        self.writes = by if isinstance(by, Engine) else None
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.forms = Forms(loaded.tokenizer)
        self.reading = asyncio.Lock()  # texts that become vectors are read one step at a time, beside the engine's
        self.users = 0
        self.used = time.monotonic()
        self.stay: float | None = None  # seconds to stay open when idle, where a client said so

    @property
    def engine(self) -> Engine:
        """Return what writes; Problem 400 for a model that only reads."""
        if self.writes is None:
            problem = f"{self.name} reads texts and writes none: ask it for embeddings"
            raise Problem(400, problem, param="model", code="model_not_supported")
        return self.writes

    @property
    def context(self) -> int:
        """Tokens that one text, or one talk, may have."""
        return self.encoder.room if self.encoder else self.engine.context

    @property
    def deterministic(self) -> bool:
        """Whether an answer must not depend on what else is read at the time."""
        return self.writes is not None and self.writes.scheduler.unit is not None

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
    """Models by name. `openers` open them, in a thread; `most` may be open, idle ones are closed after `idle` s.

    Adapters do not count among `most`: they live on a model that does. `room` tells (bytes free, bytes in all).
    `weights` and `by` are those of `Engine`, for every model that writes. `drafts` open the smaller model that guesses
    ahead for the one of that name; adapters go without.
    """

    def __init__(
        self,
        openers: dict[str, Callable[[], Loaded | Encoder]],
        limits: Limits,
        *,
        adapters: Mapping[str, Adapter] | None = None,
        most: int = 0,
        idle: float = 0.0,
        deterministic: bool = False,
        weights: Weights | None = None,
        by: By = "auto",
        drafts: Mapping[str, Callable[[], Loaded]] | None = None,
        memory_bytes: int | None = None,
        room: Callable[[], tuple[int, int]] = memory.available,
    ) -> None:
        self.openers, self.limits, self.most, self.idle = openers, limits, most or len(openers), idle
        self.deterministic, self.memory_bytes, self.room = deterministic, memory_bytes, room
        self.weights: Weights | None = weights
        self.by: By = by
        self.drafts = dict(drafts or {})
        self.adapters: dict[str, Adapter] = {}
        self.open: dict[str, Served] = {}
        self.created = int(time.time())
        self.failed: dict[str, str] = {}
        self._lock = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None
        for name, adapter in (adapters or {}).items():
            self.add(name, adapter)

    @property
    def names(self) -> list[str]:
        """All names, the first being the one that is meant where none is given."""
        return [*self.openers, *self.adapters]

    def base(self, name: str) -> str | None:
        """Return which model an adapter is for; None for what is no adapter."""
        return self.adapters[name].base if name in self.adapters else None

    def known(self, name: str | None) -> str:
        """Return the name of a model; Problem 404 for one that is not here."""
        if name is None:
            return self.names[0]
        names = self.names
        found = name if name in names else name.removesuffix(":latest")
        if found not in names:
            here = ", ".join(names[:20])
            raise Problem(
                404, f"there is no model {name[:100]!r} here; there is {here}", param="model", code="model_not_found"
            )
        return found

    def add(self, name: str, adapter: Adapter) -> None:
        """Take an adapter in, to be opened when somebody asks for it."""
        if name in self.names:
            raise TerakoyaError("adapter", "has a name that is taken", given=name)
        if adapter.base not in self.openers:
            raise TerakoyaError("adapter", "is for a model that is not here", given=adapter.base, allowed=self.openers)
        self.adapters[name] = adapter

    async def drop(self, name: str) -> None:
        """Forget an adapter, and close it; Problem 409 where it is in use."""
        async with self._lock:
            served = self.open.get(name)
            if served is not None and served.users:
                raise Problem(409, f"{name!r} is in use; try again later", param="lora_name", retry=5)
            if served is not None:
                await self._close(served)
            del self.adapters[name]

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
            return await self._lease(name)

    async def _lease(self, name: str) -> Lease:
        if name not in self.open:
            base = await self._lease(self.adapters[name].base) if name in self.adapters else None
            try:
                if base is None:
                    await self._make_room()
                self.open[name] = await self._opened(name, base)
            except BaseException:
                if base is not None:
                    base.close()
                raise
        return Lease(self.open[name])

    async def _opened(self, name: str, base: Lease | None) -> Served:
        """Open in a thread; where memory does not suffice, close whoever is idle and try once more."""
        try:
            return await asyncio.to_thread(self._load, name, base)
        except MemoryError:
            while await self._close_one():
                pass
        try:
            return await asyncio.to_thread(self._load, name, base)
        except MemoryError:
            log.error("%s cannot be opened: there is not enough memory", name)
            raise Problem(503, f"there is no memory for the model {name!r} now", param="model", retry=5) from None

    def _load(self, name: str, base: Lease | None) -> Served:
        begun = time.monotonic()
        try:
            loaded = self.openers[name]() if base is None else self.adapters[name].on(base.served)
            if isinstance(loaded, Loaded) and loaded.spec.sort == "encoder":
                loaded = Encoder(loaded)
            if isinstance(loaded, Encoder):
                self._reads(name, loaded, time.monotonic() - begun)
                return Served(name, loaded.loaded, loaded)
            engine = Engine(
                loaded,
                weights=self.weights,
                by=self.by,
                max_running=self.limits.running,
                max_waiting=self.limits.waiting,
                max_waiting_tokens=self.limits.queue(loaded.spec.context),
                deterministic=self.deterministic,
                draft=self.drafts[name]() if name in self.drafts else None,
                memory_bytes=self.memory_bytes,
            )
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):  # PyTorch's way to say it
                raise MemoryError from None
            raise
        except TerakoyaError as error:
            self.failed[name] = str(error)
            log.error("%s cannot be opened: %s", name, error)
            raise Problem(
                503, f"the model {name!r} cannot be opened; the server's log says why", param="model"
            ) from error
        self.failed.pop(name, None)
        log.info("%s: open after %.1f s · %s", name, time.monotonic() - begun, engine.describe())
        return Served(name, loaded, engine, base)

    def _reads(self, name: str, encoder: Encoder, seconds: float) -> None:
        """Say who computes an encoder, and name what was asked for and does not reach it."""
        if self.by == "native":
            problem = "does not reach a model that reads only: PyTorch computes it"
            raise TerakoyaError("--by native", problem, hint="leave it out: who writes is native where that can be")
        if name in self.drafts:
            raise TerakoyaError("--draft", "guesses for models that write, and this one reads only")
        log.info("%s: open after %.1f s · reads only · %s", name, seconds, encoder.describe())
        if self.weights is not None:
            log.warning("%s: --weights %s is for models that write: its weights stay as they are", name, self.weights)

    async def _make_room(self) -> None:
        """Close whoever has been idle longest, until one more may be open and memory is not short."""
        while sum(s.base is None for s in self.open.values()) >= self.most:
            if not await self._close_one():
                raise Problem(503, f"{self.most} models are in use, which is all there is room for", retry=5)
        while self._short and await self._close_one():
            pass

    @property
    def _short(self) -> bool:
        free, total = self.room()
        return free < total * RESERVE

    async def _close_one(self) -> bool:
        """Close the model that has been idle longest; False where all are in use."""
        idle = [s for s in self.open.values() if not s.users]
        if idle:
            await self._close(min(idle, key=lambda s: s.used))
        return bool(idle)

    async def _close(self, served: Served) -> None:
        del self.open[served.name]
        if served.writes is not None:
            await asyncio.to_thread(served.writes.close)
        if served.base is not None:
            served.base.close()
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
                if len(self.open) > 1 and self._short and await self._close_one():
                    log.warning("memory is short: less than %.0f %% is free", RESERVE * 100)

    def abort(self) -> None:
        """End everything that runs, now; the answers end with "abort"."""
        for served in list(self.open.values()):
            if served.writes is not None:
                served.writes.close()

    async def close(self) -> None:
        """Close all."""
        if self._keeper is not None:
            self._keeper.cancel()
        for served in sorted(self.open.values(), key=lambda s: s.base is None):  # adapters first
            await self._close(served)


def named(models: Sequence[str], open_: Callable[[str], Loaded | Encoder]) -> dict[str, Callable[[], Loaded | Encoder]]:
    """Read `NAME=MODEL` or `MODEL` -> what to call it and how to open it; a path is called by its last part."""
    found: dict[str, Callable[[], Loaded | Encoder]] = {}
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


def _opener(place: str, open_: Callable[[str], Loaded | Encoder]) -> Callable[[], Loaded | Encoder]:
    return lambda: open_(place)


def worn(given: Sequence[str], models: Sequence[str]) -> dict[str, Adapter]:
    """Read `NAME=FOLDER` or `NAME=FOLDER@MODEL` -> adapters by name; without a model, for the first."""
    found: dict[str, Adapter] = {}
    for one in given:
        name, equals, place = one.partition("=")
        folder, at, base = place.rpartition("@") if not Path(place).exists() else (place, "", "")
        if not equals or not re.fullmatch(r"[\w.-]{1,100}", name):
            raise TerakoyaError("--adapter", given=one, allowed="NAME=FOLDER or NAME=FOLDER@MODEL")
        if at and base not in models:
            raise TerakoyaError("--adapter", "is for a model that is not served", given=base, allowed=models)
        if not (Path(folder) / peft.CONFIG).is_file():
            raise TerakoyaError("--adapter", f"is no folder with {peft.CONFIG}", given=folder or place)
        if name in found or name in models:
            raise TerakoyaError("--adapter", "has a name that is taken", given=name)
        found[name] = Adapter(base or models[0], Path(folder))
    return found
