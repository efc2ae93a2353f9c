"""The tree of language models: every family resolved from its parent by `override`, nothing restated."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from terakoya.config import diff, kind, override
from terakoya.errors import TerakoyaError, nearest
from terakoya.model import spec
from terakoya.zoo import history
from terakoya.zoo.codec import Codec, Key
from terakoya.zoo.families import (
    bert,
    deberta,
    deepseek,
    eleuther,
    evolved,
    falcon,
    flamingo,
    gemma,
    gpt,
    japanese,
    layernorm,
    linear,
    llama,
    llava,
    luke,
    mistral,
    modernbert,
    olmo,
    others,
    paper,
    phi,
    qwen,
    recurrent,
    states,
    t5,
    transformer,
    unplaced,
    xlnet,
)
from terakoya.zoo.families import open as open_models
from terakoya.zoo.history.aliases import ALIASES
from terakoya.zoo.names import Rule
from terakoya.zoo.node import Family, Node, Part
from terakoya.zoo.resize import resized

LINES = (
    *(recurrent, linear, states),
    *(transformer, evolved, bert, luke, modernbert, deberta, xlnet, t5),
    *(gpt, eleuther, open_models, falcon, llama, llava, mistral, phi, qwen, gemma, olmo),
    *(deepseek, unplaced, layernorm, japanese, others, paper, flamingo),
)
NODES: tuple[Node, ...] = tuple(f for line in LINES for f in line.FAMILIES)

SCALES = {  # any family at a size that trains on a laptop: dim, depth, head width
    "nano": (128, 4, 32),
    "micro": (256, 4, 64),
    "mini": (384, 6, 64),
    "small": (512, 8, 64),
    "base": (768, 12, 64),
}


@cache
def nodes() -> dict[str, Node]:
    """Return every node by name; what is built stands before what history says of the same name."""
    built, told = {n.name: n for n in NODES}, {n.name: n for n in history.NODES}
    assert len(built) == len(NODES)
    assert len(told) == len(history.NODES)
    return told | built


def find(name: str) -> Node:
    """Return the node of a name, a title or an alias, in any case and with any hyphens; an error names the nearest."""
    if name in nodes():
        return nodes()[name]
    found = _index().get(_plain(name))
    if found is None:
        known = [k for n in nodes().values() for k in dict.fromkeys((n.name, n.title)) if k]
        hint = nearest(name, known) or nearest(name.casefold(), nodes())
        raise TerakoyaError("lineage", f"{name!r} is not in the tree", hint=hint)
    return found


@cache
def _index() -> dict[str, Node]:
    other = {alias: nodes()[name] for alias, name in ALIASES.items() if name in nodes()}
    titles = {n.title: n for n in nodes().values() if n.title}
    return {_plain(k): n for k, n in (other | titles | nodes()).items()}


def _plain(name: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if c.isalnum() or c == "+")


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


def keys(name: str) -> dict[str, Key]:
    """Return a family's config.json table: its ancestors', its own over it; None takes a key away."""
    f = family(name)
    above = {} if f.fresh or not f.parent else keys(f.parent)
    kept = {k: v for k, v in above.items() if k not in f.keys}
    return kept | {k: v for k, v in f.keys.items() if v is not None}  # its own are read last


def defaults(name: str) -> dict[str, Any]:
    """Return what a family's config.json means by leaving keys out."""
    f = family(name)
    above = defaults(f.parent) if f.parent and not f.fresh else {}
    table = keys(name)
    claimed = {key for target in table.values() if isinstance(target, Codec) for key in target.claims()}
    return {k: v for k, v in above.items() if k in table or k in claimed} | dict(f.defaults)


def rules(name: str, form: str = "hf") -> tuple[Rule, ...]:
    """Return where a family's checkpoints keep each weight; its own rules stand before its ancestors'."""
    f = family(name)
    if form == "gguf":  # an architecture of its own lays its rows out in its own way
        return f.gguf or (rules(f.parent, form) if f.parent and not f.model_type else ())
    return f.names + (rules(f.parent) if f.parent and not f.fresh else ())


def parts(name: str) -> tuple[Part, ...]:
    """Return the parts that a family's files may have or lack: its own or its nearest ancestor's."""
    f = family(name)
    return f.parts or (parts(f.parent) if f.parent and not f.fresh else ())


def copies(name: str) -> Mapping[str, str]:
    """Return the tensors that a family's files may hold twice, and which they are copies of."""
    f = family(name)
    return f.copies or (copies(f.parent) if f.parent and not f.fresh else {})


def architecture(name: str, s: spec.Model) -> str:
    """Return the class of Hugging Face that has the parts of this spec."""
    f = family(name)
    while f.parent and not f.model_type:
        f = family(f.parent)
    for other, has in f.architectures.items():
        if all(getattr(s, path) == value for path, value in has.items()):
            return other
    return f.architecture


def model_type(name: str) -> tuple[str | None, str]:
    """Return Hugging Face's (model_type, class) of a family: its own or its nearest ancestor's."""
    f = family(name)
    if f.model_type or not f.parent:
        return f.model_type, f.architecture
    return model_type(f.parent)


def by_model_type(wanted: str, config: Mapping[str, Any] | None = None) -> Family | None:
    """Return the family that reads a config.json of this model_type; `when` tells apart those that share it."""
    found = [f for f in families().values() if f.model_type == wanted]
    given = config or {}
    special = [f for f in found if f.when and all(given.get(k) == v for k, v in f.when.items())]
    return next(iter([*special, *(f for f in found if not f.when)]), None)


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
            case spec.Cross():
                heads = max(1, dim // width)
                kv = node.kv_heads and max(k for k in range(1, heads + 1) if heads % k == 0 and k <= node.kv_heads)
                own = None if width * heads == dim and node.head_dim is None else width
                return replace(node, heads=heads, kv_heads=kv, head_dim=own)
            case spec.Attention():
                heads = max(1, dim // width)
                kv = node.kv_heads and max(1, round(heads * node.kv_heads / node.heads))
                while kv and heads % kv:
                    kv -= 1
                old = spec.head_dim(s, node)
                scale = node.scale if node.scale in (None, 1.0) else node.scale * (old / width) ** 0.5
                own = None if width * heads == dim and node.head_dim is None else width
                position = _fit(node.position, width)
                small = {"heads": heads, "kv_heads": kv, "head_dim": own, "scale": scale, "position": position}
                return replace(node, **small)
            case spec.Latent():
                ratio = dim / s.dim
                return replace(
                    node,
                    heads=max(1, dim // width),
                    nope=max(2, width * 2 // 3 // 2 * 2),
                    rope=max(2, width // 3 // 2 * 2),
                    value=max(2, width * 2 // 3),
                    kv_rank=max(8, round(node.kv_rank * ratio)),
                    q_rank=node.q_rank and max(8, round(node.q_rank * ratio)),
                )
            case spec.MLP():
                return replace(node, hidden=max(16, round(node.hidden / s.dim * dim / 16) * 16))
            case spec.MoE():
                groups = node.groups and spec.Groups(
                    4, max(1, round(4 * node.groups.keep / node.groups.count)), node.groups.by
                )
                count = min(node.count, 16)
                small = {"count": count, "top_k": min(count, node.top_k, 4), "groups": groups}
                if node.shared:  # as wide as so many experts
                    times = max(1, round(node.shared.hidden / node.expert.hidden))
                    small["shared"] = replace(node.shared, hidden=times * node.expert.hidden)
                return replace(node, **small)
        return resized(node, s.dim, dim, width)

    embed = s.embed if s.embed.factor is None else replace(s.embed, factor=max(16, dim // 2))
    small = _walk(replace(s, embed=embed, encoder=None), resize)
    encoder = s.encoder and rescale(s.encoder, dim, depth, width)
    share = s.share and min(s.share, depth)
    head = replace(small.head, scale=dim**-0.5) if small.head.scale == s.dim**-0.5 else small.head  # T5
    return replace(small, dim=dim, depth=depth, layout=_stretched(s, depth), share=share, head=head, encoder=encoder)


def _stretched(s: spec.Model, depth: int) -> tuple[int, ...] | None:
    """Return a layout for another depth: its beginning where it is short, else first to last in equal steps."""
    if s.layout is None or len(s.layout) <= depth:
        return s.layout
    return tuple(s.layout[i * (len(s.layout) - 1) // max(1, depth - 1)] for i in range(depth))


def _fit(position: Any, width: int) -> Any:
    """Return a position for heads of another width: longrope has one divisor per frequency."""
    scaling = position.scaling if isinstance(position, spec.Rope) else None
    if not isinstance(scaling, spec.LongRope):
        return position
    count = int(position.fraction * width + 1e-6) // 2
    short, long = (tuple(v[i * len(v) // count] for i in range(count)) for v in (scaling.short, scaling.long))
    return replace(position, scaling=replace(scaling, short=short, long=long))


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
