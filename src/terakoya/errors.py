"""What a user can cause, said in one line: where, what was given, what would do, and the nearest good thing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class TerakoyaError(Exception):
    """A mistake that the user can mend; printed as one line, exit code 2.

    `place` says where (a path in a file, a field, an option), `given` what stood there, `allowed` what may stand
    there and `hint` what to do. Programming errors stay ordinary exceptions.
    """

    def __init__(
        self, place: str, problem: str = "", *, given: object = None, allowed: object = None, hint: str = ""
    ) -> None:
        self.place, self.problem, self.given, self.allowed, self.hint = place, problem, given, allowed, hint
        super().__init__(self._message())

    def _message(self) -> str:
        head = self.problem or "is not allowed here"
        if self.given is not None:
            head = f"{self.given!r} {head}"
        parts = [f"{self.place}: {head}"]
        if self.allowed is not None:
            parts.append(f"allowed: {_listed(self.allowed)}")
        if self.hint:
            parts.append(self.hint)
        return "; ".join(" ".join(p.split()) for p in parts)


class MissingExtra(TerakoyaError):
    """A library of an optional extra is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(library, "is not installed", hint=f"install it with: pip install 'terakoya[{extra}]'")


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint naming the closest of `words`, or nothing."""
    near = difflib.get_close_matches(word, [str(w) for w in words], 1)
    return f"did you mean {near[0]!r}?" if near else ""


def _listed(allowed: object) -> str:
    if isinstance(allowed, Sequence) and not isinstance(allowed, str):
        shown = [str(a) for a in allowed[:20]]
        return ", ".join(shown) + (f", … ({len(allowed)} in all)" if len(allowed) > 20 else "")
    return str(allowed)
