"""A conversation with a model: what was said, what the model still holds in memory, and what no longer fits."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from terakoya.engine.generate import Finish, Token, check, generate
from terakoya.engine.sampling import Sampling
from terakoya.errors import TerakoyaError
from terakoya.model.context import Memory
from terakoya.model.model import Model
from terakoya.tokenizer import Message, Template, Tokenizer, render


class Reply(Iterator[str]):
    """An answer as it comes: iterate for its pieces. `notice` says what was dropped to make room, before the first.

    `tokens` and `finish` tell of what has come so far. `close` ends it early; what was said till then stays said.
    """

    def __init__(
        self, pieces: Generator[Token, None, None], notice: str | None, prompt_tokens: int, reused: int
    ) -> None:
        self._pieces = pieces
        self.notice, self.prompt_tokens, self.reused = notice, prompt_tokens, reused
        self.tokens = 0
        self.guesses: tuple[int, int] = (0, 0)  # of another model's: right, made
        self.finish: Finish | None = None  # None while it runs, and for good where it was closed

    def __next__(self) -> str:
        """Return the next piece that is not empty."""
        for token in self._pieces:
            self.tokens += 1
            self.finish = token.finish
            if token.text:
                return token.text
        raise StopIteration

    def close(self) -> None:
        """End the answer here."""
        self._pieces.close()


class Chat:
    """A conversation. What the model has read already is not read again, as far as the new prompt begins with it.

    Where the context is full, the oldest turns (a user's message and its answers) are dropped from the conversation
    and the reply's `notice` says so; the system message and the newest message always stay. Room is kept for
    `max_tokens` of answer, but never more than a quarter of the context.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, *, system: str | None = None, template: str | Template | None = None
    ) -> None:
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.context = model.spec.context
        self._opening = [Message("system", system)] if system is not None else []
        self._reply: Reply | None = None
        self.messages: list[Message] = []
        self._forget()
        self.reset()

    def reset(self) -> None:
        """Begin anew, with the system message alone."""
        self._finish()
        self.messages = list(self._opening)

    def say(self, text: str, sampling: Sampling) -> Reply:
        """Say something and get the answer as it comes; an answer still running is closed first.

        The conversation takes message and answer together, when the answer ends or is closed. Raises TerakoyaError,
        with the conversation as it was, for a template or message that does not fit.
        """
        self._finish()
        asked = [*self.messages, Message("user", text)]
        kept, ids, notice = self._fitting(asked, sampling)
        check(self.model, self.tokenizer, ids, sampling)
        reused = self._reusable(ids)
        self._reply = Reply(self._answer(kept, ids, reused, sampling), notice, len(ids), reused)
        return self._reply

    def _answer(
        self, kept: list[Message], ids: list[int], reused: int, sampling: Sampling
    ) -> Generator[Token, None, None]:
        if reused < len(self._held):
            self._cut(reused)
        said: list[Token] = []
        try:
            for token in generate(self.model, self.tokenizer, ids, sampling, memory=self._memory):
                said.append(token)
                yield token
        except GeneratorExit:
            raise
        except BaseException:  # a step broke off in the middle: what the memory holds is not known
            self._forget()
            raise
        finally:
            if self._memory.lengths[0]:
                self._held = [*ids, *(t.id for t in said)][: self._memory.lengths[0]]
            if said:
                self.messages = [*kept, Message("assistant", "".join(t.text for t in said))]

    def _fitting(self, asked: list[Message], sampling: Sampling) -> tuple[list[Message], list[int], str | None]:
        """Drop the oldest turns until prompt and answer fit -> (messages, their ids, what was dropped)."""
        context = self.context
        room = context - min(sampling.max_tokens, max(context // 4, 1))
        kept, dropped = asked, 0
        while True:
            ids = render(self.tokenizer, kept, template=self.template, answer=True).ids
            shorter = _without_oldest(kept)
            if len(ids) <= room or shorter is None:
                break
            kept, dropped = shorter, dropped + 1
        if len(ids) >= context:
            raise TerakoyaError(
                "message",
                f"does not fit: with the system message it has {len(ids)} tokens, the model's context is {context}",
                hint="say it shorter",
            )
        turns = "1 oldest turn" if dropped == 1 else f"{dropped} oldest turns"
        notice = f"dropped the {turns}: the context of {context} tokens is full" if dropped else None
        return kept, ids, notice

    def _reusable(self, ids: Sequence[int]) -> int:
        """Count the ids that the memory holds already; the last is always read, for its logits."""
        same = 0
        for a, b in zip(self._held, ids[:-1], strict=False):
            if a != b:
                break
            same += 1
        if same < len(self._held) and self._memory.states:  # a recurrent state cannot go back
            return 0
        return same

    def _cut(self, length: int) -> None:
        if length:
            self._memory.truncate(length)
            self._held = self._held[:length]
        else:
            self._forget()

    def _forget(self) -> None:
        self._memory = Memory()
        self._held: list[int] = []  # the ids that the memory has read

    def _finish(self) -> None:
        if self._reply is not None:
            self._reply.close()
            self._reply = None


def _without_oldest(messages: list[Message]) -> list[Message] | None:
    """Drop the oldest turn, up to the next message of a user; None where only the newest is left."""
    start = 1 if messages[0].role == "system" else 0
    for i in range(start + 1, len(messages)):
        if messages[i].role == "user":
            return messages[:start] + messages[i:]
    return None
