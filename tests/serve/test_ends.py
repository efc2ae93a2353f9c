"""How requests end that do not end well: clients that leave, queues that are full, engines that fail, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from terakoya.serve.settings import Limits
from terakoya.serve.shelf import Shelf
from tests.serve.conftest import Running, listening, slow, tiny_loaded, wait

CHAT = "/v1/chat/completions"
LONG = {"messages": [{"role": "user", "content": "長い話"}], "max_tokens": 4000, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def roomy() -> Iterator[Running]:
    """A model with a context that takes a while to fill, and a short queue."""
    shelf = Shelf({"tiny": lambda: tiny_loaded(context=4096)}, Limits(running=2, waiting=3))
    with listening(shelf) as found:
        slow(found.shelf.open["tiny"].engine)
        yield found


def test_a_client_that_leaves_a_stream(roomy: Running) -> None:
    with roomy.http.stream("POST", CHAT, json=LONG | {"stream": True}) as reply:
        pieces = reply.iter_raw()
        next(pieces)
        assert roomy.shelf.open["tiny"].users == 1
    roomy.idle()


def test_a_client_that_leaves_before_the_answer(roomy: Running) -> None:
    scheduler = roomy.shelf.open["tiny"].engine.scheduler
    for path, body in (
        (CHAT, LONG),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 4000, "ignore_eos": True}),
    ):
        with pytest.raises(httpx.ReadTimeout):
            roomy.http.post(path, json=body, timeout=0.3)
        roomy.idle()
        assert not scheduler.running
    assert roomy.post(CHAT, LONG | {"max_tokens": 2}).status_code == 200


def test_a_full_queue(roomy: Running) -> None:
    """Two run, three wait, the sixth is told when to come back; then all five are answered."""
    done: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: done.append(
                httpx.post(roomy.url + CHAT, json=LONG | {"max_tokens": 400}, timeout=200).status_code
            )
        )
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    served = roomy.shelf.open["tiny"]
    wait(lambda: served.users == 5)
    began = time.monotonic()
    reply = roomy.post(CHAT, LONG)
    assert reply.status_code == 429
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.json()["error"]["type"] == "rate_limit_error"
    assert time.monotonic() - began < 5  # at once, not after the others
    for thread in threads:
        thread.join()
    assert done == [200] * 5
    assert roomy.post(CHAT, {"messages": LONG["messages"], "n": 8, "max_tokens": 2}).status_code == 429


def test_a_reader_that_takes_nothing() -> None:
    """The answer does not grow without bound in memory, and the model is freed."""
    shelf = Shelf({"tiny": lambda: tiny_loaded(context=4096)}, Limits(write_seconds=0.3))
    body = LONG | {"stream": True, "max_tokens": 3900, "n": 8, "logprobs": True, "top_logprobs": 20}
    with listening(shelf) as running, running.http.stream("POST", CHAT, json=body) as reply:
        pieces = reply.iter_raw()  # kept: else the connection ends
        next(pieces)
        wait(lambda: running.shelf.open["tiny"].users == 0)


def test_a_step_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request breaks off with an error that hides nothing but the server's inside; the next one works."""
    with listening(Shelf({"tiny": tiny_loaded}, Limits())) as running:
        engine = running.shelf.open["tiny"].engine
        whole = engine._compute

        def fails(*args, **more):
            raise ValueError("/secret/path CANARY")

        monkeypatch.setattr(engine, "_compute", fails)
        body = {"messages": LONG["messages"], "max_tokens": 3}
        reply = running.post(CHAT, body)
        assert reply.status_code == 500
        assert "CANARY" not in reply.text
        streamed = running.post(CHAT, body | {"stream": True}).text.split("\n\n")
        assert streamed[-2] == "data: [DONE]"
        assert json.loads(streamed[-3][6:])["error"]["type"] == "server_error"
        monkeypatch.setattr(engine, "_compute", whole)
        assert running.post(CHAT, body).status_code == 200
        text = running.http.get("/metrics").text
        assert 'terakoya_failures_total{model="tiny"} 2' in text
        assert "terakoya_open_requests 0" in text


def test_an_answer_that_takes_too_long() -> None:
    with listening(Shelf({"tiny": lambda: tiny_loaded(context=4096)}, Limits(seconds=0.2))) as running:
        slow(running.shelf.open["tiny"].engine)
        assert running.post(CHAT, LONG).status_code == 504
        assert '"code":"deadline"' in running.post(CHAT, LONG | {"stream": True}).text


def test_models_are_opened_when_asked_for_and_closed_when_idle() -> None:
    opened: list[str] = []

    def opener(name: str):
        return lambda: opened.append(name) or tiny_loaded(context=64)

    body = {"prompt": "x", "max_tokens": 1}
    shelf = Shelf({n: opener(n) for n in "abc"}, Limits(), most=2, idle=0.4)
    with listening(shelf) as running:
        assert opened == ["a"]
        for name in "bca":
            assert running.post("/v1/completions", body | {"model": name}).status_code == 200
            assert len(shelf.open) <= 2
        assert opened == ["a", "b", "c", "a"]
        wait(lambda: not shelf.open)
        assert running.post("/v1/completions", body).status_code == 200


def test_a_model_that_cannot_be_opened() -> None:
    def fails():
        from terakoya.errors import TerakoyaError

        raise TerakoyaError("/secret/model", "is broken")

    with listening(Shelf({"tiny": tiny_loaded, "broken": fails}, Limits())) as running:
        reply = running.post("/v1/completions", {"model": "broken", "prompt": "x"})
        assert (reply.status_code, "secret" in reply.text) == (503, False)
        assert running.post("/v1/completions", {"model": "tiny", "prompt": "x"}).status_code == 200


CHILD = """
import sys, time
from terakoya.engine.engine import Engine
from tests.serve.conftest import tiny_loaded
from terakoya.serve.server import server
from terakoya.serve.settings import Limits, Settings
from terakoya.serve.shelf import Shelf
step = Engine._compute
Engine._compute = lambda *given: time.sleep(0.002) or step(*given)
made = server(Shelf({"tiny": lambda: tiny_loaded(context=4096)}, Limits()), Settings(port=0, grace=float(sys.argv[1])))
made.announce = lambda: print(made.address, flush=True)
made.run()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("grace", "tokens", "reason"), [(20.0, 150, "length"), (0.5, 4000, "abort")])
def test_a_signal_lets_answers_finish(grace: float, tokens: int, reason: str) -> None:
    command = [sys.executable, "-c", CHILD, str(grace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as child:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        try:
            wait(lambda: httpx.get(url + "/ready").status_code == 200, 120)
            with httpx.stream(
                "POST", url + CHAT, json=LONG | {"max_tokens": tokens, "stream": True}, timeout=200
            ) as reply:
                events = reply.iter_text()
                text = next(events)
                child.send_signal(signal.SIGTERM)
                text += "".join(events)
            assert text.endswith("data: [DONE]\n\n")
            last = json.loads(text.split("\n\n")[-3][6:])
            assert (
                last["choices"][0]["finish_reason"] == reason
                if reason == "length"
                else last["error"]["code"] == "aborted"
            )
            assert child.wait(60) == 0
            with pytest.raises(httpx.TransportError):
                httpx.get(url + "/health")
        finally:
            child.kill()
