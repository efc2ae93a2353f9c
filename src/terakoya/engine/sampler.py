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

from terakoya.engine.request import EngineError, Logprob, Request
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
    """What one row came to."""

    id: int
    logprob: Logprob | None = None


Peak = tuple[float, int]


@torch.inference_mode()
def sample(logits: Tensor, rows: Sequence[Row]) -> list[Drawn]:
    """Draw one id per row: logits (N, V) -> N. Raises EngineError for the first row that cannot be drawn from."""
    return [draw(x, peak, row) for x, peak, row in zip(logits, peaks(logits), rows, strict=True)]


def peaks(logits: Tensor) -> list[Peak]:
    """Find the highest logit of each row and its id, for all rows at once: (N, V) -> N."""
    if not len(logits):
        return []
    if logits.device.type == "cpu" and logits.dtype == torch.float32:  # without waking PyTorch's threads
        rows = logits.numpy()
        return [(float(row[at]), at) for row in rows for at in (int(row.argmax()),)]
    best = logits.max(-1)
    return list(zip(best.values.tolist(), best.indices.tolist(), strict=True))


@torch.inference_mode()
def draw(logits: Tensor, peak: Peak, row: Row) -> Drawn:
    """Draw the id of one row: logits (V,), and their highest.

    Raises EngineError ("numbers") where the logits are none, ("grammar") where nothing that is allowed has a chance.
    """
    request, how = row.request, row.request.sampling
    if not math.isfinite(peak[0]):  # a NaN is the highest of all
        raise EngineError("numbers", "model", "gives logits that are no numbers")
    banned = {*row.banned, *unlucky(request.bad_words, row.tail)}
    if how.temperature == 0 and not banned and row.allowed is None and not touched(how):
        return Drawn(peak[1], _told(logits, None, None, peak[1], request))
    x = penalise(logits, row.history, how, banned)
    if row.allowed is not None:
        x = x.masked_fill(~row.allowed.to(x.device), -math.inf)
    if (row.allowed is not None or banned) and not math.isfinite(float(x.max())):
        raise EngineError("grammar", "request", "forbids every token at this place")
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
