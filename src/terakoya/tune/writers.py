"""Who writes when data is made: a model of ours, or whatever answers at an OpenAI-compatible address."""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Message, render
from terakoya.tune.rollout import drawn
from terakoya.zoo.convert import Loaded

LARGEST = 2**22  # bytes of a reply
PATIENCE = 300.0  # seconds for a reply
Prompt = tuple[Message, ...]


@dataclass(frozen=True)
class Written:
    """One answer, and whether it came to its end."""

    text: str
    finished: bool


class Writer(Protocol):
    """Something that answers conversations."""

    name: str

    def write(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], *, tokens: int, temperature: float
    ) -> list[Written]:
        """Answer every prompt with at most `tokens` tokens."""
        ...


class Own:
    """A model in this process; the same seeds give the same answers."""

    def __init__(self, name: str, loaded: Loaded) -> None:
        if loaded.tokenizer is None:
            raise TerakoyaError(name, "has no tokenizer")
        self.name, self.model, self.tokenizer = name, loaded.model, loaded.tokenizer

    def write(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], *, tokens: int, temperature: float
    ) -> list[Written]:
        """Answer every prompt side by side; one that leaves no room in the context is not answered."""
        ids = [render(self.tokenizer, p, answer=True).ids for p in prompts]
        fits = [i for i, q in enumerate(ids) if len(q) + tokens <= self.model.spec.context]
        groups = drawn(
            self.model, self.tokenizer, [ids[i] for i in fits], [seeds[i] for i in fits], n=1,
            temperature=temperature, tokens=tokens,
        )  # fmt: skip
        out = [Written("", False)] * len(ids)
        for i, (rollout,) in zip(fits, groups, strict=True):
            out[i] = Written(rollout.text, rollout.finished)
        return out


class Endpoint:
    """A server that speaks OpenAI's chat completions, one question at a time.

    `url` is its base, such as http://127.0.0.1:8484/v1; `key` the name of the environment variable with its key.
    """

    def __init__(self, url: str, model: str, key: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise TerakoyaError("endpoint", given=url, allowed="http(s)://host[:port]/v1")
        if key and key not in os.environ:
            raise TerakoyaError("key", "is no variable of the environment", given=key)
        self.parts, self.model, self.key = parts, model, os.environ.get(key, "") if key else ""
        self.name = f"{model} at {parts.scheme}://{parts.netloc}{parts.path}"

    def write(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], *, tokens: int, temperature: float
    ) -> list[Written]:
        """Ask one after another."""
        out = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            said = [{"role": m.role, "content": m.content} for m in prompt]
            asked = {"model": self.model, "messages": said, "max_tokens": tokens, "temperature": temperature}
            out.append(self._read(self._post(json.dumps(asked | {"seed": seed % 2**31}).encode())))
        return out

    def _post(self, body: bytes) -> bytes:
        host, port = self.parts.hostname or "", self.parts.port
        if self.parts.scheme == "https":
            context = ssl.create_default_context()
            link: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=PATIENCE, context=context
            )
        else:
            link = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        try:
            link.request("POST", f"{self.parts.path.rstrip('/')}/chat/completions", body, headers)
            reply = link.getresponse()
            data = reply.read(LARGEST + 1)
        except (OSError, http.client.HTTPException) as error:
            raise TerakoyaError(self.name, f"does not answer ({type(error).__name__}: {error})") from None
        finally:
            link.close()
        if reply.status != 200:
            raise TerakoyaError(
                self.name, f"refuses with status {reply.status}", given=data[:200].decode("utf-8", "replace")
            )
        if len(data) > LARGEST:
            raise TerakoyaError(self.name, f"sends more than {LARGEST} bytes")
        return data

    def _read(self, data: bytes) -> Written:
        try:
            choice = json.loads(data)["choices"][0]
            text, reason = choice["message"]["content"] or "", choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            problem = "sends something else than a chat completion"
            raise TerakoyaError(self.name, problem, given=data[:100].decode("utf-8", "replace")) from None
        if not isinstance(text, str):
            raise TerakoyaError(self.name, "sends an answer that is no text", given=type(text).__name__)
        return Written(text, reason == "stop")
