"""Many clients at once, of whom some leave and some read slowly: who stays gets the answer that he gets alone."""

from __future__ import annotations

import contextlib
import gc
import json
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from terakoya.serve.settings import Limits
from terakoya.serve.shelf import Shelf
from tests.serve.conftest import listening, tiny_loaded, wait
from tests.serve.test_ends import CHAT, CHILD

REQUESTS, KINDS, LEAVING, SLOW = 200, 10, 0.3, 0.1


def body(kind: int) -> dict[str, Any]:
    """One of a few requests, half of them drawn, half of them streams."""
    said = [{"role": "user", "content": f"話{kind} " * (1 + kind)}]
    how = {"temperature": 0} if kind % 3 else {"temperature": 1.0, "seed": kind}
    return {"messages": said, "max_tokens": 8 + 2 * kind, "stream": bool(kind % 2), **how}


def text(raw: bytes) -> str:
    """The whole answer, of a stream or of one piece."""
    if not raw.startswith(b"data: "):
        return json.loads(raw)["choices"][0]["message"]["content"]
    events = raw.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    parsed = [json.loads(e[6:]) for e in events[:-2]]
    assert parsed[-1]["choices"][0]["finish_reason"]
    return "".join(p["choices"][0]["delta"].get("content", "") for p in parsed)


def ask(url: str, number: int) -> str | None:
    """Ask as one client; None where it left."""
    dice = random.Random(number)
    leaves, slow = dice.random() < LEAVING, dice.random() < SLOW
    end = time.monotonic() + dice.random() * 0.3
    raw = b""
    with (
        contextlib.suppress(TimeoutError),
        httpx.Client(timeout=200) as client,
        client.stream("POST", url + CHAT, json=body(number % KINDS)) as reply,
    ):
        assert reply.status_code == 200
        for piece in reply.iter_raw(64 if slow else None):
            raw += piece
            if leaves and time.monotonic() > end:
                raise TimeoutError
            if slow:
                time.sleep(0.002)
    return None if leaves else text(raw)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_two_hundred_requests() -> None:
    """Every answer of one who stayed is complete and the one he gets alone; then all is as before."""
    limits = Limits(running=16, waiting=REQUESTS)
    with listening(Shelf({"tiny": tiny_loaded}, limits, deterministic=True)) as running:
        alone = [text(running.http.post(CHAT, json=body(kind)).content) for kind in range(KINDS)]
        engine = running.shelf.open["tiny"].engine
        with ThreadPoolExecutor(24) as pool:
            warm = list(pool.map(lambda i: ask(running.url, i), range(40)))
            running.idle()
            gc.collect()
            before = resident()
            found = warm + list(pool.map(lambda i: ask(running.url, i), range(40, REQUESTS)))
        running.idle()
        stayed = [(i, said) for i, said in enumerate(found) if said is not None]
        assert 0.55 * REQUESTS < len(stayed) < 0.85 * REQUESTS
        for i, said in stayed:
            assert said == alone[i % KINDS], i
        gc.collect()
        assert resident() - before < 48 << 20
        assert not engine.scheduler.running
        assert all(pool.pool.available == pool.pool.total for pool in engine.store.groups)
        began = time.monotonic()
        assert text(running.http.post(CHAT, json=body(2)).content) == alone[2]
        assert time.monotonic() - began < 1
        assert "terakoya_open_requests 0" in running.http.get("/metrics").text


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_under_load() -> None:
    """SIGTERM while many are answered: what runs is finished, what comes is refused, and the process ends well."""
    with subprocess.Popen([sys.executable, "-c", CHILD, "60"], stdout=subprocess.PIPE, encoding="utf-8") as child:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        try:
            wait(lambda: httpx.get(url + "/ready").status_code == 200, 120)
            whole: list[str] = []
            refused: list[object] = []
            begun = threading.Semaphore(0)

            def one(number: int) -> None:
                asked = {"messages": [{"role": "user", "content": str(number)}], "max_tokens": 120, "ignore_eos": True}
                with httpx.stream("POST", url + CHAT, json=asked | {"stream": True}, timeout=200) as reply:
                    pieces = reply.iter_raw()
                    raw = next(pieces)
                    begun.release()
                    whole.append(text(raw + b"".join(pieces)))

            threads = [threading.Thread(target=one, args=(i,)) for i in range(12)]
            for thread in threads:
                thread.start()
            for _ in threads:
                assert begun.acquire(timeout=120)
            child.send_signal(signal.SIGTERM)
            try:
                refused.append(httpx.post(url + CHAT, json=body(0)).status_code)
            except httpx.TransportError as error:
                refused.append(error)
            for thread in threads:
                thread.join(120)
            assert len(whole) == 12
            assert refused != [200]
            assert child.wait(60) == 0
        finally:
            child.kill()
