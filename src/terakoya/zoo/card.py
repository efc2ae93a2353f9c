"""Everything there is to tell about one node, gathered for the drawings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from terakoya.zoo import lineage
from terakoya.zoo.node import Built, Closed, Family, Node, Note, Planned, Tuning

NO_WEIGHTS = {"", "closed", "not released"}  # licences that say there is nothing to load
Change = tuple[str, str, str]  # what, before, after


@dataclass(frozen=True)
class Card:
    """One node and its neighbours. `trunk` is where the tree hangs it: its parent, or else its first influence."""

    node: Node
    kind: str  # a key of words.KINDS
    trunk: str | None
    path: tuple[str, ...]  # from the root to the trunk
    branches: tuple[str, ...]  # whose trunk this is
    inspired: tuple[str, ...]  # who else names it as parent or influence
    changes: tuple[Change, ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    proof: Note | None = None
    load: str = ""
    train: str = ""

    @property
    def title(self) -> str:
        return self.node.title or self.node.name

    @property
    def licence(self) -> str:
        return "" if isinstance(self.node, Closed) else self.node.licence


@cache
def cards() -> dict[str, Card]:
    """Return the card of every node, parents before children and older before younger: the order of the tree."""
    trunks = {name: trunk(node) for name, node in lineage.nodes().items()}
    table: dict[str, Card] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"{name} descends from itself"
        own = tuple(sorted((n for n, t in trunks.items() if t == name), key=_age))
        table[name] = _card(lineage.nodes()[name], trunks[name], path, own)
        for branch in own:
            visit(branch, (*path, name))

    for root in sorted((n for n, t in trunks.items() if t is None), key=_age):
        visit(root, ())
    assert len(table) == len(trunks), "some nodes hang in a ring"
    return table


def card(name: str) -> Card:
    """Return the card of a node by name, title or alias; an error names the nearest."""
    return cards()[lineage.find(name).name]


def kind(node: Node) -> str:
    """Return the sort of a node: a key of words.KINDS."""
    match node:
        case Family() | Built():
            return "family"
        case Tuning():
            return "tuning"
        case Planned():
            return "planned"
        case Closed():
            return node.sort


def trunk(node: Node) -> str | None:
    """Return where the tree hangs a node: its parent, or else the first influence."""
    known = [n for n in (node.parent, *node.takes) if n and n in lineage.nodes()]
    return known[0] if known else None


def _age(name: str) -> tuple[str, str]:
    return lineage.nodes()[name].born, name


def _card(node: Node, hung: str | None, path: tuple[str, ...], branches: tuple[str, ...]) -> Card:
    naming = [n.name for n in lineage.nodes().values() if node.name in (n.parent, *n.takes)]
    others = tuple(sorted((n for n in naming if n not in branches), key=_age))
    plain = Card(node, kind(node), hung, path, branches, others)
    if isinstance(node, Built):
        return replace(plain, proof=node.proof, train=node.train)
    return _built(plain, node) if isinstance(node, Family) else plain


def _built(plain: Card, f: Family) -> Card:
    model_type = lineage.model_type(f.name)[0] if f.licence not in NO_WEIGHTS else None
    return replace(
        plain,
        changes=tuple(lineage.changes(f.name)),
        sizes=tuple((size, row.parameters) for size, row in f.sizes.items()),
        proof=_proof(f),
        load=f"terakoya chat FOLDER  # config.json: model_type = {model_type}" if model_type else "",
        train=f"terakoya train RECIPE model={f.name}/nano",
    )


def _proof(f: Family) -> Note | None:
    _, architecture = lineage.model_type(f.name)
    if f.proof:
        return Note(f.proof, f.proof)
    if architecture:
        return Note(f"transformers: {architecture}", f"transformers の {architecture}")
    return Note("parameters of the published shape", "公表された形のパラメータ数") if f.sizes else None
