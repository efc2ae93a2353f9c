"""The template language of checkpoints (a subset of Jinja 3): from text to a tree. Nothing is ever run as code."""

from __future__ import annotations

import re
from typing import Any

from terakoya.engine.template_cut import TemplateError, Word, cut, words

MOST_CHARACTERS, MOST_NODES, DEEPEST = 200_000, 50_000, 40

Node = tuple[Any, ...]
"""(kind, parts …): what `template_run` knows how to do."""
_BETWEEN = ("else", "or", "and", "if", "is", "in", "not")


def parse(source: str) -> list[Node]:
    """Parse a template. Raises TemplateError for what is too long, too deep, or not understood."""
    if len(source) > MOST_CHARACTERS:
        raise TemplateError(f"has {len(source):,} characters, at most {MOST_CHARACTERS:,}")
    source = re.sub(r"\r\n?", "\n", source)
    return Parser(list(cut(source.removesuffix("\n")))).body()


class Parser:
    """Recursive descent over the parts of a template."""

    def __init__(self, parts: list[tuple[str, str]]) -> None:
        self.parts, self.at = parts, 0
        self.words: list[Word] = []
        self.depth = self.nodes = 0

    # ---- statements

    def body(self, *ends: str) -> list[Node]:
        """Parse up to a block named in `ends`, whose words are then open; to the end of the template without."""
        out: list[Node] = []
        self._deeper()
        while self.at < len(self.parts):
            kind, text = self.parts[self.at]
            self.at += 1
            self._count()
            if kind == "text":
                out.append(("text", text))
                continue
            self.words = words(text)
            if kind == "{{":
                out.append(("print", self.expression(tuples=True)))
                self._done()
            elif self._peek().text in ends:
                self.depth -= 1
                return out
            else:
                out.append(self._statement(self._name()))
        if ends:
            raise TemplateError(f"ends where {' or '.join(ends)} is missing")
        self.depth -= 1
        return out

    def _statement(self, name: str) -> Node:
        known = {"for": self._for, "if": self._if, "set": self._set, "macro": self._macro, "generation": self._plain}
        if name in ("break", "continue"):
            self._done()
            return (name,)
        if name not in known:
            raise TemplateError(f"uses {name!r}, which is not allowed or not known")
        return known[name]()

    def _block(self, *ends: str) -> tuple[list[Node], str]:
        self._done()
        body = self.body(*ends)
        return body, self._name()

    def _for(self) -> Node:
        target = self._targets()
        self._need("in")
        over, test = self.expression(tuples=True, conditional=False), None
        if self._take("if"):
            test = self.expression()
        self._take("recursive")
        body, end = self._block("else", "endfor")
        other: list[Node] = []
        if end == "else":
            other, _ = self._block("endfor")
        self._done()
        return ("for", target, over, test, body, other)

    def _if(self) -> Node:
        test = self.expression()
        body, end = self._block("elif", "else", "endif")
        if end == "elif":
            self._deeper()
            other: list[Node] = [self._if()]
            self.depth -= 1
            return ("if", test, body, other)
        other = []
        if end == "else":
            other, _ = self._block("endif")
        self._done()
        return ("if", test, body, other)

    def _set(self) -> Node:
        target = self._targets()
        if self._take("="):
            value = self.expression(tuples=True)
            self._done()
            return ("set", target, value)
        filters: Node = ("held",)
        while self._take("|"):
            filters = self._filter(filters)
        body, _ = self._block("endset")
        self._done()
        return ("hold", target, body, filters)

    def _macro(self) -> Node:
        name = self._name()
        self._need("(")
        takes: list[tuple[str, Node | None]] = []
        while not self._take(")"):
            parameter = self._name()
            takes.append((parameter, self.expression() if self._take("=") else None))
            if not self._take(","):
                self._need(")")
                break
        body, _ = self._block("endmacro")
        self._done()
        return ("macro", name, takes, body)

    def _plain(self) -> Node:
        body, _ = self._block("endgeneration")
        self._done()
        return ("block", body)

    def _targets(self) -> Node:
        found = [self._target()]
        many = False
        while self._take(","):
            many = True
            found.append(self._target())
        return ("tuple", found) if many else found[0]

    def _target(self) -> Node:
        if self._take("("):
            inner = self._targets()
            self._need(")")
            return inner
        name = self._name()
        return ("member", name, self._name()) if self._take(".") else ("name", name)

    # ---- expressions, loosest first

    def expression(self, *, tuples: bool = False, conditional: bool = True) -> Node:
        """Parse an expression; `tuples`: with commas too; not `conditional`: an `if` after it is not its own."""
        self._deeper()
        first = self._choice() if conditional else self._or()
        if tuples and self._peek().text == ",":
            items = [first]
            while self._take(","):
                if self._peek().kind == "end":
                    break
                items.append(self._choice() if conditional else self._or())
            first = ("tuple", items)
        self.depth -= 1
        return first

    def _choice(self) -> Node:
        value = self._or()
        while self._take("if"):
            test = self._or()
            other = self._choice() if self._take("else") else None
            value = ("choose", test, value, other)
        return value

    def _or(self) -> Node:
        left = self._and()
        while self._take("or"):
            left = self._made("or", left, self._and())
        return left

    def _and(self) -> Node:
        left = self._not()
        while self._take("and"):
            left = self._made("and", left, self._not())
        return left

    def _not(self) -> Node:
        if self._take("not"):
            self._deeper()
            inner = self._not()
            self.depth -= 1
            return ("not", inner)
        return self._compare()

    def _compare(self) -> Node:
        first, rest = self._sum(), []
        while True:
            word = self._peek()
            if word.kind == "mark" and word.text in ("==", "!=", "<", "<=", ">", ">="):
                self._next()
                rest.append((word.text, self._sum()))
            elif self._take("in"):
                rest.append(("in", self._sum()))
            elif word.text == "not" and self.words[1].text == "in":
                self._next()
                self._next()
                rest.append(("not in", self._sum()))
            else:
                return self._made("compare", first, rest) if rest else first

    def _sum(self) -> Node:
        return self._left(("+", "-"), self._joined)

    def _joined(self) -> Node:
        items = [self._product()]
        while self._take("~"):
            items.append(self._product())
        return self._made("join", items) if len(items) > 1 else items[0]

    def _product(self) -> Node:
        return self._left(("*", "/", "//", "%"), self._power)

    def _power(self) -> Node:
        return self._left(("**",), self._signed)

    def _left(self, marks: tuple[str, ...], inner: Any) -> Node:
        left = inner()
        while self._peek().kind == "mark" and self._peek().text in marks:
            left = self._made("binary", self._next().text, left, inner())
        return left

    def _signed(self, filters: bool = True) -> Node:
        for mark in "-+":
            if self._take(mark):
                self._deeper()
                inner = self._signed(filters=False)
                self.depth -= 1
                node: Node = ("sign", mark, inner)
                break
        else:
            node = self._after(self._primary())
        while filters:
            if self._take("|"):
                node = self._filter(node)
            elif self._take("is"):
                node = self._test(node)
            elif self._peek().text == "(" and self._peek().kind == "mark":
                node = self._made("call", node, *self._arguments())
            else:
                break
        return node

    def _primary(self) -> Node:
        self._count()
        word = self._next()
        if word.kind == "string":
            text = word.value
            while self._peek().kind == "string":
                text += self._next().value
            return ("said", text)
        if word.kind == "number":
            return ("value", word.value)
        if word.kind == "name":
            constants = {"true": True, "false": False, "none": None}
            lower = word.text[0].lower() + word.text[1:]
            return ("value", constants[lower]) if lower in constants else ("name", word.text)
        if word.text == "(":
            if self._take(")"):
                return ("tuple", [])
            inner = self.expression(tuples=True)
            self._need(")")
            return inner
        if word.text == "[":
            return ("list", self._items("]"))
        if word.text == "{":
            return self._dict()
        raise TemplateError(f"has {word.text or 'the end of a tag'!r} where a value should be")

    def _dict(self) -> Node:
        pairs = []
        while not self._take("}"):
            key = self.expression()
            self._need(":")
            pairs.append((key, self.expression()))
            if not self._take(","):
                self._need("}")
                break
        return ("dict", pairs)

    def _items(self, close: str) -> list[Node]:
        items = []
        while not self._take(close):
            items.append(self.expression())
            if not self._take(","):
                self._need(close)
                break
        return items

    def _after(self, node: Node) -> Node:
        """What may follow a value directly: members, subscripts, calls."""
        while True:
            if self._take("."):
                word = self._next()
                node = self._made("member", node, word.value if word.kind == "number" else word.text)
            elif self._take("["):
                node = self._made("item", node, self._subscript())
            elif self._peek().kind == "mark" and self._peek().text == "(":
                node = self._made("call", node, *self._arguments())
            else:
                return node

    def _subscript(self) -> Node:
        parts: list[Node | None] = [None]
        while not self._take("]"):
            if self._take(":"):
                parts.append(None)
            else:
                parts[-1] = self.expression()
        if len(parts) == 1:
            if parts[0] is None:
                raise TemplateError("has an empty subscript")
            return parts[0]
        return ("slice", *parts, *[None] * (3 - len(parts)))

    def _arguments(self) -> tuple[list[Node], list[tuple[str, Node]]]:
        self._need("(")
        plain: list[Node] = []
        named: list[tuple[str, Node]] = []
        while not self._take(")"):
            if self._peek().kind == "name" and self.words[1].text == "=" and self.words[1].kind == "mark":
                name = self._name()
                self._need("=")
                named.append((name, self.expression()))
            else:
                plain.append(self.expression())
            if not self._take(","):
                self._need(")")
                break
        return plain, named

    def _filter(self, node: Node) -> Node:
        name = self._name()
        has = self._peek().kind == "mark" and self._peek().text == "("
        return self._made("filter", name, node, *(self._arguments() if has else ([], [])))

    def _test(self, node: Node) -> Node:
        negated = self._take("not")
        name, word = self._name(), self._peek()
        arguments: list[Node] = []
        if word.kind == "mark" and word.text == "(":
            arguments = self._arguments()[0]
        elif word.kind in ("string", "number") or (word.kind == "name" and word.text not in _BETWEEN):
            arguments = [self._after(self._primary())]
        test = self._made("test", name, node, arguments)
        return ("not", test) if negated else test

    # ---- words

    def _peek(self) -> Word:
        return self.words[0]

    def _next(self) -> Word:
        return self.words.pop(0) if len(self.words) > 1 else self.words[0]

    def _take(self, text: str) -> bool:
        word = self.words[0]
        if word.text != text or word.kind not in ("name", "mark"):
            return False
        self.words.pop(0)
        return True

    def _need(self, text: str) -> None:
        if not self._take(text):
            raise TemplateError(f"has {self._peek().text or 'the end of a tag'!r} where {text!r} should be")

    def _name(self) -> str:
        word = self._next()
        if word.kind != "name":
            raise TemplateError(f"has {word.text or 'the end of a tag'!r} where a name should be")
        return word.text

    def _done(self) -> None:
        if self._peek().kind != "end":
            raise TemplateError(f"has {self._peek().text!r} where a tag should end")

    # ---- limits

    def _made(self, *node: Any) -> Node:
        self._count()
        return node

    def _count(self) -> None:
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise TemplateError(f"has more than {MOST_NODES:,} parts")

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise TemplateError(f"is nested more than {DEEPEST} deep")
