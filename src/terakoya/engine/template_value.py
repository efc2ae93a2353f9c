"""Text that remembers which of its characters the template wrote, and which anyone may have written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from terakoya.engine.template_cut import TemplateError


class Fuel:
    """What a template may still do: `steps` of work, `characters` made, `depth` of calls."""

    def __init__(self, steps: int = 200_000, characters: int = 2_000_000, depth: int = 24) -> None:
        self.steps, self.characters, self.depth = steps, characters, depth

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise TemplateError("does too much work")

    def make(self, count: int) -> None:
        self.step()
        self.characters -= count
        if self.characters < 0:
            raise TemplateError("makes too much text")


class Text:
    """A text with one mark per character: 1 where the template's author wrote it. Plain `str` is anyone's."""

    __slots__ = ("marks", "text")

    def __init__(self, text: str, marks: bytes | None = None) -> None:
        self.text, self.marks = text, b"\1" * len(text) if marks is None else marks

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Text | str) and self.text == plain(other)

    def __hash__(self) -> int:
        return hash(self.text)

    def __len__(self) -> int:
        return len(self.text)

    def __lt__(self, other: Text | str) -> bool:
        return self.text < plain(other)

    def __getitem__(self, at: int | slice) -> Text:
        if isinstance(at, int):
            return Text(self.text[at], bytes((self.marks[at],)))
        return Text(self.text[at], self.marks[at])

    def cut(self, begin: int, end: int) -> Text:
        return Text(self.text[begin:end], self.marks[begin:end])


def plain(value: Any) -> Any:
    """Return a value with every Text in it as str: for looking up, comparing, writing as JSON."""
    if isinstance(value, Text):
        return value.text
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, tuple):
        return tuple(plain(v) for v in value)
    return value


def is_text(value: object) -> bool:
    return isinstance(value, str | Text)


def as_text(value: str | Text) -> Text:
    return value if isinstance(value, Text) else Text(value, bytes(len(value)))


def joined(items: Iterable[str | Text], between: str | Text = "") -> Text:
    """Join texts, each character keeping its mark."""
    found = [as_text(i) for i in items]
    gap = as_text(between)
    return Text(gap.text.join(t.text for t in found), gap.marks.join(t.marks for t in found))


def size(value: Any, fuel: Fuel, depth: int = 0) -> int:
    """Measure a value before it is written out: shared parts count every time they appear."""
    fuel.step()
    if depth > 40:
        raise TemplateError("has a value that is nested too deep")
    if is_text(value):
        return len(value) + 2
    if isinstance(value, dict):
        return 2 + sum(size(k, fuel, depth + 1) + size(v, fuel, depth + 1) + 4 for k, v in value.items())
    if isinstance(value, list | tuple):
        return 2 + sum(size(v, fuel, depth + 1) + 2 for v in value)
    if isinstance(value, int | float):
        return 24
    if value is None or hasattr(value, "undefined"):
        return 4
    raise TemplateError(f"writes out a {type(value).__name__}")


def strip(value: str | Text, characters: Any = None, *, left: bool = True, right: bool = True) -> Text:
    t, chars = as_text(value), plain(characters)
    begin = len(t) - len(t.text.lstrip(chars)) if left else 0
    end = len(t.text.rstrip(chars)) if right else len(t)
    return t.cut(begin, max(begin, end))


def split(value: str | Text, at: Any = None, most: int = -1, *, right: bool = False) -> list[Text]:
    t, by = as_text(value), plain(at)
    if by == "":
        raise TemplateError("splits at nothing")
    cut = t.text.rsplit if right else t.text.split
    pieces, out, place = cut(by, most), [], 0
    for piece in pieces:  # they lie in the text in this order
        if by is None:
            place = t.text.index(piece, place)
        out.append(t.cut(place, place + len(piece)))
        place += len(piece) + (0 if by is None else len(by))
    return out


def lines(value: str | Text) -> list[Text]:
    t, out, place = as_text(value), [], 0
    for line in t.text.splitlines(keepends=True):
        bare = len(line.splitlines()[0])
        out.append(t.cut(place, place + bare))
        place += len(line)
    return out


def replaced(value: str | Text, old: Any, new: Any, count: int, fuel: Fuel) -> Text:
    t, by = as_text(value), as_text(new)
    pattern = plain(old)
    times = t.text.count(pattern) if count < 0 else min(count, t.text.count(pattern))
    fuel.make(len(t) + times * max(len(by) - len(pattern), 0))
    fuel.step(times)
    out, place = [], 0
    for found in re.finditer(re.escape(pattern), t.text):
        if len(out) // 2 >= times:
            break
        out += [t.cut(place, found.start()), by]
        place = found.end()
    return joined([*out, t.cut(place, len(t))])


def changed(value: str | Text, change: Callable[[str], str]) -> Text:
    """Apply what may change the length (upper, title): trusted only where all of it was."""
    t = as_text(value)
    new = change(t.text)
    if len(new) == len(t):
        return Text(new, t.marks)
    return Text(new, bytes((min(t.marks, default=0),)) * len(new))
