"""What the server allows: where it listens, who may ask, and how much."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from terakoya.errors import TerakoyaError

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class Limits:
    """How much one client may ask for. Bytes, seconds, tokens."""

    body: int = 2 << 20
    headers: int = 32 << 10
    header_count: int = 100
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 5.0
    write_seconds: float = 30.0  # a reader that takes nothing for so long is dropped
    beat_seconds: float = 15.0  # a comment in a stream that has nothing to say yet
    connections: int = 512
    per_address: int = 64  # of these; this machine itself, where a proxy may stand, is not counted
    running: int = 64
    waiting: int = 256
    waiting_tokens: int = 1_000_000
    waiting_contexts: int = 4  # times a model's context, in tokens; but 16,384 may always wait
    answer: int = 512  # tokens of an answer where the request does not say
    seconds: float = 120.0  # of one answer

    def queue(self, context: int) -> int:
        """Return how many tokens may wait for a model with this context."""
        return min(self.waiting_tokens, max(self.waiting_contexts * context, 16_384))


@dataclass(frozen=True)
class Settings:
    """Address, keys and names. `hosts` are further names for the Host header, `origins` pages of other sites."""

    host: str = "127.0.0.1"
    port: int = 8484
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    insecure: bool = False
    grace: float = 30.0  # seconds to finish after SIGTERM
    adapters: Path | None = None  # a folder that adapters may be loaded from over the network
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not self.local and not self.keys and not self.insecure:
            raise TerakoyaError(
                "--host", "opens the server to others, and no key is set", given=self.host,
                hint="give --api-key-file FILE, or --insecure if you mean it",
            )  # fmt: skip
        if self.adapters is not None and not self.keys:
            raise TerakoyaError("--adapters", "lets clients load models", hint="give --api-key-file FILE")
        for key in self.keys:
            if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
                raise TerakoyaError("API key", "must be 8 or more ASCII characters without spaces")
        if not 0 <= self.port <= 65535:
            raise TerakoyaError("--port", given=self.port, allowed="0 to 65535")

    @property
    def local(self) -> bool:
        """Whether only programs on this machine can reach the server."""
        return self.host in LOOPBACK

    def admits(self, name: str) -> bool:
        """Whether a Host header may say this name: a page elsewhere must not borrow a name that leads here."""
        name = name.lower()
        if name in LOOPBACK or name == self.host or name in self.hosts:
            return True
        return not self.local and _address(name)  # a number cannot be rebound


def _address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
