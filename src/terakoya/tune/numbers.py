"""Numbers in texts, exactly: read, compared and computed as fractions, never as floats."""

from __future__ import annotations

import re
from fractions import Fraction

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
PLAIN = str.maketrans("０１２３４５６７８９＋－＊／（）．，×÷−–〇", "0123456789+-*/().,*/--0")
TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?)|([-+*/()]))")
LONGEST = 200  # characters of a number or an expression


def numbers(text: str) -> list[str]:
    """The numbers in a text; full-width digits and thousands separators are understood."""
    return NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3})", "", text.translate(PLAIN)))


def last_number(text: str) -> Fraction | None:
    """The last number of a text."""
    found = numbers(text)
    return Fraction(found[-1]) if found and len(found[-1]) <= LONGEST else None


def value(text: str) -> Fraction | None:
    """The value of an expression of + - * / and brackets, `1/3 + 0.5`; None where it is none, or divides by zero."""
    plain = text.translate(PLAIN).strip()
    if not plain or len(plain) > LONGEST:
        return None
    parts: list[str] = []
    at = 0
    while at < len(plain):
        found = TOKEN.match(plain, at)
        if found is None:
            return None
        parts.append(found[1] or found[2])
        at = found.end()
    try:
        reader = _Reader(parts)
        result = reader.sum()
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return result if reader.at == len(parts) else None


class _Reader:
    """Recursive descent: sums of products of signed atoms."""

    def __init__(self, parts: list[str]) -> None:
        self.parts, self.at = parts, 0

    def _next(self, *wanted: str) -> str | None:
        if self.at < len(self.parts) and self.parts[self.at] in wanted:
            self.at += 1
            return self.parts[self.at - 1]
        return None

    def sum(self) -> Fraction:
        total = self.product()
        while sign := self._next("+", "-"):
            total += self.product() * (1 if sign == "+" else -1)
        return total

    def product(self) -> Fraction:
        total = self.atom()
        while sign := self._next("*", "/"):
            other = self.atom()
            total = total * other if sign == "*" else total / other
        return total

    def atom(self) -> Fraction:
        if sign := self._next("+", "-"):
            return self.atom() * (1 if sign == "+" else -1)
        if self._next("("):
            inside = self.sum()
            if not self._next(")"):
                raise ValueError("an open bracket")
            return inside
        self.at += 1
        return Fraction(self.parts[self.at - 1])
