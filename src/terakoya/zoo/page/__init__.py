"""The lineage as one HTML page that needs nothing else: data, style and script inside, no address fetched."""

from __future__ import annotations

import json
import re
from html import escape
from importlib.resources import files
from typing import Any

from terakoya.zoo.card import Card, cards
from terakoya.zoo.node import Note, Tuning
from terakoya.zoo.words import KINDS, LANGS, WORDS, checked


def html(lang: str = "en") -> str:
    """Return the page; it opens in `lang` and can be switched to the other."""
    from terakoya.zoo.draw import tree

    parts = {
        "lang": checked(lang),
        "heading": escape(WORDS["heading"].text(lang)),
        "css": _file("lineage.css"),
        "js": _file("lineage.js"),
        "data": script_safe(_data(lang)),
        "tree": escape(tree(lang)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _file("lineage.html"))


def script_safe(value: Any) -> str:
    """Write JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for c in "<>&\u2028\u2029":
        text = text.replace(c, f"\\u{ord(c):04x}")
    return text


def _file(name: str) -> str:
    return (files("terakoya.zoo") / "page" / name).read_text(encoding="utf-8")


def _data(lang: str) -> dict[str, Any]:
    return {
        "lang": lang,
        "words": {code: {key: note.text(code) for key, note in WORDS.items()} for code in LANGS},
        "kinds": {
            kind: {"mark": k.mark, "name": _both(k.name), "meaning": _both(k.meaning)} for kind, k in KINDS.items()
        },
        "nodes": [_node(c) for c in cards().values()],
    }


def _node(c: Card) -> dict[str, Any]:
    node = c.node
    tuning = node if isinstance(node, Tuning) else None
    return {
        "name": node.name,
        "title": c.title,
        "kind": c.kind,
        "born": node.born,
        "note": _both(node.note),
        "trunk": c.trunk,
        "path": c.path,
        "parent": node.parent,
        "takes": node.takes,
        "branches": c.branches,
        "inspired": c.inspired,
        "changes": c.changes,
        "sizes": c.sizes,
        "data": _both(tuning.data) if tuning and tuning.data else None,
        "method": _both(tuning.method) if tuning and tuning.method else None,
        "recipe": tuning.recipe if tuning else "",
        "paper": node.paper,
        "licence": c.licence,
        "proof": _both(c.proof) if c.proof else None,
        "load": c.load,
        "train": c.train,
    }


def _both(note: Note) -> dict[str, str]:
    return {"en": note.en, "ja": note.ja}
