"""Conversations to ids: template words are ours, message words are anyone's, and weights say what to learn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from terakoya.errors import TerakoyaError, nearest
from terakoya.tokenizer.core import Part, Tokenizer
from terakoya.tokenizer.templates import TEMPLATES, Template, Turn


@dataclass(frozen=True)
class Message:
    """Who said what."""

    role: str
    content: str


Conversation = Sequence[Message]


@dataclass(frozen=True)
class Rendered:
    """A conversation as ids; `weights` is 1 on what the assistant says (its stop token too) and 0 elsewhere."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class _Chunk:
    """Text that is encoded by itself; no piece reaches over its ends."""

    parts: tuple[Part, ...]
    weight: float = 0.0


def render(
    tokenizer: Tokenizer,
    messages: Conversation,
    *,
    template: str | Template | None = None,
    answer: bool = False,
) -> Rendered:
    """Turn a conversation into ids and weights; `answer` appends the opener of an assistant turn.

    The ids of a prompt (`messages[:k]`, answer=True) are a prefix of the ids of the whole conversation. No content
    can become a control token. Raises TerakoyaError for a role the template has not, or control tokens the tokenizer
    has not.
    """
    known = chosen(tokenizer, template)
    _check(tokenizer, known)
    ids: list[int] = []
    weights: list[float] = []
    for chunk in _chunks(known, messages, answer, _names(tokenizer, known)):
        new = tokenizer.encode_parts(chunk.parts, after=ids[-1] if ids else None)
        ids += new
        weights += [chunk.weight] * len(new)
    return Rendered(ids, weights)


def written(
    tokenizer: Tokenizer,
    messages: Conversation,
    *,
    template: str | Template | None = None,
    answer: bool = False,
) -> str:
    """The same conversation as text, control tokens by name: to read, not to encode."""
    known = chosen(tokenizer, template)
    chunks = _chunks(known, messages, answer, _names(tokenizer, known))
    return "".join(text for chunk in chunks for text, _ in chunk.parts)


def conversation(place: str, rows: object) -> list[Message]:
    """Read messages from JSON rows `{"role": …, "content": …}`; anything else in a row is refused by name."""
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise TerakoyaError(place, "must be a list of messages", given=type(rows).__name__)
    return [_message(f"{place}[{i}]", row) for i, row in enumerate(rows)]


def chosen(tokenizer: Tokenizer, template: str | Template | None) -> Template:
    """The template asked for, or the tokenizer's own; never a guess."""
    if isinstance(template, Template):
        return template
    name = template or tokenizer.template
    if name is None:
        has = "one that we do not know" if tokenizer.jinja else "none"
        raise TerakoyaError(
            "chat template",
            f"is needed, and {tokenizer.name} has {has}",
            allowed=list(TEMPLATES),
            hint="name one: terakoya chat --template NAME",
        )
    if name not in TEMPLATES:
        raise TerakoyaError(
            "chat template", "is not known", given=name, allowed=list(TEMPLATES), hint=nearest(name, TEMPLATES)
        )
    return TEMPLATES[name]


def _message(place: str, row: Any) -> Message:
    if isinstance(row, Message):
        return row
    if not isinstance(row, Mapping):
        raise TerakoyaError(place, "must be an object with role and content", given=type(row).__name__)
    for key in row:
        if key not in ("role", "content"):
            raise TerakoyaError(f"{place}.{key}", "is not understood", allowed=("role", "content"))
    for key in ("role", "content"):
        if not isinstance(row.get(key), str):
            raise TerakoyaError(f"{place}.{key}", "must be text", given=type(row.get(key)).__name__)
    return Message(row["role"], row["content"])


def _check(tokenizer: Tokenizer, template: Template) -> None:
    missing = [c for c in template.controls if c not in tokenizer.specials]
    if missing:
        raise TerakoyaError(
            f"chat template {template.name}", f"needs the control token {missing[0]}, which {tokenizer.name} has not"
        )


def _names(tokenizer: Tokenizer, template: Template) -> dict[str, str]:
    """What `{bos}` and `{eos}` stand for; a missing bos is nothing, a missing eos that must end an answer an error."""
    by_id = {id: name for name, id in tokenizer.specials.items()}
    names = {"{bos}": "", "{eos}": ""}
    if tokenizer.bos is not None:
        names["{bos}"] = by_id[tokenizer.bos]
    if tokenizer.eos is not None:
        names["{eos}"] = by_id[tokenizer.eos]
    elif "{eos}" in template.turns["assistant"].tail:
        raise TerakoyaError(f"chat template {template.name}", f"ends answers with eos, which {tokenizer.name} has not")
    return names


def _chunks(template: Template, messages: Conversation, answer: bool, names: Mapping[str, str]) -> list[_Chunk]:
    def ours(*texts: str) -> Part:
        text = "".join(texts)
        for mark, name in names.items():
            text = text.replace(mark, name)
        return text, True

    def theirs(text: str) -> Part:
        return (text.strip() if template.trim else text), False

    system, rest = _opened(template, messages)
    found: list[_Chunk] = []
    opening = template.opening
    for i, message in enumerate(rest):
        turn = _turn(template, message, i, system is not None)
        words = [theirs(message.content)]
        if i == 0 and template.fold and system is not None:
            words = [ours(template.fold[0]), theirs(system), ours(template.fold[1]), *words]
        if message.role == "assistant":
            found += [
                _Chunk((ours(opening, turn.before),)),
                _Chunk((ours(turn.lead), *words, ours(turn.tail)), 1.0),
                _Chunk((ours(turn.after),)),
            ]
        else:
            found.append(_Chunk((ours(opening, turn.before, turn.lead), *words, ours(turn.tail, turn.after))))
        opening = ""
    if answer:
        found.append(_Chunk((ours(template.turns["assistant"].before),)))
    return found


def _opened(template: Template, messages: Conversation) -> tuple[str | None, list[Message]]:
    """The system text to fold (or None), and the messages that get turns of their own."""
    if not messages:
        raise TerakoyaError("messages", "are empty; at least one is needed")
    for i, message in enumerate(messages):
        if not isinstance(message, Message) or not isinstance(message.content, str):
            raise TerakoyaError(f"message {i}", "must be a Message with text", given=type(message).__name__)
    rest = list(messages)
    if template.fold:
        system = rest.pop(0).content if rest[0].role == "system" else template.system
        if not rest:
            raise TerakoyaError("messages", f"need a user message: {template.name} says the system text inside it")
        return system, rest
    if template.system is not None and rest[0].role != "system":
        rest.insert(0, Message("system", template.system))
    return None, rest


def _turn(template: Template, message: Message, at: int, folded: bool) -> Turn:
    place = f"message {at + folded}"
    if message.role not in template.turns:
        late = template.fold and message.role == "system"
        raise TerakoyaError(
            f"{place} role",
            f"may only come first in {template.name}" if late else "",
            given=message.role,
            allowed=template.roles,
            hint="" if late else nearest(message.role, template.roles),
        )
    if template.alternate and (message.role == "user") != (at % 2 == 0):
        raise TerakoyaError(
            f"{place} role", f"breaks the turns of {template.name}: user, assistant, user, …", given=message.role
        )
    return template.turns[message.role]
