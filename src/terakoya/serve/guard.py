"""In front of every route: who asks, from where, how much, and whether it is JSON. Denies by default."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from terakoya.serve import strict
from terakoya.serve.metrics import Metrics
from terakoya.serve.problem import Problem
from terakoya.serve.settings import Settings

log = logging.getLogger("terakoya.serve")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
PUBLIC = frozenset({"/health"})
QUIET = frozenset({"/health", "/ready", "/metrics"})  # asked for by machines, all the time
# Scripts and styles of our own alone; nothing of another site, nothing inside the page's text.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": POLICY,
}
_NAME = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Guard:
    """An ASGI application around another. `pages` are files that anyone may have, key or not: they hold no secret."""

    def __init__(self, app: App, settings: Settings, metrics: Metrics, pages: Iterable[str] = ()) -> None:
        self.app, self.settings, self.limits, self.metrics = app, settings, settings.limits, metrics
        self._digests = [_digest(key.encode()) for key in settings.keys]
        self._public = PUBLIC | frozenset(pages)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        begun = time.monotonic()
        reply = Reply(scope, send)
        try:
            headers = self._headers(scope)
            reply.id = _own_id(headers)
            origin = self._origin(scope, headers)
            reply.origin = origin
            if origin and scope["method"] == "OPTIONS":
                await reply.preflight()
            else:
                self._key(scope, headers)
                body = await self._body(scope, headers, receive)
                await self.app(scope, body or receive, reply)
        except Problem as problem:
            await reply.problem(problem, close=True)
        except Exception:  # the one place where a bug becomes an answer; what it says stays in the log
            log.exception("%s failed", reply.id)
            await reply.problem(Problem(500, "something went wrong in the server; its log knows more"), close=True)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.request(route, reply.status or 499)
            took = (time.monotonic() - begun) * 1e3
            level = logging.DEBUG if route in QUIET else logging.INFO
            log.log(level, "%s %s %s %s %.0f ms", reply.id, scope["method"], _quoted(scope["path"]), reply.status, took)

    def _headers(self, scope: MutableMapping[str, Any]) -> dict[bytes, bytes]:
        """Return the headers by name, where they are few, and the important ones unambiguous."""
        pairs = scope["headers"]
        size = sum(len(key) + len(value) for key, value in pairs)
        if len(pairs) > self.limits.header_count or size > self.limits.headers:
            raise Problem(431, f"more than {self.limits.header_count} headers or {self.limits.headers} bytes of them")
        once = (b"host", b"content-length", b"transfer-encoding", b"authorization", b"origin", b"content-type")
        names = [key for key, _ in pairs]
        for name in once:
            if names.count(name) > 1:
                raise Problem(400, f"the header {name.decode()} stands there twice")
        found = dict(pairs)
        if b"content-length" in found and b"transfer-encoding" in found:
            raise Problem(400, "content-length and transfer-encoding contradict each other")
        if b"content-encoding" in found and found[b"content-encoding"] != b"identity":
            raise Problem(415, "the body may not be compressed", param="content-encoding")
        host = _NAME.fullmatch(found.get(b"host", b"").decode("latin-1"))
        if host is None or not self.settings.admits(host[1].strip("[]")):
            raise Problem(
                403, "the Host header names a machine that this server is not; name it with --allow-host", param="host"
            )
        return found

    def _origin(self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes]) -> str | None:
        """Return the foreign origin that is allowed, None for none; a page of elsewhere is refused."""
        origin = headers.get(b"origin")
        if origin is None:
            return None
        text = origin.decode("latin-1")
        if text in self.settings.origins:
            return text
        if text == f"{scope['scheme']}://{headers[b'host'].decode('latin-1')}":
            return None
        raise Problem(403, "pages of other sites may not ask here; name them with --allow-origin", param="origin")

    def _key(self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes]) -> None:
        scope.setdefault("state", {})["tenant"] = ""
        if not self._digests:
            return
        given = headers.get(b"x-api-key", b"")
        kind, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer":
            given = bearer.strip()
        digest = _digest(given)
        known = [hmac.compare_digest(digest, other) for other in self._digests]  # all of them, whichever fits
        if any(known):
            scope["state"]["tenant"] = digest.hex()[:16]
        elif scope["path"] not in self._public:
            said = "is wrong" if given else "is needed: Authorization: Bearer KEY"
            raise Problem(401, f"an API key {said}", code="invalid_api_key")

    async def _body(
        self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes], receive: Receive
    ) -> Receive | None:
        """Read the body, whole and no more than is allowed, and see that it is strict JSON."""
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.limits.body:
            raise Problem(413, f"the body has more than {self.limits.body} bytes", code="too_large")
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        data = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(400, "the body broke off")
                    data += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(data) > self.limits.body:
                        raise Problem(413, f"the body has more than {self.limits.body} bytes", code="too_large")
        except TimeoutError:
            raise Problem(408, f"the body took more than {self.limits.body_seconds:g} s") from None
        if data or scope["method"] == "POST":
            _json_type(headers)
            strict.parse(bytes(data))
        return _replay(bytes(data), receive)


class Reply:
    """What is sent, with the headers that every answer has; knows whether it has begun."""

    def __init__(self, scope: MutableMapping[str, Any], send: Send) -> None:
        self._scope, self._send = scope, send
        self.id = secrets.token_hex(8)
        self.origin: str | None = None
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            had = {key.lower() for key, _ in message.get("headers", [])}
            extra = {**SAFE, "x-request-id": self.id}
            if self.origin:
                extra |= {
                    "access-control-allow-origin": self.origin,
                    "vary": "origin",
                    "cross-origin-resource-policy": "cross-origin",
                }
            new = [(k.encode(), v.encode()) for k, v in extra.items() if k.encode() not in had]
            message = {**message, "headers": [*message.get("headers", []), *new]}
        await self._send(message)

    async def preflight(self) -> None:
        """Tell a browser what a page of an allowed origin may send."""
        allowed = {
            "access-control-allow-methods": "GET, POST",
            "access-control-allow-headers": "authorization, content-type, x-api-key",
            "access-control-max-age": "600",
            "content-length": "0",
        }
        headers = [(k.encode(), v.encode()) for k, v in allowed.items()]
        await self({"type": "http.response.start", "status": 204, "headers": headers})
        await self({"type": "http.response.body", "body": b""})

    async def problem(self, problem: Problem, *, close: bool = False) -> None:
        """Send an error, unless an answer is on its way already."""
        if self.status is not None:
            return
        path = self._scope["path"]
        body = {"error": problem.message} if path.startswith("/api/") else problem.body()
        data = json.dumps(body, ensure_ascii=False).encode()
        headers = {"content-type": "application/json", "content-length": str(len(data)), **problem.headers}
        if close:  # nobody knows what of the request is still to come
            headers["connection"] = "close"
        if problem.status == 401:
            headers["www-authenticate"] = "Bearer"
        pairs = [(k.encode(), v.encode()) for k, v in headers.items()]
        await self({"type": "http.response.start", "status": problem.status, "headers": pairs})
        await self({"type": "http.response.body", "body": data})


def _replay(data: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": data, "more_body": False}

    return again


def _json_type(headers: dict[bytes, bytes]) -> None:
    kind, _, rest = headers.get(b"content-type", b"").decode("latin-1").lower().partition(";")
    if kind.strip() != "application/json" or rest.replace(" ", "").replace('"', "") not in ("", "charset=utf-8"):
        raise Problem(415, "the header must say content-type: application/json", param="content-type")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _own_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if _ID.fullmatch(given) else secrets.token_hex(8)


def _quoted(path: str) -> str:
    return ascii(path[:200])[1:-1]
