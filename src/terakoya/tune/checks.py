"""What an answer is worth, told by a program: each check is a small dataclass, and an answer's reward is their sum."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from terakoya import sandbox
from terakoya.errors import TerakoyaError
from terakoya.tune.numbers import last_number, numbers, value

FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def _positive(place: str, **given: float) -> None:
    for name, number in given.items():
        if not 0 < number < math.inf:
            raise TerakoyaError(f"{place}.{name}", given=number, allowed="more than 0")


@dataclass(frozen=True)
class Number:
    """1 where the last number of the answer is the expected one, exactly."""

    share: float = 1.0

    def __post_init__(self) -> None:
        _positive("number", share=self.share)


@dataclass(frozen=True)
class Marked:
    """1 where the number after the last `mark` is the expected one: GSM8K's form (Cobbe 2021)."""

    mark: str = "####"
    share: float = 1.0

    def __post_init__(self) -> None:
        _positive("marked", share=self.share)
        if not self.mark:
            raise TerakoyaError("marked.mark", given=self.mark, allowed="a text that is not empty")


@dataclass(frozen=True)
class Value:
    """1 where what follows the last = (or the last line) computes to the expected value exactly: 1/2 is 0.5."""

    share: float = 1.0

    def __post_init__(self) -> None:
        _positive("value", share=self.share)


@dataclass(frozen=True)
class Tests:
    """1 where the answer's Python code passes the row's tests, run in a sandbox of its own."""

    __test__ = False  # no test class of pytest's
    share: float = 1.0
    seconds: float = 5.0  # of the processor, for code and tests together
    memory_mib: int = 512

    def __post_init__(self) -> None:
        _positive("tests", share=self.share, seconds=self.seconds, memory_mib=self.memory_mib)
        if (lack := sandbox.missing()) is not None:
            raise TerakoyaError("tests", f"code can only be run in a sandbox, and this machine lacks {lack}",
                                hint="use Linux 6.2 or later with user namespaces, or another check")  # fmt: skip


@dataclass(frozen=True)
class Digits:
    """Share of the digits that are right, from the last on, so that a model seldom right has something to climb."""

    share: float = 0.5

    def __post_init__(self) -> None:
        _positive("digits", share=self.share)


@dataclass(frozen=True)
class Form:
    """1 where the whole answer has a form: a regular expression, `.` matching line ends too."""

    pattern: str = r"\s*<think>.+</think>\s*<answer>.+</answer>\s*"
    share: float = 0.2

    def __post_init__(self) -> None:
        _positive("form", share=self.share)
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise TerakoyaError("form.pattern", f"is no regular expression ({error})", given=self.pattern) from None


@dataclass(frozen=True)
class Brief:
    """0 up to `free` tokens, falling evenly to -1 at the most there may be (DAPO's soft overlong punishment, §3.4)."""

    free: int = 64
    share: float = 1.0

    def __post_init__(self) -> None:
        _positive("brief", free=self.free, share=self.share)


Check = Number | Marked | Value | Tests | Digits | Form | Brief
DECIDES = (Number, Marked, Value, Tests)  # tell right from wrong; the others only shape


@dataclass(frozen=True)
class Answer:
    """What is checked: the text, and how many tokens of how many possible it took."""

    text: str
    tokens: int
    most: int


def verdict(check: Check, answer: Answer, expected: str, tests: str = "") -> float:
    """Apply one check: 0 to 1 (Brief: -1 to 0), before its share."""
    match check:
        case Number():
            return float(last_number(answer.text) == value(expected) is not None)
        case Marked(mark):
            said = answer.text.rpartition(mark)
            found = numbers(said[2]) if said[1] else []
            return float(bool(found) and value(found[0]) == value(expected))
        case Value():
            lines = answer.text.strip().splitlines() or [""]
            said = value(lines[-1].rpartition("=")[2])
            return float(said is not None and said == value(expected))
        case Tests():
            return passed(check, answer.text, tests)
        case Digits():
            return near(answer.text, expected)
        case Form(pattern):
            return float(re.fullmatch(pattern, answer.text, re.DOTALL) is not None)
        case Brief(free):
            return -min(1.0, max(0, answer.tokens - free) / max(1, answer.most - free))


def near(text: str, expected: str) -> float:
    """Share of the digits that are right, counted from the last; 0 where the number is longer or shorter."""
    found, exact = numbers(text), value(expected)
    wanted = str(exact) if exact is not None and exact.denominator == 1 else expected  # 42.0 and ４２ are 42
    if not found or len(found[-1]) != len(wanted):
        return 0.0
    return sum(a == b for a, b in zip(found[-1], wanted, strict=True)) / len(wanted)


def code(text: str) -> str:
    """The Python code of an answer: its last fenced block, or all of it."""
    blocks = FENCE.findall(text)
    return blocks[-1] if blocks else text


def passed(check: Tests, text: str, tests: str) -> float:
    """Run code and tests in the sandbox; only reaching the end of the tests counts, not an early exit."""
    limits = sandbox.Limits(seconds=check.seconds, memory=check.memory_mib * 2**20)
    sentinel = sandbox.token()
    ran = sandbox.run(f"{code(text)}\n\n{tests}\n\nprint({sentinel!r})\n", limits)
    return float(ran.code == 0 and ran.output.rstrip().endswith(sentinel))


def reward(checks: Sequence[Check], answer: Answer, expected: str, tests: str = "") -> tuple[float, bool]:
    """Return Σ share · verdict, and whether every check that decides says 1."""
    seen = [(c, verdict(c, answer, expected, tests)) for c in checks]
    solved = all(v == 1.0 for c, v in seen if isinstance(c, DECIDES))
    return sum(c.share * v for c, v in seen), solved
