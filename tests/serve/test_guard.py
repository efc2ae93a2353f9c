"""What stands in front of every route: strict JSON, bounds, names, origins, keys; over raw sockets where it matters."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terakoya.errors import TerakoyaError
from terakoya.serve import strict
from terakoya.serve.problem import Problem
from terakoya.serve.settings import Limits, Settings
from terakoya.serve.shelf import Shelf
from tests.serve.conftest import Running, listening, tiny_loaded

CHAT = "/v1/chat/completions"
START = '{"messages":[{"role":"user","content":"'


def post(running: Running, raw: bytes, **headers: str) -> httpx.Response:
    return running.http.post(CHAT, content=raw, headers={"content-type": "application/json", **headers})


@pytest.mark.parametrize(
    "raw",
    [
        (START + r"\ud83d" + '"}]}').encode(),
        b'{"messages":[{"role":"user","content":"\xff\xfe"}]}',
        b'{"messages":[{"role":"user","content":"a"}],"temperature":NaN}',
        b'{"messages":[{"role":"user","content":"a"}],"temperature":-Infinity}',
        b'{"messages":[{"role":"user","content":"a"}],"temperature":1e999}',
        b'{"messages":[{"role":"user","content":"a","content":"bb"}]}',
        b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages":' + b'{"a":' * 80 + b"1" + b"}" * 80 + b"}",
        b'{"messages":[{"role":"user","content":"a"}],"max_tokens":' + b"9" * 5000 + b"}",
        b'{"messages":[{"role":"user","content":"a"}],"max_tokens":' + b"9" * 40 + b"}",
        b"\xef\xbb\xbf{}",
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"\\ud800":1}',
    ],
    ids=range(17),
)
def test_what_is_no_json_is_refused(running: Running, raw: bytes) -> None:
    reply = post(running, raw)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("text", [r"\u0000", r"\u202e\u2066", "👩‍👩‍👧", r"\ud83d\ude00"])
def test_odd_characters_are_text(running: Running, text: str) -> None:
    assert post(running, (START + text + '"}],"max_tokens":1}').encode()).status_code == 200


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
))  # fmt: skip
def test_json_that_is_json_comes_through(value: object) -> None:
    assert strict.parse(json.dumps(value).encode()) == value


@given(st.binary(max_size=60))
def test_bytes_are_json_or_a_problem(raw: bytes) -> None:
    with contextlib.suppress(Problem):
        strict.parse(raw)


def test_the_place_of_a_bad_value_is_named(running: Running) -> None:
    error = post(running, b'{"messages":[{"role":"user","content":"a"}],"logit_bias":{"5":NaN}}').json()["error"]
    assert error["param"] == "logit_bias.5"


# ---- raw sockets


def talk(running: Running, raw: bytes, seconds: float = 5.0) -> bytes:
    """Send bytes; return all that comes until the server closes or nothing more comes."""
    with closing(connect(running)) as s:
        s.settimeout(seconds)
        s.sendall(raw)
        return rest(s)


def connect(running: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])))


def rest(s: socket.socket) -> bytes:
    found = b""
    try:
        while piece := s.recv(65536):
            found += piece
    except (TimeoutError, ConnectionError):
        pass
    return found


def head(running: Running, *lines: str, path: str = CHAT) -> bytes:
    host = running.url.removeprefix("http://")
    first = [f"POST {path} HTTP/1.1", *([] if any(x.startswith("Host") for x in lines) else [f"Host: {host}"])]
    return "\r\n".join([*first, "Content-Type: application/json", *lines, "", ""]).encode()


def test_a_body_that_is_too_large(running: Running) -> None:
    reply = talk(running, head(running, "Content-Length: 200000000"))
    assert b" 413 " in reply.split(b"\r\n")[0]
    assert b"connection: close" in reply.lower()


def test_an_endless_body(running: Running) -> None:
    with closing(connect(running)) as s:
        s.sendall(head(running, "Transfer-Encoding: chunked"))
        sent = 0
        try:
            for _ in range(60):
                s.sendall(b"40000\r\n" + b"a" * 0x40000 + b"\r\n")
                sent += 1
        except OSError:
            pass
        assert sent < 60
    assert running.http.get("/health").status_code == 200


def test_a_body_that_does_not_come(running: Running) -> None:
    began = time.monotonic()
    reply = talk(running, head(running, "Content-Length: 100") + b"{")
    assert b" 408 " in reply.split(b"\r\n")[0]
    assert time.monotonic() - began < 4


def test_headers_that_do_not_end(running: Running) -> None:
    """Half-open connections are closed; meanwhile others are answered."""
    held = [connect(running) for _ in range(20)]
    for s in held:
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n")
    assert running.http.get("/health").status_code == 200
    began = time.monotonic()
    for s in held:
        s.settimeout(4)
        assert rest(s) == b""
        s.close()
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("Content-Length: 5", "Transfer-Encoding: chunked"), 400),
        (("Content-Length: 2", "Content-Length: 3"), 400),
        (("Content-Length: -1",), 400),
        (("Content-Length: 0x2",), 400),
        (("Transfer-Encoding: xchunked",), 400),
        (("Content-Length : 2",), 400),
        (("Host: evil.example", "Content-Length: 2"), 403),
        (("Host: 127.0.0.1.nip.io", "Content-Length: 2"), 403),
        (("Host: 127.0.0.1", "Host: evil.example", "Content-Length: 2"), 400),
        (("Host:", "Content-Length: 2"), 403),
        (("Content-Encoding: gzip", "Content-Length: 2"), 415),
        (("X: " + "a" * 40_000, "Content-Length: 2"), 431),
        ((*(f"X{i}: 1" for i in range(120)), "Content-Length: 2"), 431),
    ],
    ids=range(13),
)
def test_ambiguous_or_foreign_requests(running: Running, lines: tuple[str, ...], status: int) -> None:
    reply = talk(running, head(running, *lines) + b"{}GET /health HTTP/1.1\r\nHost: x\r\n\r\n", 3)
    also = 400 if status == 431 else status  # headers that come in pieces are refused before they are whole
    assert reply.startswith((b"HTTP/1.1 %d " % status, b"HTTP/1.1 %d " % also)), reply[:100]
    assert reply.count(b"HTTP/1.1 ") == 1  # nothing that was smuggled gets an answer


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=utf-16"]
)
def test_only_json_is_read(running: Running, kind: str) -> None:
    assert running.http.post(CHAT, content=b"{}", headers={"content-type": kind}).status_code == 415


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost.evil.com", "https://127.0.0.1:1"])
def test_pages_of_other_sites(running: Running, origin: str) -> None:
    for reply in (
        running.http.get("/v1/models", headers={"origin": origin}),
        running.http.options(CHAT, headers={"origin": origin, "access-control-request-method": "POST"}),
    ):
        assert reply.status_code == 403
        assert "access-control-allow-origin" not in reply.headers
    assert running.http.get("/v1/models", headers={"origin": running.url}).status_code == 200


def test_every_answer_has_an_id_and_safe_headers(running: Running) -> None:
    reply = running.http.get("/v1/models", headers={"x-request-id": "abc-1"})
    assert reply.headers["x-request-id"] == "abc-1"
    assert "script-src 'self'" in reply.headers["content-security-policy"]
    assert running.http.get("/nothing", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"


# ---- keys


KEYS = ("first-key-0123", "second-key-4567")


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    shelf = Shelf({"tiny": tiny_loaded}, Limits())
    with listening(shelf, keys=KEYS, origins=("https://friend.example",)) as found:
        yield found


def routes(running: Running) -> list[tuple[str, str]]:
    paths = running.http.get("/openapi.json", headers={"x-api-key": KEYS[0]}).json()["paths"]
    return [(method.upper(), path.replace("{name}", "tiny")) for path, known in paths.items() for method in known]


def test_every_route_needs_the_key(guarded: Running) -> None:
    found = routes(guarded)
    assert len(found) > 8
    public = {"/health"}
    tricks = "/openapi.json /nothing //health /health/ /v1/../health /%2e%2e/health /health;x /metrics /page"
    others = [("GET", path) for path in tricks.split()]
    wrong = ({}, {"authorization": "Bearer wrong-key"}, {"authorization": KEYS[0]}, {"x-api-key": "鍵".encode()},
             {"authorization": "Basic " + KEYS[0]})  # fmt: skip
    for method, path in [*found, *others]:
        for headers in wrong:
            reply = guarded.http.request(method, guarded.url + path, headers=headers, content=b"")
            expected = path in public or reply.request.url.path in public
            assert (reply.status_code == 401) is not expected, (method, path, headers, reply.text)


def test_either_key_opens(guarded: Running) -> None:
    for key in KEYS:
        for headers in ({"authorization": f"Bearer {key}"}, {"authorization": f"bearer {key}"}, {"x-api-key": key}):
            assert guarded.http.get("/v1/models", headers=headers).status_code == 200


def test_an_allowed_origin(guarded: Running) -> None:
    friend = {"origin": "https://friend.example"}
    asked = guarded.http.options(CHAT, headers={**friend, "access-control-request-method": "POST"})
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (204, "https://friend.example")
    assert guarded.http.get("/v1/models", headers=friend).status_code == 401
    reply = guarded.http.get("/v1/models", headers={**friend, "x-api-key": KEYS[0]})
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, "https://friend.example")


def test_prompts_are_not_shared_between_keys(guarded: Running) -> None:
    body = {"messages": [{"role": "user", "content": "秘密" * 10}], "max_tokens": 1}

    def cached(key: str) -> int:
        reply = guarded.post(CHAT, body, headers={"x-api-key": key}).json()
        return reply["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert (cached(KEYS[0]), cached(KEYS[1])) == (0, 0)
    assert cached(KEYS[0]) > 0


def test_no_prompt_and_no_key_in_the_log(guarded: Running, caplog: pytest.LogCaptureFixture) -> None:
    body = {"messages": [{"role": "user", "content": "CANARY"}], "max_tokens": 1, "x\nCANARY": 1}
    with caplog.at_level("DEBUG", logger="terakoya"):
        guarded.post(CHAT, body, headers={"x-api-key": KEYS[0]})
        guarded.http.get("/a%0aCANARY2", headers={"x-api-key": KEYS[0]})
    assert "CANARY" not in caplog.text.replace("\\nCANARY2", "")
    assert "\nCANARY2" not in caplog.text
    assert KEYS[0] not in caplog.text


def test_the_door_to_others_needs_a_key() -> None:
    with pytest.raises(TerakoyaError, match="no key is set"):
        Settings(host="0.0.0.0")
    assert Settings(host="0.0.0.0", insecure=True).admits("192.168.0.7")
    assert not Settings(host="0.0.0.0", insecure=True).admits("evil.example")
    assert not Settings().admits("192.168.0.7")
    with pytest.raises(TerakoyaError, match="API key"):
        Settings(keys=("short",))
