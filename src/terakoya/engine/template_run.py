"""Walk a template's tree: every step, every character made and every call is paid for; only listed names exist."""

from __future__ import annotations

import datetime
import operator
from collections.abc import Callable, Mapping
from typing import Any

from terakoya.engine.template_cut import TemplateError
from terakoya.engine.template_parse import Node
from terakoya.engine.template_value import Fuel, Text, as_text, is_text, joined, plain, size
from terakoya.engine.template_words import FILTERS, METHODS, TESTS, Namespace, Undefined, shown

Scope = dict[str, Any]
LARGEST = 10**15
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_SUMS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "//": operator.floordiv, "%": operator.mod, "**": operator.pow,
}  # fmt: skip


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class Loop:
    """What `loop` is inside a for."""

    def __init__(self, items: list[Any], depth: int) -> None:
        self.items, self.at, self.depth0 = items, 0, depth

    def get(self, name: str, run: Runner) -> Any:
        at, count = self.at, len(self.items)
        match name:
            case "previtem" | "nextitem":
                near = at - 1 if name == "previtem" else at + 1
                return self.items[near] if 0 <= near < count else Undefined(name)
            case "cycle":
                return lambda *a: a[at % len(a)]
        facts = {"index": at + 1, "index0": at, "first": at == 0, "last": at + 1 == count, "length": count}
        facts |= {"revindex": count - at, "revindex0": count - at - 1, "depth": self.depth0 + 1, "depth0": self.depth0}
        return facts.get(name, Undefined(f"loop.{name}"))


class Runner:
    """One rendering."""

    def __init__(self, variables: Mapping[str, Any], fuel: Fuel, now: datetime.datetime) -> None:
        self.fuel = fuel
        functions = {
            "range": self._range,
            "namespace": lambda *a, **k: Namespace({**(a[0] if a else {}), **k}),
            "dict": lambda *a, **k: {**(a[0] if a else {}), **k},
            "raise_exception": _raise,
            "strftime_now": lambda form: _time(now, form),
        }
        self.scopes: list[Scope] = [{**functions, **variables}]
        self.out: list[list[Text]] = [[]]
        self.loops = self.calls = 0

    def run(self, body: list[Node]) -> Text:
        self.body(body)
        return joined(self.out[0])

    # ---- statements

    def body(self, body: list[Node]) -> None:
        for node in body:
            self.fuel.step()
            getattr(self, f"_do_{node[0]}")(*node[1:])

    def _do_text(self, text: str) -> None:
        self._say(Text(text))

    def _do_print(self, value: Node) -> None:
        self._say(shown(self.value(value), self))

    def _say(self, text: Text) -> None:
        self.fuel.make(len(text))
        self.out[-1].append(text)

    def _do_block(self, body: list[Node]) -> None:
        self.body(body)

    def _do_if(self, test: Node, body: list[Node], other: list[Node]) -> None:
        self.body(body if self.value(test) else other)

    def _do_set(self, target: Node, value: Node) -> None:
        self._assign(target, self.value(value))

    def _do_hold(self, target: Node, body: list[Node], filters: Node) -> None:
        text = self._caught(body, {})
        self.scopes.append({"\0held": text})
        value = self.value(filters)
        self.scopes.pop()
        self._assign(target, value)

    def _do_macro(self, name: str, takes: list[tuple[str, Node | None]], body: list[Node]) -> None:
        known = list(self.scopes)

        def macro(*given: Any, **named: Any) -> Text:
            if len(given) > len(takes) or set(named) - {n for n, _ in takes}:
                raise TemplateError(f"calls {name} with what it does not take")
            scope: Scope = {}
            kept, self.scopes = self.scopes, [*known, scope]
            try:
                for i, (parameter, default) in enumerate(takes):
                    if i < len(given):
                        scope[parameter] = given[i]
                    elif parameter in named:
                        scope[parameter] = named[parameter]
                    else:
                        scope[parameter] = Undefined(parameter) if default is None else self.value(default)
                return self._caught(body, None)
            finally:
                self.scopes = kept

        self.scopes[-1][name] = macro

    def _do_for(self, target: Node, over: Node, test: Node | None, body: list[Node], other: list[Node]) -> None:
        items = self.items(self.value(over))
        if test is not None:
            items = [item for item in items if self._holds(target, item, test)]
        loop = Loop(items, self.loops)
        self.loops += 1
        for i, item in enumerate(items):
            loop.at = i
            self.fuel.step()
            self.scopes.append({"loop": loop})
            try:
                self._assign(target, item)
                self.body(body)
            except _Continue:
                continue
            except _Break:
                break
            finally:
                self.scopes.pop()
        self.loops -= 1
        if not items:
            self.body(other)

    def _holds(self, target: Node, item: Any, test: Node) -> bool:
        self.fuel.step()
        self.scopes.append({})
        self._assign(target, item)
        try:
            return bool(self.value(test))
        finally:
            self.scopes.pop()

    def _do_break(self) -> None:
        raise _Break

    def _do_continue(self) -> None:
        raise _Continue

    def _caught(self, body: list[Node], scope: Scope | None) -> Text:
        """Run a body and return what it says."""
        self.out.append([])
        if scope is not None:
            self.scopes.append(scope)
        try:
            self.body(body)
            return joined(self.out[-1])
        finally:
            self.out.pop()
            if scope is not None:
                self.scopes.pop()

    def _assign(self, target: Node, value: Any) -> None:
        match target:
            case ("name", name):
                self.scopes[-1][name] = value
            case ("member", name, field):
                space = self._find(name)
                if not isinstance(space, Namespace):
                    raise TemplateError(f"sets {name}.{field}, but only a namespace can be changed")
                space[field] = value
            case ("tuple", targets):
                items = self.items(value)
                if len(items) != len(targets):
                    raise TemplateError(f"takes {len(items)} values apart into {len(targets)} names")
                for part, item in zip(targets, items, strict=True):
                    self._assign(part, item)

    # ---- values

    def value(self, node: Node) -> Any:
        self.fuel.step()
        return getattr(self, f"_{node[0].replace(' ', '_')}")(*node[1:])

    def _said(self, text: str) -> Text:
        return Text(text)

    def _value(self, value: Any) -> Any:
        return value

    def _held(self) -> Any:
        return self._find("\0held")

    def _name(self, name: str) -> Any:
        return self._find(name)

    def _find(self, name: str) -> Any:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return Undefined(name)

    def _tuple(self, items: list[Node]) -> tuple[Any, ...]:
        return tuple(self.value(i) for i in items)

    def _list(self, items: list[Node]) -> list[Any]:
        return [self.value(i) for i in items]

    def _dict(self, pairs: list[tuple[Node, Node]]) -> dict[Any, Any]:
        return {plain(self.value(k)): self.value(v) for k, v in pairs}

    def _choose(self, test: Node, value: Node, other: Node | None) -> Any:
        if self.value(test):
            return self.value(value)
        return Undefined("else") if other is None else self.value(other)

    def _or(self, left: Node, right: Node) -> Any:
        return self.value(left) or self.value(right)

    def _and(self, left: Node, right: Node) -> Any:
        return self.value(left) and self.value(right)

    def _not(self, value: Node) -> bool:
        return not self.value(value)

    def _compare(self, first: Node, rest: list[tuple[str, Node]]) -> bool:
        left = self.value(first)
        for mark, node in rest:
            right = self.value(node)
            if mark in ("in", "not in"):
                self.fuel.step(1 + len(right) // 16 if hasattr(right, "__len__") else 1)
                inside = not isinstance(right, Undefined) and self.plain(left) in self.plain(right)
                holds = inside if mark == "in" else not inside
            else:
                holds = _COMPARE[mark](self.plain(left), self.plain(right))
            if not holds:
                return False
            left = right
        return True

    def _join(self, items: list[Node]) -> Text:
        texts = [shown(self.value(i), self) for i in items]
        self.fuel.make(sum(map(len, texts)))
        return joined(texts)

    def _sign(self, mark: str, value: Node) -> Any:
        found = self._number(self.value(value))
        return -found if mark == "-" else found

    def _binary(self, mark: str, a: Node, b: Node) -> Any:
        left, right = self.value(a), self.value(b)
        if mark == "+" and is_text(left) and is_text(right):
            self.fuel.make(len(left) + len(right))
            return joined([left, right])
        if mark == "+" and isinstance(left, list | tuple) and type(left) is type(right):
            self.fuel.make(len(left) + len(right))
            return left + right
        x, y = self._number(left), self._number(right)
        if mark == "**" and (abs(y) > 64 or abs(x) > 10**6):
            raise TemplateError("raises to a power that is too high")
        if y == 0 and mark in ("/", "//", "%"):
            raise TemplateError("divides by zero")
        return self._number(_SUMS[mark](x, y))

    def _number(self, value: Any) -> Any:
        if isinstance(value, Undefined):
            raise TemplateError(f"counts with {value.name!r}, which is undefined")
        if not isinstance(value, int | float) or abs(value) > LARGEST:
            raise TemplateError(f"counts with a {type(value).__name__}, or too far")
        return value

    def _test(self, name: str, value: Node, arguments: list[Node]) -> bool:
        return self.test(name, self.value(value), [self.value(a) for a in arguments])

    def test(self, name: str, value: Any, arguments: list[Any]) -> bool:
        if name not in TESTS:
            raise TemplateError(f"tests for {name!r}, which is not known")
        if arguments:
            value, arguments = self.plain(value), [self.plain(a) for a in arguments]
        return bool(TESTS[name](value, *arguments))

    def plain(self, value: Any) -> Any:
        """Return a value without marks, after paying for all that it holds."""
        if isinstance(value, dict | list | tuple):
            self.fuel.make(size(value, self.fuel))
        return plain(value)

    def _filter(self, name: str, value: Node, given: list[Node], named: list[tuple[str, Node]]) -> Any:
        found = self.value(value)
        return self.filter(name, found, [self.value(a) for a in given], {k: self.value(v) for k, v in named})

    def filter(self, name: str, value: Any, given: list[Any], named: dict[str, Any]) -> Any:
        if name not in FILTERS:
            raise TemplateError(f"uses the filter {name!r}, which is not allowed or not known")
        if hasattr(value, "__len__"):
            self.fuel.step(1 + len(value) // 16)
        return FILTERS[name](self, value, *given, **named)

    def _member(self, value: Node, name: Any) -> Any:
        return self.member(self.value(value), name)

    def member(self, value: Any, name: Any) -> Any:
        """Return `value.name`: a method, an entry, or a fact of a loop; never an attribute of a Python object."""
        if isinstance(value, Undefined):
            raise TemplateError(f"asks {value.name!r} for {name!r}, but it is undefined")
        if isinstance(value, Loop):
            return value.get(str(name), self)
        if isinstance(name, int):
            return self._at(value, name)
        method = self.method(value, name)
        if method is not None and not (isinstance(value, Namespace) and name in value):
            return method
        return value.get(name, Undefined(name)) if isinstance(value, dict) else Undefined(name)

    def method(self, value: Any, name: str) -> Any:
        """Return a method that is on the list, bound; None for every other."""
        if is_text(value) and name in METHODS:
            return lambda *a, **k: METHODS[name](self, value, *a, **k)
        if isinstance(value, dict):
            known: dict[str, Any] = {
                "items": lambda: list(value.items()),
                "keys": lambda: list(value),
                "values": lambda: list(value.values()),
                "get": lambda key, default=None: value.get(plain(key), default),
            }
            return known.get(name)
        if isinstance(value, list | tuple):
            whole = value
            return {
                "index": lambda item: self.plain(whole).index(self.plain(item)),
                "count": lambda item: self.plain(whole).count(self.plain(item)),
            }.get(name)
        return None

    def _item(self, value: Node, key: Node) -> Any:
        found = self.value(value)
        if key[0] == "slice":
            begin, end, step = (None if n is None else self.value(n) for n in key[1:])
            if isinstance(found, Undefined):
                raise TemplateError(f"cuts {found.name!r}, which is undefined")
            self.fuel.step(1 + len(found) // 16)
            return (as_text(found) if is_text(found) else found)[slice(begin, end, step)]
        return self._at(found, plain(self.value(key)))

    def _at(self, value: Any, key: Any) -> Any:
        if isinstance(value, Undefined):
            raise TemplateError(f"looks into {value.name!r}, which is undefined")
        if isinstance(value, dict):
            return value[key] if key in value else self.member(value, key) if is_text(key) else Undefined(str(key))
        if is_text(key):
            return self.member(value, key)
        value = as_text(value) if is_text(value) else value
        if isinstance(value, list | tuple | Text) and isinstance(key, int) and -len(value) <= key < len(value):
            return value[key]
        return Undefined(str(key))

    def _call(self, what: Node, given: list[Node], named: list[tuple[str, Node]]) -> Any:
        function = self.value(what)
        if isinstance(function, Undefined) or not callable(function):
            raise TemplateError(f"calls {getattr(function, 'name', 'a value')!r}, which is no function here")
        arguments, options = [self.value(a) for a in given], {k: self.value(v) for k, v in named}
        for value in arguments:
            self.fuel.step(1 + len(value) // 16 if hasattr(value, "__len__") else 1)
        self.calls += 1
        if self.calls > self.fuel.depth:
            raise TemplateError("calls itself too deep")
        try:
            return function(*arguments, **options)
        finally:
            self.calls -= 1

    def items(self, value: Any) -> list[Any]:
        """Return what a value consists of, to walk over."""
        if isinstance(value, Undefined):
            return []
        if is_text(value):
            t = as_text(value)
            self.fuel.step(len(t))
            return [t.cut(i, i + 1) for i in range(len(t))]
        if not isinstance(value, dict | list | tuple):
            raise TemplateError(f"walks over a {type(value).__name__}")
        self.fuel.step(len(value))
        return list(value)

    def _range(self, *bounds: Any) -> list[int]:
        count = len(range(*bounds))
        self.fuel.make(count)
        self.fuel.step(count)
        return list(range(*bounds))


def _raise(message: Any = "") -> Any:
    raise TemplateError(f"refuses this conversation: {plain(message)}")


def _time(now: datetime.datetime, form: Any) -> str:
    text = str(plain(form))
    if len(text) > 64:
        raise TemplateError("asks for a long date")
    return now.strftime(text)
