"""The tree of language models: every family resolved from its parent by `override`, nothing restated."""

from __future__ import annotations

from functools import cache
from typing import Any

from terakoya.config import diff, kind, override
from terakoya.errors import TerakoyaError, nearest
from terakoya.model import spec
from terakoya.zoo.families import gpt, llama
from terakoya.zoo.hf import Key
from terakoya.zoo.names import Rule
from terakoya.zoo.node import Family, Node

NODES: tuple[Node, ...] = (*gpt.FAMILIES, *llama.FAMILIES)

SCALES = {  # any family at a size that trains on a laptop: dim, depth, head width
    "nano": (128, 4, 32),
    "micro": (256, 4, 64),
    "mini": (384, 6, 64),
    "small": (512, 8, 64),
    "base": (768, 12, 64),
}


@cache
def nodes() -> dict[str, Node]:
    """Return every node by name."""
    table = {n.name: n for n in NODES}
    assert len(table) == len(NODES)
    return table


@cache
def families() -> dict[str, Family]:
    """Return the nodes that have a structure of their own."""
    return {n.name: n for n in NODES if isinstance(n, Family)}


def family(name: str) -> Family:
    """Return one family; an error names the nearest."""
    found = families().get(name)
    if found is None:
        raise TerakoyaError("family", given=name, allowed=list(families()), hint=nearest(name, families()))
    return found


@cache
def base(name: str) -> spec.Model:
    """Return a family's spec: its parent's, and its own changes."""
    f = family(name)
    start = f.root if f.parent is None else base(f.parent)
    assert start is not None
    return override(start, f.changes)


def keys(name: str) -> dict[str, Key | None]:
    """Return a family's config.json table: its ancestors', its own over it; None takes a key away."""
    f = family(name)
    table = (keys(f.parent) if f.parent else {}) | dict(f.keys)
    return {k: v for k, v in table.items() if v is not None}


def defaults(name: str) -> dict[str, Any]:
    """Return what a family's config.json means by leaving keys out."""
    f = family(name)
    return (defaults(f.parent) if f.parent else {}) | dict(f.defaults)


def rules(name: str, form: str = "hf") -> tuple[Rule, ...]:
    """Return where a family's checkpoints keep each weight; its own rules stand before its ancestors'."""
    f = family(name)
    return (f.gguf if form == "gguf" else f.names) + (rules(f.parent, form) if f.parent else ())


def model_type(name: str) -> tuple[str | None, str]:
    """Return Hugging Face's (model_type, class) of a family: its own or its nearest ancestor's."""
    f = family(name)
    if f.model_type or not f.parent:
        return f.model_type, f.architecture
    return model_type(f.parent)


def by_model_type(wanted: str) -> Family | None:
    """Return the family that reads a config.json of this model_type."""
    return next((f for f in families().values() if f.model_type == wanted), None)


def sized(name: str) -> spec.Model:
    """Return the spec of `family`, `family/size` or `family/scale`: mistral, llama2/70b, gpt2/nano."""
    wanted, _, size = name.partition("/")
    f, s = family(wanted), base(wanted)
    if not size:
        return s
    if size in f.sizes:
        return override(s, f.sizes[size].changes)
    if size in SCALES:
        return rescale(s, *SCALES[size])
    allowed = [*f.sizes, *SCALES]
    raise TerakoyaError(f"size of {wanted}", given=size, allowed=allowed, hint=nearest(size, allowed))


def rescale(s: spec.Model, dim: int, depth: int, width: int) -> spec.Model:
    """Shrink or grow a family to `dim` x `depth` with heads `width` wide, keeping its proportions."""

    def resize(node: Any) -> Any:
        match node:
            case spec.Attention():
                heads = max(1, dim // width)
                kv = node.kv_heads and max(1, round(heads * node.kv_heads / node.heads))
                while kv and heads % kv:
                    kv -= 1
                return override(node, {"heads": heads, "kv_heads": kv, "head_dim": None})
            case spec.MLP():
                return override(node, {"hidden": max(16, round(node.hidden / s.dim * dim / 16) * 16)})
        return node

    small = _walk(s, resize)
    embed = small.embed if small.embed.factor is None else override(small.embed, {"factor": dim})
    return override(small, {"dim": dim, "depth": depth, "embed": embed} | ({"layout": None} if s.layout else {}))


def _walk(node: Any, change: Any) -> Any:
    import dataclasses

    if isinstance(node, tuple):
        return tuple(_walk(v, change) for v in node)
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        return node
    fields = {f.name: _walk(getattr(node, f.name), change) for f in dataclasses.fields(node)}
    return change(type(node)(**fields))


def changes(name: str) -> list[tuple[str, Any, Any]]:
    """Return what a family changed of its parent as (what, before, after), equal rows once."""
    f = family(name)
    if f.parent is None:
        return []
    rows = {
        (_spoken(base(f.parent), path), _show(a), _show(b)) for path, (a, b) in diff(base(f.parent), base(name)).items()
    }
    return sorted(rows)


def _spoken(node: Any, path: str) -> str:
    """Return a path by kinds: blocks.0.branches.0.mix.0.heads -> attention.heads."""
    owner, parts = node, path.split(".")
    last = len(parts)
    for i, key in enumerate(parts):
        if isinstance(owner, tuple):
            owner = owner[int(key)]
            last = i + 1
        else:
            owner = getattr(owner, key)
    if last == len(parts):
        return path
    found: Any = node
    for key in parts[:last]:
        found = found[int(key)] if isinstance(found, tuple) else getattr(found, key)
    return ".".join([kind(found), *parts[last:]])


def _show(value: Any) -> str:
    import dataclasses

    if dataclasses.is_dataclass(value):
        own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        shown = [f"{k}={_show(v)}" for k, v in own.items() if v != _default(value, k)]
        return kind(value) + (f"({', '.join(shown)})" if shown else "")
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_show, value)) + "]"
    return str(value)


def _default(node: Any, name: str) -> Any:
    import dataclasses

    f = next(f for f in dataclasses.fields(node) if f.name == name)
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
