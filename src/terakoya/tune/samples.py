"""Examples to token ids and weights, through the one renderer; and what to do with those that are too long."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Message, Template, Tokenizer, render
from terakoya.tune.formats import Completion, Example, Talk

Overlong = Literal["split", "drop", "truncate", "error"]


@dataclass(frozen=True)
class Sample:
    """One training sequence; `weights[i]` is what learning to say `ids[i]` counts."""

    place: str
    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def length(self) -> int:
        """Positions it takes: every id but the last is read, every id but the first is predicted."""
        return len(self.ids) - 1


@dataclass
class Counts:
    """What became of the examples; shown before the first step."""

    examples: int = 0
    split: int = 0  # examples cut into several samples
    pieces: int = 0  # samples made by cutting
    silent: int = 0  # such samples without anything to learn, left out
    truncated: int = 0
    dropped: int = 0
    places: list[str] = field(default_factory=list)  # of those dropped or truncated

    def said(self) -> str:
        """One line."""
        parts = [f"{self.examples:,} examples"]
        if self.split:
            parts.append(f"{self.split:,} overlong split into {self.pieces:,} ({self.silent:,} of them without answer)")
        for name in ("truncated", "dropped"):
            if count := getattr(self, name):
                shown = ", ".join(self.places[:3]) + (", …" if count > 3 else "")
                parts.append(f"{count:,} overlong {name} ({shown})")
        return "; ".join(parts)


def encode(tokenizer: Tokenizer, example: Example, template: str | Template | None = None) -> Sample:
    """Render an example; one that has nothing to learn is an error that names it."""
    try:
        match example:
            case Talk(place, messages, first, silent):
                made = render(tokenizer, messages, template=template)
                ids, weights = made.ids, list(made.weights)
                for begin, end in ((0, first), *((i, i + 1) for i in silent)):
                    a, b = (
                        len(render(tokenizer, messages[:n], template=template).ids) if n else 0 for n in (begin, end)
                    )
                    weights[a:b] = [0.0] * (b - a)
            case Completion(place, prompt, completion):
                ids, weights = _plain(tokenizer, prompt, completion)
    except TerakoyaError as error:
        raise TerakoyaError(example.place, str(error)) from None
    return _checked(Sample(place, tuple(ids), tuple(weights)))


def answer(tokenizer: Tokenizer, place: str, prompt: Iterable[Message], said: str, template: str | None) -> Sample:
    """Render a prompt and one answer to it; only the answer counts."""
    messages = tuple(prompt)
    return encode(tokenizer, Talk(place, (*messages, Message("assistant", said)), first=len(messages)), template)


def _plain(tokenizer: Tokenizer, prompt: str, completion: str) -> tuple[list[int], list[float]]:
    before, after = tokenizer.wrap()
    end = after or before  # where one sign separates documents, it also ends them
    ids = [*before, *tokenizer.encode_parts([(prompt, False)])] if prompt else list(before)
    learnt = tokenizer.encode_parts([(completion, False)], after=ids[-1] if prompt else None)
    return [*ids, *learnt, *end], [*[0.0] * len(ids), *[1.0] * len(learnt), *[1.0] * len(end)]


def _checked(sample: Sample) -> Sample:
    """Cut off what follows the last id that counts; refuse a sample in which none does."""
    last = max((i for i, w in enumerate(sample.weights) if w and i), default=0)
    if not last:
        raise TerakoyaError(sample.place, "can never teach anything: it has no answer of an assistant")
    return Sample(sample.place, sample.ids[: last + 1], sample.weights[: last + 1])


def fitted(samples: Iterable[Sample], context: int, overlong: Overlong, counts: Counts) -> list[Sample]:
    """Make every sample fit `context` positions, as `overlong` says."""
    kept: list[Sample] = []
    for sample in samples:
        counts.examples += 1
        kept += [sample] if sample.length <= context else _shortened(sample, context, overlong, counts)
    if not kept:
        raise TerakoyaError("data", f"no example is left to learn from ({counts.said()})")
    return kept


def _shortened(sample: Sample, context: int, overlong: Overlong, counts: Counts) -> list[Sample]:
    match overlong:
        case "error":
            raise TerakoyaError(
                sample.place, f"has {sample.length} tokens, more than rows.context = {context}",
                hint="raise rows.context, or choose data.overlong: split, drop or truncate",
            )  # fmt: skip
        case "drop":
            counts.dropped += 1
            counts.places.append(sample.place)
            return []
        case "truncate":
            counts.truncated += 1
            counts.places.append(sample.place)
            ids, weights = sample.ids[: context + 1], sample.weights[: context + 1]
            if not any(weights[1:]):
                raise TerakoyaError(
                    sample.place, f"can never teach anything: its answer begins after rows.context = {context} tokens",
                    hint="raise rows.context, or choose data.overlong: split or drop",
                )  # fmt: skip
            return [_checked(Sample(sample.place, ids, weights))]
        case "split":
            cut = [
                Sample(sample.place, sample.ids[a : a + context + 1], sample.weights[a : a + context + 1])
                for a in range(0, sample.length, context)
            ]
            loud = [_checked(part) for part in cut if any(part.weights[1:])]
            counts.split += 1
            counts.pieces += len(cut)
            counts.silent += len(cut) - len(loud)
            return loud
