"""One algebra over frozen dataclasses: families, recipes and the command line are all `override`s of a tree.

A path is dotted: field names, indices into tuples, and kinds. A kind is a lower-cased class name and stands for every
node of that class below: `"attention.kv_heads"` sets the field in all layers. A union of dataclasses is told apart in
files by `kind = "..."`; it is never guessed.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from terakoya.errors import TerakoyaError, nearest

T = TypeVar("T")
NOTHING = "none"  # TOML has no null


def kind(node: Any) -> str:
    """Return the tag of a dataclass or of its instance: the lower-cased class name."""
    return (node if isinstance(node, type) else type(node)).__name__.lower()


def names(node: Any) -> list[str]:
    """Return the field names of a dataclass."""
    return [f.name for f in dataclasses.fields(node)]


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Return the resolved annotations of a dataclass."""
    return typing.get_type_hints(cls)


# The algebra: override, diff, select


def override(node: T, changes: Mapping[str, Any]) -> T:
    """Return a copy of `node` with the value at each dotted path replaced."""
    for path, value in changes.items():
        node = _update(node, path.split("."), lambda _, v=value: v, path)
    return node


def assign(node: T, assignments: Iterable[str]) -> T:
    """Apply `path=value` texts from a command line; values are read as the field's type demands."""
    for text in assignments:
        path, sep, value = text.partition("=")
        if not sep or not path:
            raise TerakoyaError("override", given=text, allowed="path=value, e.g. model.depth=6")
        if path.endswith(".kind") and (other := _other_kind(node, path, value)) is not None:
            node = other
            continue
        hint = _hint_at(node, path.split("."), path)
        node = _update(node, path.split("."), lambda _, h=hint, v=value, p=path: _from_text(h, v, p), path)
    return node


def _other_kind(node: T, path: str, value: str) -> T | None:
    """Set a union to another member, with that member's defaults: optim.kind=adamw."""
    keys = path.split(".")[:-1]
    hint = _hint_at(node, keys, path)
    members = [a for a in get_args(hint) if dataclasses.is_dataclass(a)]
    if len(members) < 2:
        return None
    return _update(node, keys, lambda _: build(hint, {"kind": value}, ".".join(keys)), path)


def diff(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the dotted paths whose values differ as {path: (old, new)}; the inverse of `override`."""
    if type(old) is type(new) and dataclasses.is_dataclass(old):
        out: dict[str, tuple[Any, Any]] = {}
        for name in names(old):
            out |= diff(getattr(old, name), getattr(new, name), f"{path}.{name}" if path else name)
        return out
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        out = {}
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            out |= diff(a, b, f"{path}.{i}" if path else str(i))
        return out
    return {} if old == new else {path: (old, new)}


def select(node: Any, wanted: str) -> list[Any]:
    """Return every topmost node below (or at) `node` whose kind is `wanted`, in order."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        if kind(node) == wanted:
            return [node]
        return [found for name in names(node) for found in select(getattr(node, name), wanted)]
    return [found for item in node for found in select(item, wanted)] if isinstance(node, tuple) else []


def values(node: Any, path: str) -> list[Any]:
    """Return the values that `path` names: one, or one per node where a kind selects several."""
    found = [node]
    for key in path.split("."):
        found = [value for item in found for value in _children(item, key)]
    return found


def _children(node: Any, key: str) -> list[Any]:
    if isinstance(node, tuple) and key.isdigit():
        return [node[int(key)]] if int(key) < len(node) else []
    if dataclasses.is_dataclass(node) and key in names(node):
        return [getattr(node, key)]
    return select(node, key)


def _update(node: Any, keys: list[str], change: Callable[[Any], Any], path: str) -> Any:
    if not keys:
        return change(node)
    key, *rest = keys
    if isinstance(node, tuple) and key.isdigit():
        if int(key) >= len(node):
            raise TerakoyaError(path, f"has no item {key}", allowed=f"0 to {len(node) - 1}")
        return tuple(_update(v, rest, change, path) if i == int(key) else v for i, v in enumerate(node))
    if dataclasses.is_dataclass(node) and key in names(node):
        value = _update(getattr(node, key), rest, change, path)
        return _replace(node, {key: value}, path)
    if not select(node, key):
        raise _no_field(node, key, path)
    return _map(node, key, lambda found: _update(found, rest, change, path))


def _map(node: Any, wanted: str, change: Callable[[Any], Any]) -> Any:
    if isinstance(node, tuple):
        return tuple(_map(v, wanted, change) for v in node)
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        return node
    if kind(node) == wanted:
        return change(node)
    return dataclasses.replace(node, **{n: _map(getattr(node, n), wanted, change) for n in names(node)})


def _replace(node: Any, changes: dict[str, Any], path: str) -> Any:
    try:
        return dataclasses.replace(node, **changes)
    except TerakoyaError as error:
        if not _says(error, path):
            error.args = (f"{path}: {error}",)
        raise


def _says(error: TerakoyaError, path: str) -> bool:
    """Return whether an error names the place already: the field, or one beside it in the same table."""
    table = path.rpartition(".")[0]
    beside = bool(table) and str(error).startswith(f"{table}.")
    return beside or str(error).startswith(path) or error.place.endswith(f".{path}")


def _no_field(node: Any, key: str, path: str) -> TerakoyaError:
    known = (
        names(node)
        if dataclasses.is_dataclass(node)
        else [str(i) for i in range(len(node))]
        if isinstance(node, tuple)
        else []
    )
    below = sorted(_kinds(node))
    if not known:
        return TerakoyaError(path, f"a value of type {type(node).__name__} has no fields", given=node)
    return TerakoyaError(
        path, f"{kind(node)} has no field {key!r}", allowed=known + below, hint=nearest(key, known + below)
    )


def _kinds(node: Any) -> set[str]:
    """Return the kinds of all nodes below `node`."""
    below = [getattr(node, n) for n in names(node)] if _is_node(node) else node if isinstance(node, tuple) else []
    return {kind(v) for v in below if _is_node(v)}.union(*map(_kinds, below))


def _is_node(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _hint_at(node: Any, keys: list[str], path: str) -> Any:
    """Return the annotation of the field that `keys` lead to."""
    key, *rest = keys
    if isinstance(node, tuple) and key.isdigit() and int(key) < len(node):
        return _hint_at(node[int(key)], rest, path) if rest else type(node[int(key)])
    if dataclasses.is_dataclass(node) and key in names(node):
        return _hint_at(getattr(node, key), rest, path) if rest else hints(type(node))[key]
    found = select(node, key)
    if not found:
        raise _no_field(node, key, path)
    if not rest:
        raise TerakoyaError(path, "names whole nodes; name one of their fields", allowed=names(found[0]))
    return _hint_at(found[0], rest, path)


# TOML in


def load(cls: type[T], text: str, place: str = "") -> T:
    """Read a TOML text as a `cls`; every error says where, what was given and what would do."""
    return build(cls, _toml(text, place), place=place)


def load_file(cls: type[T], path: Path) -> T:
    """Read a TOML file as a `cls`; `extends = "other"` starts from the file of that name beside it."""
    return build(cls, read_table(path), place=str(path))


def read_table(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a TOML file as plain tables, its `extends` chain merged in."""
    if path.resolve() in seen:
        raise TerakoyaError(str(path), "extends itself", given=" -> ".join(p.name for p in (*seen, path)))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TerakoyaError(str(path), "no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TerakoyaError(str(path), f"cannot be read: {error}") from None
    table = _toml(text, str(path))
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise TerakoyaError(f"{path}: extends", given=base, allowed="the name of a recipe beside this file")
    parent = path.parent / (base if base.endswith(".toml") else f"{base}.toml")
    return merge(read_table(parent, (*seen, path.resolve())), table)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Lay `changes` over `base`, table by table; a table of another `kind` replaces the old one."""
    out = dict(base)
    for key, value in changes.items():
        old = out.get(key)
        same = (
            isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind")
        )
        out[key] = merge(typing.cast("dict[str, Any]", old), value) if same else value
    return out


def _toml(text: str, place: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TerakoyaError(place or "TOML", f"is not valid TOML: {error}") from None


def build(hint: Any, raw: Any, path: str = "", place: str = "") -> Any:
    """Turn plain values `raw` into what `hint` demands."""
    origin, args = get_origin(hint), get_args(hint)
    where = f"{place}: {path}" if place and path else place or path or kind(hint)
    if hint is Any:
        return raw
    if origin is Literal:
        if raw in args:
            return raw
        raise TerakoyaError(where, given=raw, allowed=list(args), hint=nearest(str(raw), map(str, args)))
    if origin in (Union, types.UnionType):
        return _build_union(args, raw, path, place, where)
    if dataclasses.is_dataclass(hint):
        return _build_node(typing.cast("type", hint), raw, path, place, where)
    if origin is tuple:
        if not isinstance(raw, list | tuple):
            raise TerakoyaError(where, given=raw, allowed="a list")
        inner = args[:1] * len(raw) if len(args) == 2 and args[1] is ... else args
        if len(inner) != len(raw):
            raise TerakoyaError(where, given=raw, allowed=f"{len(inner)} values")
        return tuple(build(a, v, f"{path}.{i}", place) for i, (a, v) in enumerate(zip(inner, raw, strict=True)))
    if hint is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if hint is Path and isinstance(raw, str):
        return Path(raw)
    if type(raw) is hint:
        return raw
    raise TerakoyaError(where, given=raw, allowed=_describe(hint))


def _build_union(args: tuple[Any, ...], raw: Any, path: str, place: str, where: str) -> Any:
    if raw == NOTHING and type(None) in args:
        return None
    classes = {kind(a): a for a in args if dataclasses.is_dataclass(a)}
    if isinstance(raw, dict) and classes:
        if len(classes) == 1 and "kind" not in raw:
            return build(next(iter(classes.values())), raw, path, place)
        given = raw.get("kind")
        if given not in classes:
            problem = "" if "kind" in raw else "is missing"
            raise TerakoyaError(
                f"{where}.kind", problem, given=given, allowed=sorted(classes), hint=nearest(str(given), classes)
            )
        return build(classes[given], {k: v for k, v in raw.items() if k != "kind"}, path, place)
    others = [a for a in args if a is not type(None) and not dataclasses.is_dataclass(a)]
    for member in others:
        try:
            return build(member, raw, path, place)
        except TerakoyaError as error:
            if len(others) == 1 and not classes:
                raise error from None
    allowed = [*sorted(classes), *map(_describe, others), *([NOTHING] if type(None) in args else [])]
    raise TerakoyaError(where, given=raw, allowed=allowed)


def _build_node(cls: type, raw: Any, path: str, place: str, where: str) -> Any:
    if not isinstance(raw, dict):
        raise TerakoyaError(where, given=raw, allowed=f"a table with {', '.join(names(cls))}")
    if raw.get("kind") == kind(cls) and "kind" not in names(cls):
        raw = {k: v for k, v in raw.items() if k != "kind"}
    for key in raw:
        if key not in names(cls):
            raise TerakoyaError(where, f"no field {key!r}", allowed=names(cls), hint=nearest(key, names(cls)))
    needed = [f.name for f in dataclasses.fields(cls) if _required(f) and f.name not in raw]
    if needed:
        raise TerakoyaError(where, f"needs {', '.join(needed)}")
    fields = {k: build(hints(cls)[k], v, f"{path}.{k}" if path else k, place) for k, v in raw.items()}
    try:
        return cls(**fields)
    except TerakoyaError as error:  # a check of the values' own knows no file
        error.args = (f"{place}: {error}" if place else str(error),)
        raise


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " | ".join(map(repr, get_args(hint)))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def _from_text(hint: Any, text: str, path: str) -> Any:
    try:
        raw = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        raw = text
    try:
        return build(hint, raw, path)
    except TerakoyaError:
        if isinstance(raw, str):
            raise
        try:
            return build(hint, text, path)  # a text field may hold "2024" or "1e-3"
        except TerakoyaError:
            pass
        raise


# TOML out


def dump(node: Any) -> str:
    """Write a dataclass tree as TOML that `load` reads back equal."""
    return "\n".join(_lines(node, "")).strip() + "\n"


def _lines(node: Any, path: str) -> list[str]:
    own, below = [], []
    for field in dataclasses.fields(node):
        name, value = field.name, getattr(node, field.name)
        where = f"{path}.{name}" if path else name
        if _is_node(value):
            below += ["", f"[{where}]", *_tag(hints(type(node))[name], value), *_lines(value, where)]
        elif isinstance(value, tuple) and value and all(map(_is_node, value)):
            item = get_args(hints(type(node))[name])[0]
            for v in value:
                below += ["", f"[[{where}]]", *_tag(item, v), *_lines(v, where)]
        elif value is None and field.default is None:
            continue
        else:
            own.append(f"{name} = {_scalar(value)}")
    return own + below


def _tag(hint: Any, value: Any) -> list[str]:
    members = [a for a in get_args(hint) if dataclasses.is_dataclass(a)]
    return [f'kind = "{kind(value)}"'] if len(members) > 1 else []


def _scalar(value: Any) -> str:
    if value is None:
        return f'"{NOTHING}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_scalar, value)) + "]"
    if isinstance(value, str | Path):
        return '"' + "".join(_ESCAPES.get(c, c) for c in str(value)) + '"'
    return repr(value)


_ESCAPES = {"\\": "\\\\", '"': '\\"', **{chr(i): f"\\u{i:04x}" for i in (*range(32), 127)}}
