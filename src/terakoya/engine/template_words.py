"""The filters, methods and tests that templates may use; nothing else exists for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from terakoya.engine.template_cut import TemplateError
from terakoya.engine.template_value import (
    Text,
    as_text,
    changed,
    is_text,
    joined,
    lines,
    plain,
    replaced,
    size,
    split,
    strip,
)

if TYPE_CHECKING:
    from terakoya.engine.template_run import Runner


class Undefined:
    """What a name means that nobody set."""

    undefined = True

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Undefined)

    def __hash__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0


class Namespace(dict[str, Any]):
    """What `namespace()` makes: members that may be set."""


def shown(value: Any, run: Runner) -> Text:
    """Write a value as text."""
    if isinstance(value, str | Text):
        return as_text(value)
    if isinstance(value, Undefined):
        return Text("")
    if isinstance(value, bool | int | float) or value is None:
        return as_text(str(value))
    run.fuel.make(size(value, run.fuel))
    return as_text(str(plain(value)))


def to_json(run: Runner, value: Any, **options: Any) -> Text:
    unknown = set(options) - {"indent", "ensure_ascii", "separators", "sort_keys"}
    if unknown:
        raise TemplateError(f"gives tojson {sorted(unknown)[0]!r}")
    if isinstance(value, Undefined):
        raise TemplateError(f"writes {value.name!r} as JSON, which is undefined")
    indent = options.get("indent")
    spaces = None if indent is None else min(int(indent), 8)
    run.fuel.make(size(value, run.fuel) * (1 if spaces is None else 2 + spaces))
    separators = plain(options.get("separators"))
    text = json.dumps(
        plain(value),
        ensure_ascii=bool(options.get("ensure_ascii", False)),
        indent=spaces,
        separators=tuple(separators) if separators else None,
        sort_keys=bool(options.get("sort_keys", False)),
    )
    return as_text(text)


def _join(run: Runner, value: Any, between: Any = "", attribute: Any = None) -> Text:
    items = [shown(_got(run, v, attribute) if attribute else v, run) for v in run.items(value)]
    run.fuel.make(sum(map(len, items)) + len(between) * len(items))
    return joined(items, between)


def _got(run: Runner, value: Any, path: Any) -> Any:
    for name in str(plain(path)).split("."):
        value = run.member(value, int(name) if name.isdigit() else name)
    return value


def _chosen(run: Runner, value: Any, by: Callable[[Any], Any], arguments: tuple[Any, ...], keep: bool) -> list[Any]:
    """select, reject and their kin: keep the items for which a test (or their truth) holds."""
    name, *rest = arguments or ("truth",)
    found = []
    for item in run.items(value):
        given = by(item)
        holds = bool(given) if plain(name) == "truth" else run.test(plain(name), given, list(rest))
        if holds == keep:
            found.append(item)
    return found


def _map(run: Runner, value: Any, *arguments: Any, attribute: Any = None, default: Any = None) -> list[Any]:
    if attribute is not None:
        found = [_got(run, v, attribute) for v in run.items(value)]
        return found if default is None else [default if isinstance(v, Undefined) else v for v in found]
    name, *rest = arguments
    return [run.filter(plain(name), v, rest, {}) for v in run.items(value)]


def _sorted(run: Runner, value: Any, reverse: Any = False, case_sensitive: Any = False, attribute: Any = None) -> list:
    def key(item: Any) -> Any:
        found = run.plain(_got(run, item, attribute) if attribute else item)
        return found.lower() if isinstance(found, str) and not case_sensitive else found

    return sorted(run.items(value), key=key, reverse=bool(reverse))


def _indent(run: Runner, value: Any, width: int | str | Text = 4, first: Any = False, blank: Any = False) -> Text:
    space = as_text(width) if not isinstance(width, int) else Text(" " * width) if 0 <= width <= 64 else None
    if space is None or len(space) > 64:
        raise TemplateError("indents too far")
    t, out, place = as_text(value), [], 0
    run.fuel.make(len(t) + len(space) * (t.text.count("\n") + 1))
    for n, line in enumerate(t.text.split("\n")):
        piece = t.cut(place, place + len(line))
        out.append(joined([space, piece]) if (n == 0 and first) or (n and (line or blank)) else piece)
        place += len(line) + 1
    return joined(out, "\n")


def _default(run: Runner, value: Any, other: Any = "", falsy: Any = False) -> Any:
    return other if isinstance(value, Undefined) or (falsy and not value) else value


def _number(kind: type[int] | type[float]) -> Callable[..., Any]:
    def made(run: Runner, value: Any, default: Any = 0) -> Any:
        text = plain(value)
        if isinstance(text, str) and len(text) > 64:
            return default
        try:
            return kind(text)
        except (TypeError, ValueError, OverflowError):
            return default

    return made


def _unique(run: Runner, value: Any) -> list[Any]:
    found: dict[str, Any] = {}
    for item in run.items(value):
        found.setdefault(json.dumps(run.plain(item), default=str), item)
    return list(found.values())


def _extreme(best: Callable[..., Any]) -> Callable[..., Any]:
    return lambda run, value: best(run.items(value), key=run.plain, default=Undefined("empty"))


def _replace(run: Runner, value: Any, old: Any, new: Any, count: Any = None) -> Text:
    given = shown(value, run)
    return replaced(given, shown(old, run), shown(new, run), -1 if count is None else int(count), run.fuel)


FILTERS: Mapping[str, Callable[..., Any]] = {
    "trim": lambda run, v, chars=None: strip(shown(v, run), chars),
    "tojson": to_json,
    "length": lambda run, v: len(v),
    "count": lambda run, v: len(v),
    "join": _join,
    "map": _map,
    "select": lambda run, v, *a: _chosen(run, v, lambda item: item, a, True),
    "reject": lambda run, v, *a: _chosen(run, v, lambda item: item, a, False),
    "selectattr": lambda run, v, name, *a: _chosen(run, v, lambda item: _got(run, item, name), a, True),
    "rejectattr": lambda run, v, name, *a: _chosen(run, v, lambda item: _got(run, item, name), a, False),
    "list": lambda run, v: list(run.items(v)),
    "string": lambda run, v: shown(v, run),
    "default": _default,
    "d": _default,
    "first": lambda run, v: next(iter(run.items(v)), Undefined("first")),
    "last": lambda run, v: next(reversed(run.items(v)), Undefined("last")),
    "upper": lambda run, v: changed(shown(v, run), str.upper),
    "lower": lambda run, v: changed(shown(v, run), str.lower),
    "capitalize": lambda run, v: changed(shown(v, run), str.capitalize),
    "title": lambda run, v: changed(shown(v, run), str.title),
    "replace": _replace,
    "items": lambda run, v: [] if isinstance(v, Undefined) else run.method(v, "items")(),
    "dictsort": lambda run, v: sorted(run.method(v, "items")(), key=lambda kv: str(plain(kv[0])).lower()),
    "int": _number(int),
    "float": _number(float),
    "abs": lambda run, v: abs(v),
    "round": lambda run, v, digits=0: round(float(v), int(digits)),
    "sum": lambda run, v: sum(run.items(v)),
    "min": _extreme(min),
    "max": _extreme(max),
    "unique": _unique,
    "sort": _sorted,
    "reverse": lambda run, v: (
        v[::-1] if isinstance(v, Text) else as_text(v[::-1]) if is_text(v) else run.items(v)[::-1]
    ),
    "indent": _indent,
    "safe": lambda run, v: v,
    "bool": lambda run, v: bool(v),
    "wordcount": lambda run, v: len(as_text(v).text.split()),
}


def _cased(change: Callable[[str], str]) -> Callable[..., Any]:
    return lambda run, v: changed(v, change)


def _asked(question: str) -> Callable[..., Any]:
    return lambda run, v, *a: getattr(as_text(v).text, question)(*plain(a))


METHODS: Mapping[str, Callable[..., Any]] = {  # of texts
    "strip": lambda run, v, chars=None: strip(v, chars),
    "lstrip": lambda run, v, chars=None: strip(v, chars, right=False),
    "rstrip": lambda run, v, chars=None: strip(v, chars, left=False),
    "split": lambda run, v, by=None, most=-1, maxsplit=-1: split(v, by, max(most, maxsplit)),
    "rsplit": lambda run, v, by=None, most=-1, maxsplit=-1: split(v, by, max(most, maxsplit), right=True),
    "splitlines": lambda run, v: lines(v),
    "upper": _cased(str.upper),
    "lower": _cased(str.lower),
    "title": _cased(str.title),
    "capitalize": _cased(str.capitalize),
    "replace": _replace,
    "join": lambda run, v, items: _join(run, items, v),
    "removeprefix": lambda run, v, p: as_text(v).cut(len(p) if as_text(v).text.startswith(plain(p)) else 0, len(v)),
    "removesuffix": lambda run, v, p: as_text(v).cut(0, len(v) - (len(p) if as_text(v).text.endswith(plain(p)) else 0)),
    **{name: _asked(name) for name in ("startswith", "endswith", "find", "rfind", "index", "count")},
    **{f"is{kind}": _asked(f"is{kind}") for kind in ("digit", "alpha", "alnum", "upper", "lower", "space", "numeric")},
}

TESTS: Mapping[str, Callable[..., bool]] = {
    "defined": lambda v: not isinstance(v, Undefined),
    "undefined": lambda v: isinstance(v, Undefined),
    "none": lambda v: v is None,
    "string": is_text,
    "mapping": lambda v: isinstance(v, dict),
    "iterable": lambda v: is_text(v) or isinstance(v, dict | list | tuple | Undefined),
    "sequence": lambda v: is_text(v) or isinstance(v, dict | list | tuple),
    "number": lambda v: isinstance(v, int | float),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: isinstance(v, float),
    "boolean": lambda v: isinstance(v, bool),
    "true": lambda v: v is True,
    "false": lambda v: v is False,
    "callable": callable,
    "odd": lambda v: v % 2 == 1,
    "even": lambda v: v % 2 == 0,
    "divisibleby": lambda v, n: v % n == 0,
    "lower": lambda v: plain(v).islower(),
    "upper": lambda v: plain(v).isupper(),
    **dict.fromkeys(("equalto", "eq", "=="), lambda v, o: plain(v) == plain(o)),
    **dict.fromkeys(("ne", "!="), lambda v, o: plain(v) != plain(o)),
    **dict.fromkeys(("gt", "greaterthan", ">"), lambda v, o: plain(v) > plain(o)),
    **dict.fromkeys(("lt", "lessthan", "<"), lambda v, o: plain(v) < plain(o)),
    **dict.fromkeys(("ge", ">="), lambda v, o: plain(v) >= plain(o)),
    **dict.fromkeys(("le", "<="), lambda v, o: plain(v) <= plain(o)),
    "in": lambda v, o: plain(v) in plain(o),
}
