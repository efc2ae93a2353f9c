"""The lineage as text: a tree for the terminal, a mermaid graph, one node's description; `html` makes the page."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from terakoya.zoo.card import Card, card, cards
from terakoya.zoo.node import Note, Tuning
from terakoya.zoo.page import html
from terakoya.zoo.words import KINDS, WORDS, checked

__all__ = ["describe", "html", "mermaid", "tree", "width"]

COLOURS = {  # fill, stroke
    "family": ("#dbe7f6", "#2b4c7e"),
    "planned": ("#ffffff", "#2b4c7e"),
    "tuning": ("#dcefe0", "#2f6b43"),
    "closed": ("#ececec", "#6b6b6b"),
    "bot": ("#fbe3dc", "#b03a22"),
    "tool": ("#f8efd0", "#8a6a10"),
}


def width(text: str) -> int:
    """Count the terminal cells of a text: two for full width, none for what combines."""
    return sum(
        0 if unicodedata.combining(c) or unicodedata.category(c) in ("Cf", "Mn", "Me")
        else 2 if unicodedata.east_asian_width(c) in "WF"
        else 1
        for c in text
    )  # fmt: skip


def pad(text: str, cells: int) -> str:
    """Fill a text with spaces to so many cells."""
    return text + " " * (cells - width(text))


def tree(lang: str = "en") -> str:
    """Draw the whole lineage, one node a line: date, branch, mark, title, changed fields, other influences."""
    checked(lang)
    rows = [(c.node.born, rail(c) + KINDS[c.kind].mark + " " + c.title, _tail(c)) for c in cards().values()]
    room = max(width(middle) for _, middle, _ in rows)
    lines = [f"{pad(born, 7)}  {pad(middle, room)}  {tail}".rstrip() for born, middle, tail in rows]
    return "\n".join([*_legend(lang), "", *lines]) + "\n"


def rail(c: Card) -> str:
    """Return the lines of the tree before one node; the last stroke is dotted where only an influence leads to it."""
    if c.trunk is None:
        return ""
    line = (*c.path, c.node.name)
    strokes = ["  " if _last(line, i) else "│ " for i in range(1, len(line) - 1)]
    stroke = "─" if c.node.parent == c.trunk else "┄"
    return "".join(strokes) + ("└" if _last(line, len(line) - 1) else "├") + stroke


def _last(line: Sequence[str], i: int) -> bool:
    return cards()[line[i - 1]].branches[-1] == line[i]


def _tail(c: Card) -> str:
    table = cards()
    also = [table[n].title for n in (c.node.parent, *c.node.takes) if n and n in table and n != c.trunk]
    delta = f"Δ {len(c.changes):<2}" if c.changes else " " * 4
    return delta + ("  ← " + ", ".join(also) if also else "")


def _legend(lang: str) -> Iterator[str]:
    yield WORDS["heading"].text(lang)
    yield "   ".join(f"{k.mark} {k.meaning.text(lang)}" for k in KINDS.values())
    yield f"{WORDS['delta'].text(lang)}   {WORDS['dotted'].text(lang)}   ← {WORDS['takes'].text(lang)}"


def mermaid() -> str:
    """Return the lineage as a mermaid flowchart: solid lines to parents, dotted to influences."""
    ids = {name: f"n{i}" for i, name in enumerate(cards())}
    lines = ["flowchart LR"]
    for name, c in cards().items():
        lines.append(f'  {ids[name]}["{_quoted(c.title)}<br/>{_quoted(c.node.born)}"]:::{c.kind}')
    for name, c in cards().items():
        lines += [f"  {ids[c.node.parent]} --> {ids[name]}"] if c.node.parent in ids else []
        lines += [f"  {ids[n]} -.-> {ids[name]}" for n in c.node.takes if n in ids]
    for sort, (fill, stroke) in COLOURS.items():
        dashed = ",stroke-dasharray:4" if sort == "planned" else ""
        lines.append(f"  classDef {sort} fill:{fill},stroke:{stroke},color:#111{dashed}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Write what mermaid would read as markup by its entity codes."""
    return "".join(c if c.isalnum() or c in " .-+()" else f"#{ord(c)};" for c in text)


def describe(name: str, lang: str = "en") -> str:
    """Tell everything about one node, found by name, title or alias."""
    checked(lang)
    c = card(name)
    k = KINDS[c.kind]
    head = f"{k.mark} {c.title}" + (f" ({c.node.name})" if c.title != c.node.name else "")
    facts = [(WORDS[key].text(lang), value) for key, value in _facts(c, lang)]
    room = max((width(label) for label, _ in facts), default=0)
    lines = [f"{head} · {c.node.born} · {k.meaning.text(lang)}", c.node.note.text(lang), ""]
    lines += [f"  {pad(label, room)}  {value}" for label, value in facts]
    if c.changes and c.trunk:
        lines += ["", f"{WORDS['changed'].text(lang)} {cards()[c.trunk].title}"]
        lines += _changes(c, lang)
    if c.sizes:
        lines += ["", WORDS["sizes"].text(lang)]
        lines += _table([(size, f"{count:,}") for size, count in c.sizes], right=1)
    commands = [(WORDS[w].text(lang), command) for w, command in (("load", c.load), ("train", c.train)) if command]
    if commands:
        lines += ["", *_table(commands)]
    return "\n".join(lines) + "\n"


def _changes(c: Card, lang: str) -> Iterator[str]:
    """Lay short changes out as a table; a whole block as a value stands under its name."""
    long = [row for row in c.changes if max(map(len, row[1:])) > 36]
    short = [row for row in c.changes if row not in long]
    if short:
        yield from _table([tuple(WORDS[w].text(lang) for w in ("what", "before", "after")), *short])
    for what, before, after in long:
        yield from (f"  {what}", f"    - {before}", f"    + {after}")


def _facts(c: Card, lang: str) -> Iterator[tuple[str, str]]:
    table, node = cards(), c.node

    def say(names: Sequence[str]) -> str:
        return ", ".join(table[n].title if n in table else n for n in names)

    if c.path:
        yield "path", " → ".join(table[n].title for n in (*c.path, node.name))
    if node.parent:
        yield "parent", say([node.parent])
    if node.takes:
        yield "takes", say(node.takes)
    if c.branches:
        yield "children", say(c.branches)
    if c.inspired:
        yield "inspired", say(c.inspired)
    if isinstance(node, Tuning):
        told: list[tuple[str, Note | None]] = [("data", node.data), ("method", node.method)]
        yield from ((key, note.text(lang)) for key, note in told if note)
        if node.recipe:
            yield "recipe", node.recipe
    if c.licence:
        yield "licence", c.licence
    if node.paper:
        yield "paper", node.paper
    if c.proof:
        yield "proof", c.proof.text(lang)


def _table(rows: Sequence[Sequence[str]], right: int | None = None) -> Iterator[str]:
    rooms = [max(width(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            " " * (room - width(cell)) + cell if i == right else pad(cell, room)
            for i, (cell, room) in enumerate(zip(row, rooms, strict=True))
        ]
        yield ("  " + "  ".join(cells)).rstrip()
