"""From the logits of a step to one id per row, each row by its own rules.

The numbers are those of `sampling.process` and `sampling.draw` row by row: a row's result depends on nothing beside
it. Greedy rows without penalties go together; the others one after another, each over the few ids that its rules
leave, because on a CPU the cost is that of touching V numbers, not of the calls.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from terakoya.engine.request import Logprob, Request
from terakoya.engine.sampling import History, Sampling, candidates, penalise, uniform


@dataclass
class Row:
    """Whose turn it is: everything that one draw depends on beside the logits."""

    request: Request
    history: History
    seed: int
    choice: int
    position: int  # tokens of the answer so far
    banned: Collection[int] = ()
    allowed: Tensor | None = None  # (V,) bool, from a grammar
    tail: Sequence[int] = field(default_factory=list)  # the ids so far, for bad words


@dataclass(frozen=True)
class Drawn:
    """What one row came to; `id` is None where the logits are no numbers, or nothing is allowed."""

    id: int | None
    logprob: Logprob | None = None


@torch.inference_mode()
def sample(logits: Tensor, rows: Sequence[Row]) -> list[Drawn]:
    """Draw one id per row: logits (N, V) -> N."""
    best = logits.max(-1)
    tops, firsts = best.values.tolist(), best.indices.tolist()
    return [
        Drawn(None) if not math.isfinite(top) else _one(x, row, first)
        for x, row, top, first in zip(logits, rows, tops, firsts, strict=True)
    ]


def _one(logits: Tensor, row: Row, first: int) -> Drawn:
    request, how = row.request, row.request.sampling
    banned = {*row.banned, *unlucky(request.bad_words, row.tail)}
    if how.temperature == 0 and not banned and row.allowed is None and not touched(how):
        return Drawn(first, _told(logits, None, None, first, request))
    x = penalise(logits, row.history, how, banned)
    if row.allowed is not None:
        x = x.masked_fill(~row.allowed, -math.inf)
        if not math.isfinite(float(x.max())):
            return Drawn(None)
    ids, chances = candidates(x, how)
    at = 0 if how.temperature == 0 else _place(chances, uniform(row.seed, row.position, row.choice))
    id = at if ids is None else int(ids[at])
    return Drawn(id, _told(logits, ids, chances, id, request))


def touched(how: Sampling) -> bool:
    """Whether single logits change before the draw."""
    return bool(how.logit_bias or how.repetition != 1 or how.presence or how.frequency)


def _place(chances: Tensor, u: float) -> int:
    """Invert the distribution function, as `sampling.draw`."""
    reached = chances.exp().cumsum(0, dtype=torch.float64)
    return int(torch.searchsorted(reached, reached[-1:] * u, right=True))


def _told(logits: Tensor, ids: Tensor | None, chances: Tensor | None, id: int, request: Request) -> Logprob | None:
    if request.logprobs is None:
        return None
    if request.logprobs_of == "processed":
        x = torch.full_like(logits, -math.inf)
        if chances is None:
            x[id] = 0.0
        else:
            x = chances if ids is None else x.index_copy(0, ids, chances)
    else:
        x = logits.log_softmax(0)
    best = x.topk(min(request.logprobs, len(x)))
    top = [(i, v) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True) if v > -math.inf]
    return Logprob(id, float(x[id]), tuple(top))


def unlucky(words: Sequence[tuple[int, ...]], tail: Sequence[int]) -> list[int]:
    """Return the ids that would complete one of `words` after `tail`."""
    found = []
    for *start, last in words:
        n = len(start)
        if n == 0 or list(tail[-n:]) == start:
            found.append(last)
    return found
