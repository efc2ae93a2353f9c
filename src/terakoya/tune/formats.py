"""Rows of the common data sets to examples: what is said, and which part of it is to be learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Message
from terakoya.tokenizer.chat import conversation
from terakoya.tune.rows import Row

Format = Literal["messages", "sharegpt", "alpaca", "dolly", "prompt", "text"]


@dataclass(frozen=True)
class Talk:
    """A conversation; what assistants say from message `first` on is learnt, but for the messages `silent`."""

    place: str
    messages: tuple[Message, ...]
    first: int = 0
    silent: tuple[int, ...] = ()


@dataclass(frozen=True)
class Completion:
    """Plain text after plain text, without a chat template; only `completion` and the end are learnt."""

    place: str
    prompt: str
    completion: str


Example = Talk | Completion


@dataclass(frozen=True)
class Choice:
    """A prompt and two answers, the better first."""

    place: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Verdict:
    """A prompt and one answer that was liked or not."""

    place: str
    prompt: tuple[Message, ...]
    answer: str
    liked: bool


ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}


def examples(found: Iterable[tuple[str, Row]], wanted: Format | None) -> Iterator[Example]:
    """Read rows as `wanted`, or as the format that the first row's fields show; later rows must agree."""
    for place, row in found:
        if wanted is None:
            wanted = recognise(place, row)
        yield READERS[wanted](place, row)


def recognise(place: str, row: Row) -> Format:
    """Name the format of a row by its fields."""
    for fields, name in MARKS:
        if fields <= row.keys():
            return name
    raise TerakoyaError(
        place, "is of no format known here", given=", ".join(sorted(row)),
        allowed=[f"{name} ({', '.join(sorted(fields))})" for fields, name in MARKS],
    )  # fmt: skip


def _messages(place: str, row: Row) -> Talk:
    if row.get("tools"):
        raise TerakoyaError(f"{place}: tools", "cannot be taught: they would not be seen", hint="leave such rows out")
    where = f"{place}: messages"
    plain, silent = _weighed(where, row.get("messages"))
    return Talk(place, tuple(conversation(where, plain)), silent=silent)


def _weighed(place: str, rows: object) -> tuple[object, tuple[int, ...]]:
    """Take OpenAI's `weight` out of messages: 0 marks what an assistant says and is not to be learnt."""
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        return rows, ()
    plain, silent = [], []
    for i, row in enumerate(rows):
        if isinstance(row, Mapping) and "weight" in row:
            weight = row["weight"]
            if weight not in (0, 1, None) or (weight is not None and row.get("role") != "assistant"):
                allowed = "0 or 1, where an assistant speaks"
                raise TerakoyaError(f"{place}[{i}]: weight", given=weight, allowed=allowed)
            silent += [i] if weight == 0 else []
            row = {key: value for key, value in row.items() if key != "weight"}
        plain.append(row)
    return plain, tuple(silent)


def _sharegpt(place: str, row: Row) -> Talk:
    turns = row.get("conversations")
    if not isinstance(turns, Iterable) or isinstance(turns, str | bytes | Mapping):
        raise TerakoyaError(f"{place}: conversations", "must be a list", given=type(turns).__name__)
    said = [Message("system", _text(place, row, "system"))] if row.get("system") else []
    for i, turn in enumerate(turns):
        where = f"{place}: conversations[{i}]"
        if not isinstance(turn, Mapping):
            raise TerakoyaError(where, "must be an object with from and value", given=type(turn).__name__)
        role = _text(where, turn, "from")
        said.append(Message(ROLES.get(role, role), _text(where, turn, "value")))
    return Talk(place, tuple(said))


def _alpaca(place: str, row: Row) -> Talk:
    return _task(place, row, "input", "output")


def _dolly(place: str, row: Row) -> Talk:
    return _task(place, row, "context", "response")


def _task(place: str, row: Row, context: str, answer: str) -> Talk:
    asked = _text(place, row, "instruction")
    if row.get(context):
        asked = f"{asked}\n\n{_text(place, row, context)}"
    said = [Message("system", _text(place, row, "system"))] if row.get("system") else []
    return Talk(place, (*said, Message("user", asked), Message("assistant", _text(place, row, answer))))


def _prompt(place: str, row: Row) -> Example:
    if isinstance(row.get("prompt"), str):
        return Completion(place, row["prompt"], _text(place, row, "completion"))
    prompt = _said(place, "prompt", row)
    return Talk(place, (*prompt, *_said(place, "completion", row)), first=len(prompt))


def _plain(place: str, row: Row) -> Completion:
    return Completion(place, "", _text(place, row, "text"))


MARKS: tuple[tuple[frozenset[str], Format], ...] = (
    (frozenset({"messages"}), "messages"),
    (frozenset({"conversations"}), "sharegpt"),
    (frozenset({"instruction", "output"}), "alpaca"),
    (frozenset({"instruction", "response"}), "dolly"),
    (frozenset({"prompt", "completion"}), "prompt"),
    (frozenset({"text"}), "text"),
)
READERS: Mapping[Format, Callable[[str, Row], Example]] = {
    "messages": _messages, "sharegpt": _sharegpt, "alpaca": _alpaca, "dolly": _dolly,
    "prompt": _prompt, "text": _plain,
}  # fmt: skip


def choices(found: Iterable[tuple[str, Row]]) -> Iterator[Choice]:
    """Read preferences: prompt (text or messages), chosen, rejected; or two whole conversations with one beginning."""
    for place, row in found:
        chosen, rejected = _either(place, row, "chosen"), _either(place, row, "rejected")
        prompt = _asked(place, row) if "prompt" in row else chosen[:-1]
        if "prompt" not in row and rejected[:-1] != prompt:
            raise TerakoyaError(place, "chosen and rejected must be the same up to their last message")
        both = (_answer(place, "chosen", chosen, prompt), _answer(place, "rejected", rejected, prompt))
        if both[0] == both[1]:
            raise TerakoyaError(place, "chosen and rejected are the same: nothing can be learnt from them")
        yield Choice(place, prompt, *both)


def verdicts(found: Iterable[tuple[str, Row]]) -> Iterator[Verdict]:
    """Read single answers with a `label`, or preferences as two verdicts each."""
    for place, row in found:
        if "label" not in row and {"chosen", "rejected"} <= row.keys():
            for choice in choices([(place, row)]):
                yield Verdict(place, choice.prompt, choice.chosen, True)
                yield Verdict(place, choice.prompt, choice.rejected, False)
            continue
        label = row.get("label")
        if not isinstance(label, bool):
            raise TerakoyaError(f"{place}: label", "must be true or false", given=label)
        prompt = _asked(place, row)
        yield Verdict(place, prompt, _answer(place, "completion", _either(place, row, "completion"), prompt), label)


def _asked(place: str, row: Row) -> tuple[Message, ...]:
    prompt = row.get("prompt")
    return (Message("user", prompt),) if isinstance(prompt, str) else _said(place, "prompt", row)


def _either(place: str, row: Row, field: str) -> tuple[Message, ...]:
    value = row.get(field)
    return (Message("assistant", value),) if isinstance(value, str) else _said(place, field, row)


def _answer(place: str, field: str, said: tuple[Message, ...], prompt: tuple[Message, ...]) -> str:
    if not said or said[-1].role != "assistant":
        raise TerakoyaError(f"{place}: {field}", "must end with a message of the assistant")
    if said[:-1] not in ((), prompt):
        raise TerakoyaError(f"{place}: {field}", "must be the answer alone, or begin with the prompt")
    return said[-1].content


def _said(place: str, field: str, row: Row) -> tuple[Message, ...]:
    return tuple(conversation(f"{place}: {field}", row.get(field)))


def _text(place: str, row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise TerakoyaError(f"{place}: {field}", "must be text", given=type(value).__name__)
    return value
