"""Rows to examples, by the fields that JGLUE, SQuAD, sentence-transformers and this project's own data use."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from terakoya.errors import TerakoyaError
from terakoya.tune.heads.kinds import Choose, Classify, Embed, Extract, Kind, Regress, Tag, Translate
from terakoya.tune.rows import Row

PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("text1", "text2"), ("anchor", "positive"))
ALONE = ("text", "sentence")
NUMBERED = re.compile(r"^\d+[.．] ?(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Stretch:
    """Characters start to end (excluded) of the text, and what they are."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Example:
    """What is read, and what is to be said of it.

    `texts` are one or two texts, or a question and its candidates for Choose. `answer` is a label, the index of the
    right candidate, a number, or the stretches; None where nobody has said it yet. `answers` are all right wordings.
    """

    place: str
    texts: tuple[str, ...]
    answer: str | int | float | tuple[Stretch, ...] | None = None
    answers: tuple[str, ...] = ()

    pair: bool = False  # both texts are of one kind, and may come again on either side

    @property
    def shared(self) -> tuple[str, ...]:
        """What decides the side of a split: examples that share one of these texts stay together."""
        return self.texts if self.pair else self.texts[:1]


def examples(found: Iterable[tuple[str, Row]], kind: Kind) -> Iterator[Example]:
    """Read rows as the kind wants them; every error names the row."""
    make = {Classify: _classify, Choose: _choose, Regress: _regress, Tag: _tag, Extract: _extract, Embed: _embed}
    for place, row in found:
        if isinstance(kind, Translate):
            target = _text(place, row, kind.target)
            yield Example(place, (_text(place, row, kind.source),), target, (target,))
        else:
            yield make[type(kind)](place, row)


def texts_of(place: str, row: Row) -> tuple[str, ...]:
    """Return the one or two texts of a row."""
    for pair in PAIRS:
        if all(name in row for name in pair):
            return tuple(_text(place, row, name) for name in pair)
    for name in ALONE:
        if name in row:
            return (_text(place, row, name),)
    allowed = [" and ".join(pair) for pair in PAIRS] + list(ALONE)
    raise TerakoyaError(place, "has no text", given=", ".join(row), allowed=allowed)


def _text(place: str, row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _wrong(place, name, value, "a text that is not blank")
    return value


def _wrong(place: str, name: str, value: object, allowed: str) -> TerakoyaError:
    """Say that a field is missing, or that what stands there will not do."""
    problem = "is missing" if value is None else ""
    return TerakoyaError(f"{place}: {name}", problem, given=value, allowed=allowed)


def _classify(place: str, row: Row) -> Example:
    label = row.get("label")
    if "choices" in row:
        label = _candidates(place, row)[_index(place, row)]
    if not isinstance(label, str | int) or isinstance(label, bool):
        raise _wrong(place, "label", label, "a text or a number, or choices and answer")
    return Example(place, texts_of(place, row), str(label), pair=True)


def _choose(place: str, row: Row) -> Example:
    if "messages" in row:
        return _numbered(place, row)
    question = _text(place, row, "question")
    if isinstance(row.get("context"), str):
        question = f"{row['context']}\n{question}"
    return Example(place, (question, *_candidates(place, row)), _index(place, row))


def _numbered(place: str, row: Row) -> Example:
    """Read a question put to a chat model: the candidates are numbered lines, `answer` is one of them."""
    first = next(iter(row["messages"]), None) if isinstance(row["messages"], Sequence) else None
    asked = first.get("content") if isinstance(first, dict) else None
    if not isinstance(asked, str):
        raise TerakoyaError(f"{place}: messages", "do not begin with a question", allowed="a list of role and content")
    found = [c.strip() for c in NUMBERED.findall(asked)]
    answer = row.get("answer")
    if len(found) < 2 or answer not in found:
        raise TerakoyaError(place, "has no numbered candidates with the answer among them", given=answer)
    return Example(place, (asked[: NUMBERED.search(asked).start()].strip(), *found), found.index(answer))  # type: ignore[union-attr]


def _candidates(place: str, row: Row) -> list[str]:
    given = row.get("choices")
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) < 2:
        raise _wrong(place, "choices", given, "a list of two or more texts")
    if blank := [c for c in given if not isinstance(c, str | int | float) or not str(c).strip()]:
        raise TerakoyaError(f"{place}: choices", given=blank[0] or str(blank[0]), allowed="texts that are not blank")
    return [str(c) for c in given]


def _index(place: str, row: Row) -> int:
    value, count = row.get("answer"), len(_candidates(place, row))
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise _wrong(place, "answer", value, f"0 to {count - 1}, the index of a choice")
    return value


def _regress(place: str, row: Row) -> Example:
    value = row.get("score", row.get("label"))
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise _wrong(place, "score", value, "a number")
    return Example(place, texts_of(place, row), float(value), pair=True)


def _embed(place: str, row: Row) -> Example:
    if "positive" in row:
        more = (_text(place, row, "negative"),) if "negative" in row else ()
        return Example(place, (*texts_of(place, row), *more), pair=True)
    return _regress(place, row)


def _tag(place: str, row: Row) -> Example:
    text = _text(place, row, "text")
    given = row.get("spans")
    if given is None and isinstance(row.get("readings"), Sequence):  # where the author gave a reading: furigana
        given = [item | {"label": "ruby"} if isinstance(item, dict) else item for item in row["readings"]]
    if not isinstance(given, Sequence):
        raise _wrong(place, "spans", given, "a list of tables with start, end and label")
    found = sorted((_stretch(place, text, item) for item in given), key=lambda s: s.start)
    for one, other in pairwise(found):
        if other.start < one.end:  # a token has one label
            raise TerakoyaError(f"{place}: spans", "overlap", given=f"{one.start}–{one.end}, {other.start}–{other.end}")
    return Example(place, (text,), tuple(found))


def _stretch(place: str, text: str, item: Any) -> Stretch:
    start, end, label = (item.get(k) for k in ("start", "end", "label")) if isinstance(item, dict) else (None,) * 3
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end <= len(text):
        raise TerakoyaError(f"{place}: spans", given=item, allowed=f"0 <= start < end <= {len(text)}, in characters")
    if not isinstance(label, str) or not label:
        raise TerakoyaError(f"{place}: spans", given=item, allowed="a label that is a text")
    return Stretch(start, end, label)


def _extract(place: str, row: Row) -> Example:
    text, question, given = _text(place, row, "context"), _text(place, row, "question"), row.get("answers")
    starts: Any = ()
    if isinstance(given, dict):  # SQuAD
        starts, given = given.get("answer_start", ()), given.get("text")
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise _wrong(place, "answers", given, "a list of texts that stand in the context")
    for answer in given:
        _text(place, {"answers": answer}, "answers")
    if not isinstance(starts, Sequence) or (starts and (not isinstance(starts[0], int) or isinstance(starts[0], bool))):
        raise TerakoyaError(f"{place}: answer_start", given=starts, allowed="a list of places in the context, from 0")
    start = starts[0] if starts else text.find(given[0])
    if start < 0 or text[start : start + len(given[0])] != given[0]:
        raise TerakoyaError(f"{place}: answers", "does not stand in the context", given=given[0])
    stretch = Stretch(start, start + len(given[0]), "answer")
    return Example(place, (text, question), (stretch,), tuple(map(str, given)))
