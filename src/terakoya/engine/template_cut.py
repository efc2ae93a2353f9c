"""The template language of checkpoints, first half: from text to texts, tags and words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from terakoya.errors import TerakoyaError


class TemplateError(TerakoyaError):
    """A template that is broken, does too much, or refuses the conversation."""

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__("chat template", problem[:500], hint=hint)


@dataclass(frozen=True)
class Word:
    """One word of an expression. `kind`: name, number, string, mark, end."""

    kind: str
    text: str
    value: Any = None


_TAG = re.compile(r"\{[{%#]")
_WORD = re.compile(
    r"\s+|(?P<number>\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<string>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")|(?P<mark>\*\*|//|==|!=|<=|>=|[-+*/%~<>=.,:|()\[\]{}])",
    re.S,
)
_RAW = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")
_CLOSE = {"{{": "}}", "{%": "%}", "{#": "#}"}


def cut(source: str) -> list[tuple[str, str]]:
    """Cut into ("text", …), ("{{", inside) and ("{%", inside), with Jinja's rules for spaces beside tags applied.

    As in transformers, a block alone on its line takes its indentation and its newline with it.
    """
    out: list[tuple[str, str]] = []
    at, eat, starts = 0, "", True
    while True:
        match = _TAG.search(source, at)
        text = source[at : match.start() if match else len(source)]
        if eat == "all":
            text = text.lstrip()
        elif eat == "line":
            starts = text.startswith("\n")
            text = text.removeprefix("\n")
        if match is None:
            out.append(("text", text))
            return out
        kind, begin = match.group(), match.end()
        sign = source[begin : begin + 1]
        if sign == "-":
            text = text.rstrip()
        elif kind != "{{" and sign != "+":
            line = text.rfind("\n") + 1
            if (line or starts) and not text[line:].strip():
                text = text[:line]
        begin += sign in ("-", "+")
        end, at = _end(source, begin, kind)
        inside, eat, starts = source[begin:end], "", False
        if inside.endswith("-"):
            inside, eat = inside[:-1], "all"
        elif inside.endswith("+") and kind != "{{":
            inside = inside[:-1]
        elif kind != "{{":
            eat = "line"
        out += [("text", text)] if text else []
        if kind == "{%" and inside.strip() == "raw":
            stop = _RAW.search(source, at)
            if stop is None:
                raise TemplateError("has raw without endraw")
            out.append(("text", source[at : stop.start()]))
            at = stop.end()
        elif kind != "{#":
            out.append((kind, inside))


def _end(source: str, begin: int, kind: str) -> tuple[int, int]:
    """Find where a tag closes, not inside a string: (end of the inside, begin of the rest)."""
    close = _CLOSE[kind]
    if kind == "{#":
        end = source.find(close, begin)
    else:
        at, end, braces = begin, -1, 0
        while at < len(source):
            if source.startswith(close, at) and not braces:
                end = at
                break
            char = source[at]
            if char in "'\"":
                stop = re.compile(rf"(?:[^{char}\\]|\\.)*{char}", re.S).match(source, at + 1)
                at = stop.end() if stop else len(source)
                continue
            braces = max(braces + (char == "{") - (char == "}"), 0)
            at += 1
    if end < 0:
        raise TemplateError(f"opens {kind} and does not close it")
    return end, end + 2


def words(text: str) -> list[Word]:
    """Cut an expression into words."""
    out, at = [], 0
    while at < len(text):
        match = _WORD.match(text, at)
        if match is None:
            raise TemplateError(f"has {text[at : at + 20]!r}, which is not understood")
        at, kind, found = match.end(), match.lastgroup, match.group()
        if kind == "number":
            plain = found.replace("_", "")
            value: Any = int(plain) if plain.isdigit() else float(plain)
            out.append(Word("number", found, value))
        elif kind == "string":
            value = found[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")
            out.append(Word("string", found, value))
        elif kind is not None:
            out.append(Word(kind, found))
    return [*out, Word("end", "")]
