"""Learning from answers of one's own that can be checked: sample, check, compare within the group, learn.

What is learnt from is what was sampled: token ids and the log-probabilities of the very distribution they were drawn
from come from the engine; nothing is encoded again.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from terakoya.data.batch import Batch
from terakoya.engine.engine import Engine
from terakoya.engine.request import Request
from terakoya.engine.sampling import Sampling
from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.tokenizer import Message, Tokenizer, render
from terakoya.tokenizer.chat import conversation
from terakoya.train.objective import Outcome
from terakoya.train.step import Objective
from terakoya.tune import adapters
from terakoya.tune.branch import Branched, Group, branches
from terakoya.tune.methods import Grpo
from terakoya.tune.pack import dealt, plain
from terakoya.tune.recipe import Tune
from terakoya.tune.score import targets_of
from terakoya.tune.work import Prompt, parted, read, said
from terakoya.zoo.convert import Loaded

ADDITION = "two-digit-addition"  # a source that needs no file
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
ROOM = 2**29  # bytes for the engine's memory


@dataclass(frozen=True)
class Question:
    """A prompt and the number that answers it."""

    prompt: Prompt
    answer: str


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
            cut = {name: getattr(self, name)[mine] for name in ("goals", "old", "reference")}
            cut |= {"at": self.at[mine] - begin, "owner": self.owner[mine] - answers[first]}
            gain = self.advantages[answers[first] : answers[last]]
            share = self.total * (last - first) / rows
            out.append(Rolled(**plain(part), **cut, groups=self.groups[first:last], advantages=gain, total=share))
        return out

    def to(self, device: torch.device | str) -> Rolled:
        moved = super().to(device)
        assert isinstance(moved, Rolled)
        names = ("at", "goals", "owner", "old", "reference", "advantages")
        return replace(moved, **{n: getattr(self, n).to(device) for n in names})

    def scores(self, model: Model, temperature: float, vocab: int) -> Tensor:
        """Return log p of every token that was drawn: -> (S,)."""
        hidden = model(self.tokens, Branched(self.groups, self.tokens.device))[self.at]
        return targets_of(model.head, hidden, self.goals, temperature, vocab)


def rolled(prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Rollout]], gain: Tensor, total: float) -> Rolled:
    """Lay prompts and answers out; gain (G, N). The last id of an answer is only predicted."""
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
    return Rolled(
        tokens=torch.tensor(tokens), targets=torch.zeros(len(tokens), dtype=torch.long),
        weights=torch.zeros(len(tokens)), cu=torch.tensor(ctx.cu, dtype=torch.int32), positions=ctx.pos,
        row_ends=tuple(ends), groups=tuple(shapes), at=torch.tensor(at),
        goals=torch.tensor([i for r in every for i in r.ids]),
        owner=torch.tensor([n for n, r in enumerate(every) for _ in r.ids]),
        old=old, reference=old, advantages=gain.flatten(), total=total,
    )  # fmt: skip


def numbers(text: str) -> list[str]:
    """The numbers in a text, full-width digits too."""
    return NUMBER.findall(text.replace(",", "").translate(str.maketrans("０１２３４５６７８９", "0123456789")))


def right(text: str, answer: str) -> float:
    """1 where the last number of the text is the answer."""
    found = numbers(text)
    return float(bool(found) and math.isclose(float(found[-1]), float(answer), rel_tol=0, abs_tol=1e-9))


def near(text: str, answer: str) -> float:
    """Share of the digits that are right, counted from the last; 0 where the number is longer or shorter."""
    found = numbers(text)
    if not found or len(found[-1]) != len(answer):
        return 0.0
    return sum(a == b for a, b in zip(found[-1], answer, strict=True)) / len(answer)


def addition(count: int, seed: int) -> list[Question]:
    """Different sums of two numbers from 10 to 99, after two that are done: the form is shown, the sums are not."""
    rng = random.Random(seed)
    shown = ("12 + 25 =", "37", "41 + 19 =", "60")
    before = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(shown))
    pairs = rng.sample([(a, b) for a in range(10, 100) for b in range(10, 100)], count)
    return [Question((*before, Message("user", f"{a} + {b} =")), str(a + b)) for a, b in pairs]


def questions(recipe: Tune) -> Iterator[Question]:
    """Read questions whose rows carry an `answer`: messages or `question`, or the built-in sums."""
    if recipe.data.source == ADDITION:
        yield from addition(recipe.data.limit or 1000, recipe.seed)
        return
    for place, row in read(recipe.data):
        found = numbers(str(row.get("answer", "")))
        if not found:
            raise TerakoyaError(f"{place}: answer", "must hold a number to check against", given=row.get("answer"))
        if isinstance(row.get("question"), str):
            prompt: Prompt = (Message("user", row["question"]),)
        else:
            spoken = conversation(f"{place}: messages", row.get("messages") or row.get("prompt"))
            prompt = tuple(m for m in spoken if m.role != "assistant")
        yield Question(prompt, found[-1])


def advantages(rewards: Tensor, plan: Grpo) -> Tensor:
    """Compare answers within their groups: (G, N) -> (G, N)."""
    size = rewards.shape[1]
    mean = rewards.mean(1, keepdim=True)
    gain = rewards - mean if plan.baseline == "group" else (rewards - mean) * size / (size - 1)
    return gain / (rewards.std(1, keepdim=True) + 1e-4) if plan.scale == "group" else gain


def objective(plan: Grpo, vocab: int) -> Objective:
    """Make the clipped objective, Σ over tokens (Schulman 2017; Shao 2024), with the k3 estimate of the KL."""

    def reinforced(model: Model, batch: Batch) -> Outcome:
        assert isinstance(batch, Rolled)
        logp, owner = batch.scores(model, plan.temperature, vocab), batch.owner
        gain = batch.advantages[owner]
        ratio = torch.exp(logp - batch.old)
        held = ratio.clamp(1 - plan.clip[0], 1 + plan.clip[1])
        loss = -torch.minimum(ratio * gain, held * gain)
        away = batch.reference - logp
        kl = away.exp() - away - 1
        loss = loss + plan.beta * kl if plan.beta else loss
        if plan.norm == "answer":
            loss = loss / torch.bincount(owner, minlength=len(batch.advantages))[owner]
        seen = {"kl": kl, "mismatch": (logp - batch.old).abs(), "surprise": -logp}  # the last estimates the entropy
        return Outcome(loss.sum(), {name: value.detach().sum().item() for name, value in seen.items()})

    return reinforced


class Trials:
    """Questions, and rollouts of the model as it is at each step."""

    def __init__(self, recipe: Tune, plan: Grpo, model: Model, tokenizer: Tokenizer, device: str) -> None:
        self.recipe, self.plan, self.tokenizer, self.device = recipe, plan, tokenizer, device
        self.model = model
        if not branches(model.spec):
            raise TerakoyaError("method", "needs a model whose memory is keys and values, not a state", given="grpo")
        self.vocab = min(model.spec.vocab, tokenizer.vocab_size)
        if plan.beta and not isinstance(recipe.adapter, adapters.Added):
            raise TerakoyaError("method.beta", "needs the base under an adapter as its reference", given=plan.beta)
        self.objective: Objective = objective(plan, self.vocab)
        found = list(questions(recipe))
        self.train, self.heldout = parted(found, lambda q: said(q.prompt), recipe.data.holdout, recipe.seed)
        self.notes = [f"{len(self.train):,} questions to train on, {len(self.heldout):,} held out"]
        self.prompts = [q.prompt for q in self.heldout]
        self.stats: dict[str, float] = {}

    @property
    def fingerprint(self) -> str:
        spoken = repr([(said(q.prompt), q.answer) for q in self.train])
        made = hashlib.sha256(spoken.encode())
        made.update(repr((self.recipe.rows.count, self.recipe.seed, self.plan)).encode())
        return made.hexdigest()

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train) // self.recipe.rows.count)

    def batch(self, step: int) -> Rolled:
        """Sample a group of answers to each of the step's questions, and check them."""
        chosen = dealt(len(self.train), self.recipe.rows.count, self.recipe.seed, step)
        asked = [self.train[i] for i in chosen]
        seeds = [_seed(self.recipe.seed, step, i) for i in range(len(asked))]
        groups = self.rollouts([q.prompt for q in asked], seeds, self.plan.group, self.plan.temperature)
        solved = torch.tensor([[right(r.text, q.answer) for r in g] for q, g in zip(asked, groups, strict=True)])
        close = torch.tensor([[near(r.text, q.answer) for r in g] for q, g in zip(asked, groups, strict=True)])
        rewards = solved + self.plan.near * close
        batch = self._rolled([q.prompt for q in asked], groups, advantages(rewards, self.plan))
        lengths = [len(r.ids) for g in groups for r in g]
        self.stats = {
            "solved": solved.mean().item(),
            "reward": rewards.mean().item(),
            "flat": (rewards.std(1) == 0).float().mean().item(),  # groups that teach nothing: all right or all wrong
            "length": sum(lengths) / len(lengths),
            "unfinished": sum(not r.finished for g in groups for r in g) / len(lengths),
        }
        return batch

    def rollouts(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], n: int, temperature: float
    ) -> list[list[Rollout]]:
        """Draw n answers to each prompt, all side by side."""
        out: list[list[Rollout]] = []
        loaded = Loaded(self.model, self.tokenizer, "")
        with Engine(loaded, memory_bytes=ROOM, threaded=False, max_running=128) as engine:
            handles = []
            for prompt, seed in zip(prompts, seeds, strict=True):
                ids = tuple(self._ids(prompt))
                sampling = Sampling(temperature=temperature, max_tokens=self.plan.tokens, seed=seed)
                handles.append(engine.submit(Request(ids, sampling, n=n, logprobs=0, logprobs_of="processed")))
            for handle in handles:
                done = handle.result()
                for c in done:
                    if c.error is not None:
                        raise c.error
                out.append(
                    [
                        Rollout(tuple(c.ids), tuple(p.logprob for p in c.logprobs), c.text, c.finish == "end")
                        for c in done
                    ]
                )
        return out

    def _ids(self, prompt: Prompt) -> list[int]:
        return render(self.tokenizer, prompt, template=self.recipe.data.template, answer=True).ids

    def _rolled(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Rollout]], gain: Tensor) -> Rolled:
        """Lay the answers out; groups that teach nothing count in the total, but are not computed."""
        every = [r for g in groups for r in g]
        tokens = sum(len(r.ids) for r in every)
        total = {"answer": len(every), "tokens": tokens, "most": len(every) * self.plan.tokens}[self.plan.norm]
        if not self.plan.beta:
            live = [i for i, row in enumerate(gain) if row.any()] or [0]
            prompts, groups, gain = [prompts[i] for i in live], [groups[i] for i in live], gain[live]
        batch = rolled([self._ids(p) for p in prompts], groups, gain, float(total))
        return replace(batch, reference=self._reference(batch)) if self.plan.beta else batch

    @torch.no_grad()
    def _reference(self, batch: Rolled) -> Tensor:
        with adapters.only(self.model):
            return batch.to(self.device).scores(self.model, self.plan.temperature, self.vocab).cpu()

    def look(self, model: Model, device: str, limit: int | None) -> dict[str, float]:
        """Share of held-out questions answered rightly, greedily, with the half-width of its 95 % interval."""
        asked = self.heldout[: 50 if limit is not None else len(self.heldout)]
        groups = self.rollouts([q.prompt for q in asked], [0] * len(asked), 1, 0.0)
        solved = sum(right(g[0].text, q.answer) for g, q in zip(groups, asked, strict=True)) / len(asked)
        return {"heldout_solved": solved, "heldout_interval": 1.96 * math.sqrt(solved * (1 - solved) / len(asked))}


def _seed(seed: int, step: int, index: int) -> int:
    key = hashlib.blake2b(f"{seed}/{step}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(key, "little") >> 1
