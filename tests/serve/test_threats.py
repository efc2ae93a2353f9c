"""The table of threats to a server, where no other test stands for a row already: each as somebody would try it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import torch

from terakoya.serve.settings import Limits
from terakoya.serve.shelf import Shelf
from tests.serve.conftest import Running, listening, slow, tiny_loaded, wait
from tests.serve.test_ends import CHAT, CHILD, LONG
from tests.serve.test_guard import connect, head, rest


@pytest.fixture(scope="module")
def roomy() -> Iterator[Running]:
    with listening(Shelf({"tiny": lambda: tiny_loaded(context=4096)}, Limits(running=16))) as found:
        yield found


WORST = {"one letter": "a", "kana": "あ", "joined": "👩\u200d👩\u200d👧", "marks": "e\u0301\u0316\u0323", "lines": "\n"}


@pytest.mark.parametrize("what", list(WORST))
def test_a_body_full_of_the_worst_text(running: Running, what: str) -> None:
    """Refused for its length, and meanwhile others are answered."""
    unit = WORST[what]
    said = unit * ((2 << 20) // (len(unit.encode()) + 1) - 100)
    waited: list[float] = []
    done = threading.Event()

    def others() -> None:
        while not done.is_set():
            began = time.monotonic()
            httpx.get(running.url + "/health", timeout=100)
            waited.append(time.monotonic() - began)

    thread = threading.Thread(target=others)
    thread.start()
    try:
        content = json.dumps({"messages": [{"role": "user", "content": said}]}, ensure_ascii=False).encode()
        reply = running.http.post(CHAT, content=content, headers={"content-type": "application/json"})
    finally:
        done.set()
        thread.join()
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded"), reply.text
    assert len(reply.content) < 2000
    assert len(waited) > 1


def test_numbers_that_are_none(roomy: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in the scores of one among several: that one breaks off, the others are what they are alone."""
    engine = roomy.shelf.open["tiny"].engine
    prompts = ("寺", "子", "屋", "POISON")
    bodies = [{"prompt": p, "max_tokens": 60, "ignore_eos": True, "temperature": 0} for p in prompts]

    def text(body: dict[str, object]) -> str:
        reply = httpx.post(roomy.url + "/v1/completions", json=body, timeout=200)
        return reply.json()["choices"][0]["text"] if reply.status_code == 200 else str(reply.status_code)

    alone = [text(b) for b in bodies[:3]]
    advance = engine._advance

    def spoilt(rows: list, logits: torch.Tensor) -> None:
        at = 0
        for row in rows:
            begin, at = at, at + (1 + row.draft if row.caught_up else 0)
            if bytes(i for i in row.choice.ids if i < 256).startswith(b"POISON"):
                logits[begin:at] = float("nan")
        advance(rows, logits)

    monkeypatch.setattr(engine, "_advance", spoilt)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(text, bodies))
    assert found == [*alone, "500"]
    assert roomy.http.get("/health").status_code == 200
    assert 'terakoya_failures_total{model="tiny"} 1' in roomy.http.get("/metrics").text


def test_readers_that_never_read_do_not_hold_others_up() -> None:
    limits = Limits(running=32, write_seconds=0.5)
    with listening(Shelf({"tiny": lambda: tiny_loaded(context=4096)}, limits)) as running:
        asked = LONG | {"stream": True, "max_tokens": 3900, "n": 2, "logprobs": True, "top_logprobs": 20}
        data = json.dumps(asked).encode()
        raw = head(running, f"Content-Length: {len(data)}") + data
        deaf = []
        for _ in range(6):
            s = socket.socket()
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", int(running.url.rpartition(":")[2])))
            s.sendall(raw)
            deaf.append(s)
        wait(lambda: running.shelf.open["tiny"].users == 6)
        short = {"messages": LONG["messages"], "max_tokens": 5}
        assert running.post(CHAT, short).status_code == 200
        wait(lambda: running.shelf.open["tiny"].users == 0, 120)
        for s in deaf:
            s.close()


def test_one_listening_socket_on_the_loopback(roomy: Running) -> None:
    """Nothing else of this process can be reached: no port for workers, nothing on other addresses."""
    if not Path("/proc/self/net/tcp").exists():
        pytest.skip("read from /proc")
    inodes = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            inodes.add(os.readlink(fd))
        except OSError:
            continue
    port = f"{int(roomy.url.rpartition(':')[2]):04X}"
    lines = [x.split() for x in Path("/proc/self/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    mine = [x[1] for x in lines if x[3] == "0A" and f"socket:[{x[9]}]" in inodes]
    assert f"0100007F:{port}" in mine
    assert all(address.startswith("0100007F:") for address in mine)


def test_the_routes_are_these(running: Running) -> None:
    """A new route is a new way in: it is added here by hand."""
    known = set(running.http.get("/openapi.json").json()["paths"])
    assert known == {
        "/v1/models", "/v1/models/{name}", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses",
        "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/api/chat", "/api/generate", "/api/embed",
        "/api/embeddings", "/api/tags", "/api/ps", "/api/show", "/api/version", "/health", "/ready", "/metrics",
        "/tokenize", "/detokenize", "/apply-template",
    }  # fmt: skip


def test_old_and_odd_http(running: Running) -> None:
    """HTTP/1.0, HEAD, pipelining, Expect, an absolute address, bare line ends: answered or refused, never a 500."""
    host = running.url.removeprefix("http://")
    get = f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n"
    tries = {
        f"GET /health HTTP/1.0\r\nHost: {host}\r\n\r\n": b" 200 ",
        f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n": b" 200 ",
        f"GET http://{host}/health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n": b"",
        f"GET /health HTTP/1.1\nHost: {host}\n\n": b"",
        f"GET /health HTTP/1.1\r\nHost: {host}\r\nX: a\r\n b\r\nConnection: close\r\n\r\n": b"",
        f"TRACE / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n": b" 40",
        f"GET /health HTTP/9.9\r\nHost: {host}\r\n\r\n": b"",
        "\x16\x03\x01\x02\x00\x01\x00": b"",
    }
    for raw, wanted in tries.items():
        with closing(connect(running)) as s:
            s.settimeout(5)
            s.sendall(raw.encode("latin-1"))
            got = rest(s)
        assert b" 500 " not in got.split(b"\r\n")[0]
        assert wanted in got.split(b"\r\n")[0], raw
    with closing(connect(running)) as s:
        s.settimeout(5)
        s.sendall((get * 3).encode())
        assert rest(s).count(b"HTTP/1.1 200") == 3
    data = json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}).encode()
    with closing(connect(running)) as s:
        s.settimeout(20)
        s.sendall(head(running, f"Content-Length: {len(data)}", "Expect: 100-continue", "Connection: close"))
        assert s.recv(100).startswith(b"HTTP/1.1 100")
        s.sendall(data)
        assert b" 200 " in rest(s)
    assert running.http.get("/health").status_code == 200


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_second_signal_ends_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD, "60"], stdout=subprocess.PIPE, encoding="utf-8") as child:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        try:
            wait(lambda: httpx.get(url + "/ready").status_code == 200, 120)
            with httpx.stream("POST", url + CHAT, json=LONG | {"stream": True}, timeout=200) as reply:
                pieces = reply.iter_raw()
                next(pieces)
                child.send_signal(signal.SIGTERM)
                time.sleep(0.5)
                began = time.monotonic()
                child.send_signal(signal.SIGTERM)
                assert child.wait(50) == 0
                assert time.monotonic() - began < 40  # not the grace of 60
        finally:
            child.kill()


def test_a_thousand_half_open_connections(running: Running) -> None:
    """Headers that never end, on more connections than there may be: a fresh request is answered at once."""
    held = []
    try:
        for _ in range(1000):
            s = connect(running)
            s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n")
            held.append(s)
            if len(held) % 250 == 0:
                time.sleep(0.05)
        wait(lambda: _answered(running), 30)  # beyond 512 connections new ones are dropped until the deadline (1 s)
        began = time.monotonic()
        assert httpx.get(running.url + "/health", timeout=30).status_code == 200
        assert time.monotonic() - began < 1
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        began = time.monotonic()
        assert httpx.post(running.url + CHAT, json=body, timeout=30).status_code == 200
        assert time.monotonic() - began < 1
        wait(lambda: len(running.server.server_state.connections) < 20, 30)  # all that never spoke are gone
    finally:
        for s in held:
            s.close()


def test_one_machine_has_its_share_of_connections(running: Running) -> None:
    """Another machine, here 127.0.0.9, holds 64 connections and no more; others are let in beside it."""
    share, port, held = running.server.house.limits.per_address, int(running.url.rpartition(":")[2]), []
    try:
        there = ("127.0.0.9", 0)
        held += [socket.create_connection(("127.0.0.1", port), 10, there) for _ in range(share + 20)]
        wait(lambda: sum(_open(s) for s in held) == share, 10)
        assert httpx.get(running.url + "/health", timeout=30).status_code == 200
    finally:
        for s in held:
            s.close()


def _open(s: socket.socket) -> bool:
    s.setblocking(False)
    try:
        return s.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _answered(running: Running) -> bool:
    try:
        return httpx.get(running.url + "/health", timeout=30).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("many", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_that_want_in(many: int) -> None:
    """The queue stays as long as it may be; who is refused is told at once when to come back."""
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}).encode()
    with listening(
        Shelf({"tiny": lambda: tiny_loaded(context=4096)}, Limits(running=2, waiting=6, seconds=600))
    ) as running:
        engine = running.shelf.open["tiny"].engine
        slow(engine, 0.05)
        holding = [
            threading.Thread(
                target=httpx.post, args=(running.url + CHAT,), kwargs={"json": LONG | {"max_tokens": 3000}}
            )
            for _ in range(8)
        ]
        for first, last in ((0, 2), (2, 8)):  # two run before six come to wait
            for thread in holding[first:last]:
                thread.daemon = True
                thread.start()
            wait(lambda: len(engine.scheduler.running) == 2)
        wait(lambda: running.shelf.open["tiny"].users == 8)
        ask = head(running, f"Content-Length: {len(body)}") + body
        statuses: dict[bytes, int] = {}
        slowest, longest = 0.0, 0
        for _ in range(10):  # connections, each with many requests one after another
            with closing(connect(running)) as s:
                reply = s.makefile("rb")
                for _ in range(many // 10):
                    began = time.monotonic()
                    s.sendall(ask)
                    status = reply.readline().split()[1]
                    fields = dict(line.lower().rstrip().split(b": ", 1) for line in iter(reply.readline, b"\r\n"))
                    reply.read(int(fields[b"content-length"]))
                    slowest = max(slowest, time.monotonic() - began)
                    statuses[status] = statuses.get(status, 0) + 1
                    assert status != b"429" or int(fields[b"retry-after"]) >= 1
                    longest = max(longest, len(engine.scheduler.waiting) + len(engine._inbox))
        assert set(statuses) <= {b"200", b"429"}
        assert statuses[b"429"] > 0.8 * many
        assert longest <= 6
        assert slowest < 5  # a busy machine; most take a millisecond
        running.server.house.shelf.abort()


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every known key is compared, whichever fits, by digests and by the function that is made for it."""
    import hmac

    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr("terakoya.serve.guard.hmac.compare_digest", compare)
    keys = ("first-key-0123", "second-key-4567", "third-key-89ab")
    with listening(Shelf({"tiny": tiny_loaded}, Limits()), keys=keys) as running:
        for given, status in ((keys[0], 200), (keys[2], 200), ("first-key-012", 401), ("", 401), ("x" * 5000, 401)):
            compared.clear()
            assert running.http.get("/v1/models", headers={"x-api-key": given}).status_code == status
            assert compared == [(32, 32)] * 3
