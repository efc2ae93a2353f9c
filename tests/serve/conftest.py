"""A server with a tiny random model, in a thread; real clients talk to it over the loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
import torch

from tests.engine.engine_fakes import byte_tokenizer, tiny

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

import httpx

from terakoya.engine.engine import Engine
from terakoya.serve.server import Server, server
from terakoya.serve.settings import Limits, Settings
from terakoya.serve.shelf import Shelf
from terakoya.zoo.convert import Loaded


def tiny_loaded(seed: int = 0, context: int = 256, template: str | None = "alpaca") -> Loaded:
    """A random model over bytes that takes conversations."""
    torch.set_num_threads(1)
    return Loaded(tiny(context, seed), byte_tokenizer().with_template(template), "llama2")


@dataclass
class Running:
    """A server that listens."""

    server: Server
    url: str
    http: httpx.Client
    thread: threading.Thread = field(repr=False)

    def post(self, path: str, body: object, **more) -> httpx.Response:
        return self.http.post(path, json=body, **more)

    @property
    def shelf(self) -> Shelf:
        return self.server.house.shelf

    def idle(self, seconds: float = 60.0) -> None:
        """Wait until nothing runs and nothing is held."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            engines = [s.writes for s in self.shelf.open.values() if s.writes]
            busy = self.server.house.metrics.open or any(s.users for s in self.shelf.open.values())
            if not busy and not any(e.scheduler.running or e.scheduler.waiting or e._inbox for e in engines):
                return
            time.sleep(0.01)
        raise AssertionError("something still runs")


def wait(until: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something to come true; the limit is generous, because machines are slow at times."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def slow(engine: Engine, seconds: float = 0.002) -> None:
    """Make every step last at least so long: tests that come in between must not depend on who is faster."""
    whole = engine._compute

    def later(parts, ids, picks):
        time.sleep(seconds)
        return whole(parts, ids, picks)

    engine._compute = later


@contextmanager
def listening(shelf: Shelf, **settings) -> Iterator[Running]:
    """Run a server until the end of the block."""
    made = server(shelf, replace(Settings(port=0, limits=shelf.limits), **settings))
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    end = time.monotonic() + 120  # a busy machine
    while not (made.started and made.house.ready) and time.monotonic() < end:
        time.sleep(0.01)
    assert made.house.ready
    with httpx.Client(base_url=made.address, timeout=120) as http:
        try:
            yield Running(made, made.address, http, thread)
        finally:
            made.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    """One server for all tests that leave it as it was: two models, "tiny" and "base" (which has no template)."""
    openers = {"tiny": tiny_loaded, "base": lambda: tiny_loaded(1, template=None)}
    with listening(Shelf(openers, Limits(header_seconds=1.0, body_seconds=2.0))) as found:
        yield found
