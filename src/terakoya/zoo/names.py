"""Where public checkpoints keep each weight, as data that serves loading and saving alike.

A rule is (ours, theirs, layout). `{i}` is the layer, `*` is weight or bias, `(q,k,v)` are several of ours fused into
one of theirs, `{e}` on their side numbers experts that are stacked on ours. Rules are driven by our parameters: one for
an absent bias or norm never fires, and a parameter that no rule names is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from terakoya.errors import TerakoyaError


@dataclass(frozen=True)
class Layout:
    """How their tensor holds ours. Every choice only moves numbers, so both directions are exact.

    Fused parts lie as [groups, rows / groups of each part, ...]; `groups` is a number, or the head counts of the spec,
    or "rows" where the rows alternate. `transpose` swaps the last two axes (OpenAI's Conv1D). `paired` undoes
    llama.cpp's order of rotary rows: (2i, 2i + 1) there, (i, i + K / 2) here. `tiled` query heads take key head
    h mod G there, h // (H / G) here (PLaMo). The rule counts only `beside` another parameter of ours.
    """

    groups: int | Literal["heads", "kv_heads", "rows"] = 1
    transpose: bool = False
    dim: int = 0
    paired: Literal["heads", "kv_heads"] | None = None
    tiled: bool = False
    beside: str = ""
    cube: bool = False  # heads have an axis of their own: (D, H, K) there, (D, H * K) here, or transposed (XLNet)


PLAIN = Layout()
Rule = tuple[str, str] | tuple[str, str, Layout]


@dataclass(frozen=True)
class Match:
    """Our parameters that one of their tensors holds (or, with `{e}` in `theirs`, one tensor per expert)."""

    ours: tuple[str, ...]
    theirs: str
    layout: Layout


def expand(rules: Iterable[Rule], parameters: Sequence[str], place: str) -> list[Match]:
    """Match our parameter names against the rules, first rule first; an error names what no rule covers."""
    known, done, out = set(parameters), set(), []
    for rule in rules:
        ours, theirs = rule[0], rule[1]
        layout = rule[2] if len(rule) == 3 else PLAIN
        parts = _parts(ours)
        if layout.beside and layout.beside not in known:
            continue
        for name in parameters:
            found = None if name in done else _pattern(parts[0]).fullmatch(name)
            if not found:
                continue
            group = found.groupdict()
            mine = tuple(_fill(p, group) for p in parts)
            if known.issuperset(mine) and done.isdisjoint(mine):
                done.update(mine)
                out.append(Match(mine, _fill(theirs, group), layout))
    missing = [n for n in parameters if n not in done]
    if missing:
        raise TerakoyaError(place, "no rule says where these weights are kept", given=", ".join(missing[:8]))
    return out


def placed(rules: Iterable[Rule], parameters: Sequence[str]) -> list[Match]:
    """Match our parameter names against a family's rules; where these lack a place for some, each keeps its own name.

    What decides is the structure alone, so that who writes and who reads agree.
    """
    try:
        return expand(rules, parameters, "")
    except TerakoyaError:
        return [Match((name,), name, PLAIN) for name in parameters]


def _parts(ours: str) -> list[str]:
    fused = re.search(r"\((.*?)\)", ours)
    return [ours.replace(fused[0], part) for part in fused[1].split(",")] if fused else [ours]


@cache
def _pattern(ours: str) -> re.Pattern[str]:
    text = re.escape(ours).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", r"(?P<leaf>weight|bias)")
    return re.compile(text)


def _fill(template: str, group: dict[str, str]) -> str:
    return template.replace("{i}", group.get("i", "")).replace("*", group.get("leaf", ""))
