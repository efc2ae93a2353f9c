"""A conversation through an engine, whose smaller model guesses ahead. What was read is found in its prefix cache."""

from __future__ import annotations

from collections.abc import Generator

from terakoya.engine.chat import Chat
from terakoya.engine.engine import Engine
from terakoya.engine.generate import Token
from terakoya.engine.request import Request
from terakoya.engine.sampling import Sampling
from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Message, Template


class Aided(Chat):
    """A conversation as `Chat` leads it, its answers computed by an engine. Replies know of their guesses."""

    def __init__(self, engine: Engine, *, system: str | None = None, template: str | Template | None = None) -> None:
        if engine.tokenizer is None:
            raise TerakoyaError("model", "has no tokenizer beside it", allowed="a folder with tokenizer.json")
        super().__init__(engine.model, engine.tokenizer, system=system, template=template)
        self.engine, self.context = engine, engine.context

    def _answer(
        self, kept: list[Message], ids: list[int], reused: int, sampling: Sampling
    ) -> Generator[Token, None, None]:
        handle = self.engine.submit(Request(tuple(ids), sampling))
        reply, said = self._reply, []
        assert reply is not None
        try:
            for delta in handle:
                if delta.error is not None:
                    raise delta.error
                if delta.usage is not None:
                    reply.guesses = (delta.usage.accepted, delta.usage.proposed)
                assert delta.finish is None or delta.finish in ("stop", "length", "end")
                said.append(delta.text)
                yield Token(delta.ids[0], delta.text, 0.0, 0.0, delta.finish)
        finally:
            handle.cancel()
            if said:
                self.messages = [*kept, Message("assistant", "".join(said))]
