"""From logits to one id. Pure functions; the draw depends on (seed, choice, position) and on nothing beside it.

The order is: logit bias, repetition, presence and frequency, bans (min_tokens), temperature, top-k, top-p, min-p,
typical. Each truncation sees the renormalised result of those before it, as in transformers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from terakoya.errors import TerakoyaError

FIRST = 256  # candidates that are usually enough; more are ordered only where these do not reach the mass asked for
NEAR = 10.0  # e-folds below the best within which the mass asked for usually lies: fewer to order


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token, and when to stop. The defaults draw from the model's own distribution.

    `repetition` (Keskar 2019) acts on every id of prompt and answer, as in transformers: positive logits are divided
    by it, negative ones multiplied. `presence` and `frequency` act on the answer alone, as at OpenAI: subtracted once,
    and once per occurrence. Before `min_tokens` neither an end token nor a stop string ends the answer.
    """

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off; ids that tie with the last are kept
    top_p: float = 1.0  # 1: off (Holtzman 2020)
    min_p: float = 0.0  # 0: off; relative to the best (Nguyen 2024)
    typical: float = 1.0  # 1: off (Meister 2022)
    repetition: float = 1.0  # 1: off
    presence: float = 0.0
    frequency: float = 0.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int | None = None  # None: a fresh one each time
    min_tokens: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (id, what is added to its logit)

    def __post_init__(self) -> None:
        if self.temperature != 0:
            self._within("temperature", 1e-3, 100, "0 (greedy), or 0.001 to 100")
        self._within("top_k", 0, 2**63, "0 (off) or more", whole=True)
        self._within("top_p", 1e-6, 1, "above 0, up to 1 (off)")
        self._within("min_p", 0, 1, "0 (off) to 1")
        self._within("typical", 1e-6, 1, "above 0, up to 1 (off)")
        self._within("repetition", 0.01, 100, "0.01 to 100; 1 is off")
        self._within("presence", -100, 100, "-100 to 100; 0 is off")
        self._within("frequency", -100, 100, "-100 to 100; 0 is off")
        self._within("max_tokens", 1, 2**63, "1 or more", whole=True)
        self._within("min_tokens", 0, self.max_tokens, f"0 to max_tokens={self.max_tokens}", whole=True)
        if self.seed is not None:
            self._within("seed", 0, 2**64 - 1, "0 to 2**64 - 1", whole=True)
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise TerakoyaError("sampling.stop", given=self.stop, allowed="a tuple of texts that are not empty")
        for pair in self.logit_bias:
            id, bias = pair if len(pair) == 2 else (-1, 0.0)
            if not _number(id, whole=True) or id < 0 or not _number(bias) or abs(bias) > 100:
                raise TerakoyaError("sampling.logit_bias", given=pair, allowed="pairs of an id and -100 to 100")

    def _within(self, name: str, low: float, high: float, allowed: str, *, whole: bool = False) -> None:
        value = getattr(self, name)
        if not _number(value, whole=whole) or not low <= value <= high:  # NaN is never within
            raise TerakoyaError(f"sampling.{name}", given=value, allowed=allowed)


def _number(value: object, *, whole: bool = False) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)


class History:
    """Which ids have been, and how often the answer said them."""

    def __init__(self, prompt: Sequence[int] = (), answer: Sequence[int] = ()) -> None:
        self.times = dict.fromkeys(prompt, 0)
        for id in answer:
            self.add(id)

    def add(self, id: int) -> None:
        """Take one more id of the answer."""
        self.times[id] = self.times.get(id, 0) + 1


@torch.inference_mode()
def process(
    logits: Tensor, history: History | Sequence[History], sampling: Sampling, *, banned: Collection[int] = ()
) -> Tensor:
    """Give the log-probabilities to draw from: logits (V,) -> (V,), or (N, V) with N histories -> (N, V).

    What is cut off is -inf; the rest sums to one. Greedy puts all on the best id (the lowest, where several tie).
    """
    if logits.dim() == 2:
        assert not isinstance(history, History)
        return torch.stack([process(x, h, sampling, banned=banned) for x, h in zip(logits, history, strict=True)])
    assert isinstance(history, History)
    ids, x = candidates(penalise(logits, history, sampling, banned), sampling)
    if ids is None:
        return x
    return torch.full((logits.shape[-1],), -math.inf, dtype=x.dtype, device=x.device).index_copy(0, ids, x)


def candidates(x: Tensor, sampling: Sampling) -> tuple[Tensor | None, Tensor]:
    """Cut down what `penalise` gave: (V,) -> rising ids (n,), None for all, and their log-probabilities (n,)."""
    if sampling.temperature == 0:
        return x.argmax(keepdim=True), x.new_zeros(1)
    x = (x - x.max()) / sampling.temperature  # the maximum first: a tiny temperature must not overflow
    ids = None
    if 0 < sampling.top_k < len(x):
        ids = (x >= x.topk(sampling.top_k).values[-1]).nonzero()[:, 0]
        x = x[ids]
    return _narrow(ids, x.log_softmax(0), sampling)


def _narrow(ids: Tensor | None, x: Tensor, sampling: Sampling) -> tuple[Tensor | None, Tensor]:
    """Apply the truncations that look at probabilities: x (n,) normalised -> fewer ids, (m,) normalised."""
    if sampling.top_p < 1:
        ids, x = _keep(ids, x, top_p(x, sampling.top_p))
    if sampling.min_p > 0:
        ids, x = _keep(ids, x, x >= x.max() + math.log(sampling.min_p))
    if sampling.typical < 1:
        ids, x = _keep(ids, x, typical(x, sampling.typical))
    return ids, x


def penalise(logits: Tensor, history: History, sampling: Sampling, banned: Collection[int] = ()) -> Tensor:
    """Apply what changes single ids: logits (V,) -> (V,) in float32; the input stays as it is."""
    x = logits.float()
    if sampling.logit_bias:
        ids, values = zip(*sampling.logit_bias, strict=True)
        x = x.index_add(0, _ids(ids, x), torch.tensor(values, dtype=x.dtype, device=x.device))
    if sampling.repetition != 1 and history.times:
        seen = _ids(list(history.times), x)
        old = x[seen]
        x = x.index_copy(0, seen, torch.where(old < 0, old * sampling.repetition, old / sampling.repetition))
    if sampling.presence or sampling.frequency:
        said = {id: n for id, n in history.times.items() if n}
        counts = torch.tensor(list(said.values()), dtype=x.dtype, device=x.device)
        x = x.index_add(0, _ids(list(said), x), -(sampling.presence + sampling.frequency * counts))
    if banned:
        x = x.index_fill(0, _ids(list(banned), x), -math.inf)
    return x


def top_p(x: Tensor, mass: float) -> Tensor:
    """Mark the fewest ids that together reach `mass`; ties go to lower ids. x (n,) log-probabilities -> (n,) bool."""
    last, count = _reach(x, x.exp(), mass)
    keep = x > last
    keep[(x == last).nonzero()[: count - int(keep.sum()), 0]] = True
    return keep


def typical(x: Tensor, mass: float) -> Tensor:
    """Mark the ids whose surprise is nearest to the entropy until they reach `mass`; ties stay together."""
    p = x.exp()
    entropy = -(p * x).nansum()  # 0 * -inf counts as 0
    near = -(-x - entropy).abs()
    return near >= _reach(near, p, mass)[0]


def _reach(score: Tensor, p: Tensor, mass: float) -> tuple[Tensor, int]:
    """By falling score, add up `p` until `mass` is reached: the last score taken, and how many were."""
    near = (score >= score.max() - NEAR).nonzero()[:, 0]
    if len(near) < len(score) // 8:
        values, order = score[near].sort(descending=True)
        reached = p[near[order]].cumsum(0, dtype=torch.float64)
        if reached[-1] >= mass:
            count = min(int((reached < mass).sum()) + 1, len(reached))
            return values[count - 1], count
    size = FIRST
    while True:
        best = score.topk(min(size, len(score)))  # far cheaper than a sort, even of a quarter of them
        reached = p[best.indices].cumsum(0, dtype=torch.float64)
        if reached[-1] >= mass or size >= len(score):
            count = min(int((reached < mass).sum()) + 1, len(reached))
            return best.values[count - 1], count
        size *= 8


def _keep(ids: Tensor | None, x: Tensor, mark: Tensor) -> tuple[Tensor, Tensor]:
    kept = mark.nonzero()[:, 0]
    return kept if ids is None else ids[kept], x[kept].log_softmax(0)


def _ids(ids: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(ids, dtype=torch.long, device=like.device)


def uniform(seed: int, position: int, choice: int = 0) -> float:
    """Give the number in [0, 1) that belongs to a place: a hash, so no order and no neighbour matters."""
    key = b"".join(n.to_bytes(8, "little") for n in (seed, choice, position))
    return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 12) / 2**52


@contextmanager
def alone() -> Iterator[None]:
    """Keep PyTorch to this thread: its others would go on spinning where the native program wants to work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def draw(logprobs: Tensor, seed: int, position: int, choice: int = 0) -> int:
    """Draw an id by the inverse of the distribution function: logprobs (V,) -> id of positive probability."""
    reached = logprobs.exp().cumsum(0, dtype=torch.float64)
    # The first id whose sum is above the point; an id of no probability adds nothing and so is never first.
    return int(torch.searchsorted(reached, reached[-1:] * uniform(seed, position, choice), right=True))
