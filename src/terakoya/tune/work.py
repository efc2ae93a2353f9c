"""What a method does in a run: which batch at which step, and how the model does on what it has not seen."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.tokenizer import Message
from terakoya.train.step import Objective
from terakoya.tune.recipe import Data
from terakoya.tune.rows import Row, located, rows

T = TypeVar("T")
Prompt = tuple[Message, ...]


class Work(Protocol):
    """One method with its examples."""

    notes: list[str]  # what became of the examples, to be shown before the first step
    prompts: list[Prompt]  # held-out ones, to answer before and after
    stats: dict[str, float]  # what is worth a line in the log about the last batch

    @property
    def objective(self) -> Objective: ...

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides what comes at which step."""
        ...

    @property
    def steps_per_epoch(self) -> int: ...

    def batch(self, step: int) -> Batch:
        """Return the batch of `step` (from 0), a pure function of it (and, where it samples, of the model)."""
        ...

    def look(self, model: Model, device: str, limit: int | None) -> dict[str, float]:
        """Measure on held-out examples, about `limit` bytes of them at most; the first number is the one to show."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """A method whose batches are no function of the step alone: what it keeps goes into every checkpoint."""

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: Mapping[str, Tensor]) -> None: ...


def read(data: Data) -> Iterable[tuple[str, Row]]:
    """Yield the rows a recipe asks for."""
    found = rows(located(data.source))
    return found if data.limit is None else islice(found, data.limit)


def parted(items: Sequence[T], key: Callable[[T], str], share: float, seed: int) -> tuple[list[T], list[T]]:
    """Hold out about `share` of the distinct keys; items with one key stay on one side, so no prompt is in both."""
    marks = [hashlib.blake2b(f"{seed}/{key(item)}".encode(), digest_size=16).digest() for item in items]
    distinct = sorted(set(marks))
    if len(distinct) < 2:
        raise TerakoyaError("data", f"holds {len(distinct)} different prompts; at least 2 are needed, one to hold out")
    kept = set(distinct[: max(1, round(share * len(distinct)))])
    return [x for x, m in zip(items, marks) if m not in kept], [x for x, m in zip(items, marks) if m in kept]


def said(messages: Sequence[Message]) -> str:
    """A key for a prompt: who said what."""
    return "\x1f".join(f"{m.role}\x1e{m.content}" for m in messages)
