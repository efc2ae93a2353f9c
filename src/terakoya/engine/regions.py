"""Parts of an answer that are no plain text: reasoning and tool calls, found by their marks as the text comes.

What is not streamed is the joined stream, by construction. A mark counts where its region may begin: reasoning only
before anything else was said, so a `</think>` that an answer talks about stays text. A tool call that is no JSON stays
text too, as it was written.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from terakoya.tokenizer import Tokenizer

Kind = Literal["text", "reasoning", "tool"]


@dataclass(frozen=True)
class Region:
    """One way to mark a part. `close` empty: to the end of the answer, or of the JSON value for tools."""

    kind: Kind
    open: str
    close: str = ""
    first: bool = False  # only before anything else


THINK = Region("reasoning", "<think>", "</think>", first=True)
REGIONS = (
    THINK,
    Region("reasoning", "[THINK]", "[/THINK]", first=True),
    Region("reasoning", "<|START_THINKING|>", "<|END_THINKING|>", first=True),
    Region("tool", "<tool_call>", "</tool_call>"),
    Region("tool", "[TOOL_CALLS]"),
    Region("tool", "<|python_tag|>"),
    Region("tool", "<|START_ACTION|>", "<|END_ACTION|>"),
    Region("tool", "<|tool_call|>", "<|/tool_call|>"),
)


@dataclass(frozen=True)
class Call:
    """A tool that the model wants called; `arguments` is JSON."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Piece:
    """A piece of the answer: text, reasoning, or one whole call."""

    kind: Kind
    text: str = ""
    call: Call | None = None


def regions_of(template: str) -> tuple[Region, ...]:
    """Return the regions whose marks a chat template knows."""
    return tuple(r for r in REGIONS if r.open in template)


def marks(regions: Sequence[Region], tokenizer: Tokenizer) -> frozenset[int]:
    """Return the control tokens among the marks: `Request.show` must name them, or the text would lack them."""
    names = {name for r in regions for name in (r.open, r.close)}
    return frozenset(id for name, id in tokenizer.specials.items() if name in names)


def opened(regions: Sequence[Region], prompt: str) -> Region | None:
    """Return the region that the prompt has opened already (a template that ends with `<think>`)."""
    end = prompt.rstrip()
    return next((r for r in regions if end.endswith(r.open)), None)


class Regions:
    """Cut an answer into pieces. `inside`: the region that the prompt opened; `bare`: a lone JSON call is one too."""

    def __init__(self, regions: Sequence[Region], *, inside: Region | None = None, bare: Collection[str] = ()) -> None:
        self._regions, self._inside = regions, inside
        self._bare = frozenset(bare)  # names of tools that may be called by JSON without marks
        self._scan = _Scan(inside.close if inside else "")
        self._held = ""
        self._said = False
        self._lead = True  # spaces beside marks are no part of what they mark
        self._plain = bool(self._bare) and inside is None  # may the whole answer still be one bare call?

    def push(self, text: str) -> list[Piece]:
        """Take a piece of text; return what is certain now."""
        self._held += text
        return self._take(last=False)

    def finish(self) -> list[Piece]:
        """Return the rest: nothing more comes."""
        return self._take(last=True)

    def _take(self, last: bool) -> list[Piece]:
        out: list[Piece] = []
        if self._plain:
            if not last and (not self._held.strip() or self._held.lstrip()[0] in "{["):
                return []
            self._plain = False
            if last and (calls := read_calls(self._held)) and all(c.name in self._bare for c in calls):
                self._held = ""
                return [Piece("tool", call=c) for c in calls]
        while True:
            found = self._open(last) if self._inside is None else self._close(last)
            if found is None:
                return [p for p in out if p.text or p.call]
            out += found

    def _open(self, last: bool) -> list[Piece] | None:
        """Look for the mark that opens a region; None: nothing more to be had now."""
        places = [(at, r) for r in self._regions if (at := self._held.find(r.open)) >= 0 and self._may(r, at)]
        if places:
            at, region = min(places, key=lambda place: place[0])
            before = self._text("text", self._held[:at])
            self._held, self._inside, self._lead = self._held[at + len(region.open) :], region, True
            self._scan = _Scan(region.close)
            return before
        keep = (
            0 if last else max((_overlap(self._held, r.open) for r in self._regions if self._may(r, None)), default=0)
        )
        free = len(self._held) - keep
        if not free:
            return None
        text, self._held = self._held[:free], self._held[free:]
        return self._text("text", text)

    def _may(self, region: Region, at: int | None) -> bool:
        if not region.first:
            return True
        before = (
            self._held[:at] if at is not None else self._held[: len(self._held) - _overlap(self._held, region.open)]
        )
        return not self._said and not before.strip()

    def _close(self, last: bool) -> list[Piece] | None:
        region = self._inside
        assert region is not None
        if region.kind == "tool":
            return self._call(region, last)
        at = self._held.find(region.close) if region.close else -1
        if at >= 0:
            text, self._held = self._text(region.kind, self._held[:at]), self._held[at + len(region.close) :]
            self._inside, self._lead = None, True
            return text
        free = len(self._held) - (0 if last else _overlap(self._held, region.close))
        if not free:
            return None
        text, self._held = self._held[:free], self._held[free:]
        return self._text(region.kind, text)

    def _call(self, region: Region, last: bool) -> list[Piece] | None:
        """Read calls up to the closing mark; what cannot be read is text."""
        end = self._scan.end(self._held)
        if end is None and not last:
            return None
        body = self._held if end is None else self._held[: end[0]]
        rest = "" if end is None else self._held[end[1] :]
        whole = region.open + (self._held if end is None else self._held[: end[1]])
        self._held, self._inside, self._lead = rest, None, True
        calls = read_calls(body)
        if calls:
            self._said = True
            return [Piece("tool", call=c) for c in calls]
        self._lead = False
        return self._text("text", whole)

    def _text(self, kind: Kind, text: str) -> list[Piece]:
        if self._lead and (self._said or kind != "text"):
            text = text.lstrip()
        if text.strip():
            self._lead = False
            self._said = True
        return [Piece(kind, text)]


def whole(pieces: Sequence[Piece]) -> tuple[str, str, list[Call]]:
    """Join pieces: (text, reasoning, calls)."""
    text, reasoning = ("".join(p.text for p in pieces if p.kind == kind) for kind in ("text", "reasoning"))
    return text, reasoning, [p.call for p in pieces if p.call]


def read_calls(body: str) -> list[Call]:
    """Read `{"name": …, "arguments": {…}}` (or "parameters"), or a list of these; [] for anything else."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        return []
    calls = []
    for item in found if isinstance(found, list) else [found]:
        if not isinstance(item, dict):
            return []
        name = item.get("name", item.get("tool_name"))
        arguments = item.get("arguments", item.get("parameters", {}))
        if isinstance(arguments, str):  # JSON within JSON
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return []
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            return []
        calls.append(Call(name, json.dumps(arguments, ensure_ascii=False)))
    return calls


def _overlap(text: str, mark: str) -> int:
    """Return how long an end of the text is that begins the mark."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)


class _Scan:
    """Find the end of a call: its mark outside JSON strings, or the end of its JSON value. Never looks twice."""

    def __init__(self, close: str) -> None:
        self._close = close
        self._at = self._depth = 0
        self._string = self._escaped = False

    def end(self, text: str) -> tuple[int, int] | None:
        """Look on in the text, which has grown at its end -> (end of the call, begin of the rest)."""
        close = self._close
        while self._at < len(text) - max(len(close) - 1, 0):
            at, char = self._at, text[self._at]
            self._at += 1
            if self._string:
                self._escaped, self._string = (char == "\\" and not self._escaped), char != '"' or self._escaped
                continue
            if close and text.startswith(close, at):
                return at, at + len(close)
            self._string = char == '"'
            self._depth += (char in "{[") - (char in "}]")
            if not close and self._depth == 0 and char in "}]":
                return at + 1, at + 1
        return None
