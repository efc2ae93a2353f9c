"""Answers as they were drawn, and batches of them: token ids and the log-probabilities of the very distribution they
were drawn from come from the engine; nothing is encoded again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from terakoya.data.batch import Batch
from terakoya.engine.engine import Engine
from terakoya.engine.paged import probe
from terakoya.engine.request import Request
from terakoya.engine.runner import By
from terakoya.engine.sampling import Sampling
from terakoya.engine.store import BLOCK
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.tune.adapters import lead, names
from terakoya.tune.branch import Branched, Group
from terakoya.tune.pack import plain
from terakoya.tune.score import targets_of
from terakoya.zoo.convert import Loaded

ROOM = 2**29  # bytes for the engine's memory at most
SIDE_BY_SIDE = 128  # answers drawn at once

R = TypeVar("R", bound="Rolled")


@dataclass(frozen=True)
class Rollout:
    """An answer as it was drawn: ids, and log p of each under the distribution it was drawn from."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finished: bool


@dataclass(frozen=True, kw_only=True)
class Rolled(Batch):
    """Prompts, each followed by its answers (`groups`), a row a group. Of the S tokens that were drawn: `at` (S,) is
    where each is predicted, `goals` (S,) its id, `owner` (S,) its answer, `old` (S,) log p when it was drawn,
    `reference` (S,) for the reference. `advantages` (N,) are by answer. `total` is what the whole sum is divided by.
    """

    BY_TOKEN: ClassVar[tuple[str, ...]] = ("goals", "old", "reference")  # what is cut as `at` is

    groups: tuple[Group, ...]
    at: Tensor
    goals: Tensor
    owner: Tensor
    old: Tensor
    reference: Tensor
    advantages: Tensor
    total: float

    @property
    def weight(self) -> float:
        return self.total

    def split(self, n: int) -> list[Batch]:
        """Cut into n micro-batches along groups; their totals add up to this one's."""
        rows = len(self.groups)
        answers = [0, *accumulate(len(g[1]) for g in self.groups)]
        out: list[Batch] = []
        for part, (first, last) in zip(super().split(n), pairwise(rows * i // n for i in range(n + 1)), strict=True):
            mine = (self.owner >= answers[first]) & (self.owner < answers[last])
            begin = self.row_ends[first - 1] if first else 0
            cut = {name: getattr(self, name)[mine] for name in self.BY_TOKEN}
            cut |= {"at": self.at[mine] - begin, "owner": self.owner[mine] - answers[first]}
            gain = self.advantages[answers[first] : answers[last]]
            share = self.total * (last - first) / rows
            out.append(type(self)(**plain(part), **cut, groups=self.groups[first:last], advantages=gain, total=share))
        return out

    def to(self: R, device: torch.device | str) -> R:
        moved = super().to(device)
        assert isinstance(moved, type(self))
        names = ("at", "owner", "advantages", *self.BY_TOKEN)
        return replace(moved, **{n: getattr(self, n).to(device) for n in names})

    def hidden(self, model: Model) -> Tensor:
        """Return what the model holds where each drawn token is predicted: -> (S, D)."""
        return model(self.tokens, Branched(self.groups, self.tokens.device))[self.at]

    def scores(self, model: Model, temperature: float, vocab: int) -> Tensor:
        """Return log p of every token that was drawn: -> (S,)."""
        return targets_of(model.head, self.hidden(model), self.goals, temperature, vocab)


def rolled(prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Rollout]], gain: Tensor, total: float) -> Rolled:
    """Lay prompts and answers out; gain (G, N), or (answers,). The last id of an answer is only predicted."""
    tokens: list[int] = []
    at: list[int] = []
    ends, shapes = [], []
    for prompt, group in zip(prompts, groups, strict=True):
        tokens += prompt
        last = len(tokens) - 1
        for r in group:
            at += [last, *range(len(tokens), len(tokens) + len(r.ids) - 1)]
            tokens += r.ids[:-1]
        shapes.append((len(prompt), tuple(len(r.ids) - 1 for r in group)))
        ends.append(len(tokens))
    every = [r for g in groups for r in g]
    ctx = Branched(shapes)
    old = torch.tensor([p for r in every for p in r.logprobs])
    counts = torch.zeros(len(tokens))
    counts[at] = 1.0
    return Rolled(
        tokens=torch.tensor(tokens), targets=torch.zeros(len(tokens), dtype=torch.long),
        weights=counts, cu=torch.tensor(ctx.cu, dtype=torch.int32), positions=ctx.pos,
        row_ends=tuple(ends), groups=tuple(shapes), at=torch.tensor(at),
        goals=torch.tensor([i for r in every for i in r.ids]),
        owner=torch.tensor([n for n, r in enumerate(every) for _ in r.ids]),
        old=old, reference=old, advantages=gain.flatten(), total=total,
    )  # fmt: skip


def drawn(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    n: int,
    temperature: float,
    tokens: int,
) -> list[list[Rollout]]:
    """Draw n answers of at most `tokens` tokens to each prompt (ids), all side by side."""
    out: list[list[Rollout]] = []
    loaded = Loaded(model, tokenizer, "")
    prompts = [(*(0,) * lead(model), *ids) for ids in prompts]  # places for what the adapter puts before a text
    room = _room(model, prompts, n, tokens)
    by: By = "torch" if names(model) else "auto"  # adapters are PyTorch's
    with Engine(loaded, by=by, memory_bytes=room, threaded=False, max_running=SIDE_BY_SIDE) as engine:
        sampling = [Sampling(temperature=temperature, max_tokens=tokens, seed=seed) for seed in seeds]
        asked = (
            Request(tuple(ids), s, n=n, logprobs=0, logprobs_of="processed")
            for ids, s in zip(prompts, sampling, strict=True)
        )
        for done in engine.generate(asked):
            for c in done:
                if c.error is not None:
                    raise c.error
            out.append(
                [Rollout(tuple(c.ids), tuple(p.logprob for p in c.logprobs), c.text, c.finish == "end") for c in done]
            )
    return out


def _room(model: Model, prompts: Sequence[Sequence[int]], n: int, tokens: int) -> int:
    """Bytes in which all that runs at once has room, and no more: the engine looks after every block it has."""
    each = max(map(len, prompts), default=1) + tokens + 2 * BLOCK
    running = min(SIDE_BY_SIDE, n * len(prompts)) + 1
    shapes = probe(model, next(model.parameters()).device).values()
    return min(ROOM, sum(s.bytes for s in shapes) * each * running)


def seed_of(seed: int, step: int, index: int) -> int:
    """Return the seed of one prompt's answers: a function of the run's seed, the step and the place in it."""
    key = hashlib.blake2b(f"{seed}/{step}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(key, "little") >> 1
