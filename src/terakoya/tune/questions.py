"""What a model is asked when its own answers are judged: prompts, and what an answer is checked against."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Message
from terakoya.tokenizer.chat import conversation
from terakoya.tune.checks import Check, Marked, Number, Tests, Value
from terakoya.tune.formats import Talk, examples
from terakoya.tune.numbers import LONGEST, numbers, value
from terakoya.tune.recipe import Data, Tune
from terakoya.tune.rows import Row
from terakoya.tune.work import Prompt, read

ADDITION = "two-digit-addition"  # a source that needs no file
SUMS = 90 * 90  # of two numbers from 10 to 99
T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A prompt, the answer expected, and Python code that tests an answer's code."""

    prompt: Prompt
    answer: str = ""
    tests: str = ""
    place: str = ADDITION


def addition(count: int, seed: int) -> list[Question]:
    """Different sums of two numbers from 10 to 99, after two that are done: the form is shown, the sums are not."""
    rng = random.Random(seed)
    shown = ("12 + 25 =", "37", "41 + 19 =", "60")
    before = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(shown))
    pairs = rng.sample([(a, b) for a in range(10, 100) for b in range(10, 100)], count)
    return [Question((*before, Message("user", f"{a} + {b} =")), str(a + b)) for a, b in pairs]


def questions(data: Data, checks: Sequence[Check], seed: int) -> Iterator[Question]:
    """Read the questions that `checks` can judge: rows with an `answer`, with `tests`, or the built-in sums."""
    if data.source == ADDITION:
        if data.limit is not None and data.limit > SUMS:
            raise TerakoyaError("data.limit", given=data.limit, allowed=f"at most {SUMS:,}: there are no more sums")
        yield from addition(data.limit or 1000, seed)
        return
    for place, row in read(data):
        answer = _answer(place, row) if any(isinstance(c, Number | Marked | Value) for c in checks) else ""
        tests = _tests(place, row) if any(isinstance(c, Tests) for c in checks) else ""
        yield Question(asked(place, row), answer, tests, place)


def prompts(data: Data) -> Iterator[tuple[str, Prompt]]:
    """Read prompts alone with their places, from rows of any kind."""
    for place, row in read(data):
        yield place, asked(place, row)


def roomy(found: Iterable[tuple[str, T]], length: Callable[[T], int], recipe: Tune, tokens: int) -> tuple[list[T], str]:
    """Keep what leaves room for an answer of `tokens` in rows.context, as data.overlong says; say what was not kept."""
    room, overlong = recipe.rows.context, recipe.data.overlong
    if overlong not in ("error", "drop"):
        raise TerakoyaError("data.overlong", "cuts no prompt that is to be answered", given=overlong,
                            allowed=["error", "drop"])  # fmt: skip
    kept: list[T] = []
    dropped: list[str] = []
    for place, item in found:
        if (size := length(item)) + tokens <= room:
            kept.append(item)
        elif overlong == "error":
            problem = f"asks in {size} tokens: no room for method.tokens = {tokens} more in rows.context = {room}"
            raise TerakoyaError(place, problem, hint="raise rows.context, or leave such rows out: data.overlong = drop")
        else:
            dropped.append(place)
    shown = ", ".join(dropped[:3]) + (", …" if len(dropped) > 3 else "")
    return kept, f"; {len(dropped):,} overlong dropped ({shown})" if dropped else ""


def asked(place: str, row: Row) -> Prompt:
    """Return what stands before the first answer of a row."""
    if isinstance(row.get("question"), str):
        said: Sequence[Message] = (Message("user", row["question"]),)
    elif isinstance(row.get("prompt"), str):
        said = (Message("user", row["prompt"]),)
    elif "prompt" in row:
        said = conversation(f"{place}: prompt", row["prompt"])
    elif isinstance(row.get("chosen"), list):
        said = conversation(f"{place}: chosen", row["chosen"])
    else:
        example = next(examples([(place, row)], None))
        if not isinstance(example, Talk):
            raise TerakoyaError(place, "holds no question to be answered", given=", ".join(sorted(row)))
        said = example.messages
    first = next((i for i, m in enumerate(said) if m.role == "assistant"), len(said))
    if not any(m.role == "user" for m in said[:first]):
        raise TerakoyaError(place, "asks nothing before its first answer")
    return tuple(said[:first])


def _answer(place: str, row: Row) -> str:
    """The number, or the last of the numbers, in `answer`; a fraction as it stands."""
    said = str(row.get("answer", ""))
    if value(said) is not None:
        return said
    found = numbers(said.rpartition("####")[2])
    if not found or len(found[-1]) > LONGEST:
        allowed = f"a number of at most {LONGEST} digits to check against"
        raise TerakoyaError(f"{place}: answer", given=said[:80], allowed=allowed)
    return found[-1]


def _tests(place: str, row: Row) -> str:
    """Python code in `tests`; or HumanEval's `test` and `entry_point` (Chen 2021)."""
    if isinstance(row.get("tests"), str):
        return row["tests"]
    if isinstance(row.get("test"), str) and isinstance(row.get("entry_point"), str):
        return f"{row['test']}\n\ncheck({row['entry_point']})"
    raise TerakoyaError(place, "has no tests", allowed="`tests`, or `test` and `entry_point`: Python code")
