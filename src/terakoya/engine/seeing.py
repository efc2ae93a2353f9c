"""Answers about pictures: their vectors are read into the memory first, in the places of their marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from terakoya.engine.chat import Chat
from terakoya.engine.sampling import Sampling
from terakoya.engine.vectors import Vectors, pictured
from terakoya.errors import TerakoyaError
from terakoya.model.context import Memory
from terakoya.model.model import Model
from terakoya.tokenizer import Message, Template, Tokenizer, render
from terakoya.tokenizer.chat import chosen

STEP = 512  # tokens read at a time


def mark_of(model: Model, tokenizer: Tokenizer) -> str:
    """Return the control token in whose places pictures stand; an error for a model that does not read them so."""
    sight = model.spec.sight
    if sight is None:
        raise TerakoyaError("--image", "needs a model that sees", given="one without an image encoder", allowed="LLaVA")
    if sight.resampler is not None:
        hint = "in Python: terakoya.model.flamingo.show"
        raise TerakoyaError("--image", "this model looks at pictures beside the text, not in it", hint=hint)
    name = next((name for name, id in tokenizer.specials.items() if id == sight.token), None)
    if name is None:
        raise TerakoyaError("tokenizer", "has no control token that is the picture's mark", given=sight.token)
    return name


@torch.inference_mode()
def begun(model: Model, ids: Sequence[int], vectors: Vectors) -> Memory:
    """Read a prompt up to its last picture and one token less than the whole -> the memory of it."""
    memory, end = Memory(), min(vectors.places[-1] + 1, len(ids) - 1)
    device = next(model.parameters()).device
    for start in range(0, end, STEP):
        part = torch.tensor(ids[start : min(start + STEP, end)], device=device)
        found = vectors.within(start, start + len(part))
        put = None
        if found:
            rows = vectors.rows[[row for _, row in found]].to(device)
            put = (torch.tensor([at for at, _ in found], device=device), rows)
        ctx = memory.step([len(part)], device, vectors=put)
        model(part, ctx)
        ctx.close()
    return memory


def prompt(tokenizer: Tokenizer, text: str, mark: str, pictures: int) -> list[int]:
    """Encode a prompt in which `mark` stands for each picture; where it stands nowhere, the pictures come first."""
    prefix, _ = tokenizer.wrap()
    pieces = text.split(mark)
    if len(pieces) == 1:
        pieces = [*[""] * pictures, f"\n{text}"]
    if len(pieces) - 1 != pictures:
        raise TerakoyaError("prompt", f"has {len(pieces) - 1} {mark}", allowed=f"{pictures}, one for each --image")
    parts = [part for piece in pieces for part in ((mark, True), (piece, False))][1:]
    return [*prefix, *tokenizer.encode_parts(parts)]


class Seeing(Chat):
    """A conversation that begins with pictures, before the words of the first message."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        pixels: Tensor,
        *,
        system: str | None = None,
        template: str | Template | None = None,
    ) -> None:
        self._mark, self._pixels = mark_of(model, tokenizer), pixels
        self._opened: tuple[list[int], list[int], Vectors] | None = None  # plain ids, ids with pictures, vectors
        super().__init__(model, tokenizer, system=system, template=template)

    def reset(self) -> None:
        """Begin anew, with the system message alone: the next message shows the pictures again."""
        super().reset()
        self._opened = None
        self._forget()

    def _fitting(self, asked: list[Message], sampling: Sampling) -> tuple[list[Message], list[int], str | None]:
        kept, ids, notice = super()._fitting(asked, sampling)
        if notice is not None:
            self._opened = None
            return kept, ids, f"{notice}; the pictures went with them"
        first = 1 + next(i for i, message in enumerate(kept) if message.role == "user")
        if len(kept) == first:
            self._opened = self._open(kept)
        if self._opened is None:
            return kept, ids, None
        plain, wide, _ = self._opened
        assert ids[: len(plain)] == plain
        ids = [*wide, *ids[len(plain) :]]
        if len(ids) >= self.model.spec.context:
            problem = f"does not fit: with the pictures it has {len(ids)} tokens"
            raise TerakoyaError("message", problem, allowed=f"fewer than {self.model.spec.context}")
        return kept, ids, None

    def _open(self, messages: list[Message]) -> tuple[list[int], list[int], Vectors]:
        known = chosen(self.tokenizer, self.template)
        user = known.turns["user"]
        shown = replace(user, before=f"{user.before}{self._mark * len(self._pixels)}\n")
        seeing = replace(known, turns={**known.turns, "user": shown})
        plain = render(self.tokenizer, messages, template=known, answer=True).ids
        ids = render(self.tokenizer, messages, template=seeing, answer=True).ids
        wide, vectors = pictured(self.model, ids, self._pixels)
        return plain, list(wide), vectors

    def _reusable(self, ids: Sequence[int]) -> int:
        if self._opened is not None:
            _, wide, vectors = self._opened
            end = vectors.places[-1] + 1
            if self._held[:end] != wide[:end]:  # the marks alone say nothing: their vectors must have been read
                self._memory = begun(self.model, wide, vectors)
                self._held = wide[: self._memory.lengths[0]]
        return super()._reusable(ids)
