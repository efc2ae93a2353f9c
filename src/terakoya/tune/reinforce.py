"""Learning from answers of one's own that can be checked: sample, check, compare within the group, learn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer, render
from terakoya.train.objective import Outcome
from terakoya.train.step import Objective
from terakoya.tune import adapters
from terakoya.tune.branch import branches
from terakoya.tune.checks import Answer, reward
from terakoya.tune.heads.scores import wilson
from terakoya.tune.methods import Grpo
from terakoya.tune.pack import dealt
from terakoya.tune.plans import Added
from terakoya.tune.questions import Question, questions, roomy
from terakoya.tune.recipe import Tune
from terakoya.tune.rollout import Rolled, Rollout, drawn, rolled, seed_of
from terakoya.tune.work import Prompt, parted, said


def advantages(rewards: Tensor, plan: Grpo) -> Tensor:
    """Compare answers within their groups: (G, N) -> (G, N). Without a baseline they are what they are worth."""
    if plan.baseline == "none":
        return rewards
    size = rewards.shape[1]
    mean = rewards.mean(1, keepdim=True)
    gain = rewards - mean if plan.baseline == "group" else (rewards - mean) * size / (size - 1)
    gain = gain / (rewards.std(1, keepdim=True) + 1e-4) if plan.scale == "group" else gain
    return gain.masked_fill(flat(rewards)[:, None], 0.0)


def flat(rewards: Tensor) -> Tensor:
    """Say which groups teach nothing, all answers worth the same: (G, N) -> (G,). Means of 0.2 are not quite 0.2."""
    return rewards.amax(1) == rewards.amin(1)


@dataclass(frozen=True)
class Trial:
    """A question, the answers that were drawn, and for each what it is worth and whether it is right."""

    question: Question
    answers: list[Rollout]
    judged: list[tuple[float, bool]]

    @property
    def rewards(self) -> list[float]:
        return [worth for worth, _ in self.judged]

    @property
    def flat(self) -> bool:
        """Whether all answers are worth the same."""
        return max(self.rewards) == min(self.rewards)


def k3(reference: Tensor, logp: Tensor) -> Tensor:
    """Estimate the KL to the reference from log p of what was drawn: never below zero, and right on average."""
    away = reference - logp
    return away.exp() - away - 1


def objective(plan: Grpo, vocab: int) -> Objective:
    """Make the clipped objective, Σ over tokens (Schulman 2017; Shao 2024), with the k3 estimate of the KL."""

    def reinforced(model: Model, batch: Batch) -> Outcome:
        assert isinstance(batch, Rolled)
        logp, owner = batch.scores(model, plan.temperature, vocab), batch.owner
        gain = batch.advantages[owner]
        ratio = torch.exp(logp - batch.old)
        held = ratio.clamp(1 - plan.clip[0], 1 + plan.clip[1])
        loss = -torch.minimum(ratio * gain, held * gain)
        loss = loss + plan.beta * k3(batch.reference, logp) if plan.beta else loss
        if plan.norm == "answer":
            loss = loss / torch.bincount(owner, minlength=len(batch.advantages))[owner]
        seen = {"mismatch": (logp - batch.old).abs(), "entropy": -logp}  # the last is an estimate
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
        self.refers = isinstance(recipe.adapter, Added)  # to the base under it
        if plan.beta and not self.refers:
            raise TerakoyaError("method.beta", "needs the base under an adapter as its reference", given=plan.beta)
        self.objective: Objective = objective(plan, self.vocab)
        asked = ((q.place, q) for q in questions(recipe.data, plan.checks, recipe.seed))
        found, left = roomy(asked, lambda q: len(self._ids(q.prompt)), recipe, plan.tokens)
        self.train, self.heldout = parted(found, lambda q: said(q.prompt), recipe.data.holdout, recipe.seed)
        self.notes = [f"{len(self.train):,} questions to train on, {len(self.heldout):,} held out{left}"]
        self.prompts = [q.prompt for q in self.heldout]
        self.stats: dict[str, float] = {}

    @property
    def fingerprint(self) -> str:
        spoken = repr([(said(q.prompt), q.answer, q.tests) for q in self.train])
        made = hashlib.sha256(spoken.encode())
        made.update(repr((self.recipe.rows.count, self.recipe.seed, self.plan)).encode())
        return made.hexdigest()

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train) // self.recipe.rows.count)

    def batch(self, step: int) -> Rolled:
        """Sample a group of answers to each of the step's questions, and check them."""
        tried: list[Trial] = []
        for again in range(1 + self.plan.resample):
            tried += self._tried(step, again)
            if sum(not t.flat for t in tried) >= self.recipe.rows.count:
                break
        chosen = sorted(tried, key=lambda t: t.flat)[: self.recipe.rows.count]  # those that teach come first
        groups = [t.answers for t in chosen]
        worth = torch.tensor([t.rewards for t in chosen])
        batch = self._rolled([t.question.prompt for t in chosen], groups, advantages(worth, self.plan))
        every = [r for t in tried for r in t.answers]
        self.stats = {
            "solved": sum(right for t in tried for _, right in t.judged) / len(every),
            "reward": sum(sum(t.rewards) for t in tried) / len(every),
            "flat": sum(t.flat for t in tried) / len(tried),
            "length": sum(len(r.ids) for r in every) / len(every),
            "unfinished": sum(not r.finished for r in every) / len(every),
        } | ({"tried": float(len(tried))} if self.plan.resample else {})
        if self.refers and batch.advantages.any():  # of the groups that teach; the others are not computed
            self.stats["kl"] = k3(batch.reference, batch.old).mean().item()
        return batch

    def _tried(self, step: int, again: int) -> list[Trial]:
        count = self.recipe.rows.count
        turn = step * (1 + self.plan.resample) + again
        asked = [self.train[i] for i in dealt(len(self.train), count, self.recipe.seed, turn)]
        seeds = [seed_of(self.recipe.seed, step, again * count + i) for i in range(count)]
        groups = self.rollouts([q.prompt for q in asked], seeds, self.plan.group, self.plan.temperature)
        return [Trial(q, g, [self.judged(r, q) for r in g]) for q, g in zip(asked, groups, strict=True)]

    def judged(self, rollout: Rollout, question: Question) -> tuple[float, bool]:
        """Return what an answer is worth, and whether it is right."""
        if not rollout.finished and self.plan.unfinished != "check":
            return 0.0, False
        answer = Answer(rollout.text, len(rollout.ids), self.plan.tokens)
        return reward(self.plan.checks, answer, question.answer, question.tests)

    def rollouts(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], n: int, temperature: float
    ) -> list[list[Rollout]]:
        """Draw n answers to each prompt, all side by side."""
        ids = [self._ids(p) for p in prompts]
        return drawn(self.model, self.tokenizer, ids, seeds, n=n, temperature=temperature, tokens=self.plan.tokens)

    def _ids(self, prompt: Prompt) -> list[int]:
        return render(self.tokenizer, prompt, template=self.recipe.data.template, answer=True).ids

    def _rolled(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Rollout]], gain: Tensor) -> Rolled:
        """Lay the answers out; what teaches nothing counts in the total, but is not computed."""
        every = [r for g in groups for r in g]
        tokens = sum(len(r.ids) for r in every)
        total = {"answer": len(every), "tokens": tokens, "most": len(every) * self.plan.tokens}[self.plan.norm]
        weighed = [list(zip(g, row, strict=True)) for g, row in zip(groups, gain.tolist(), strict=True)]
        if self.plan.unfinished == "leave":
            weighed = [[(r, a) for r, a in some if r.finished] for some in weighed]
        taught = [i for i, some in enumerate(weighed) if some and (self.plan.beta or any(a for _, a in some))]
        live = [(prompts[i], weighed[i]) for i in taught] or [(prompts[0], [(groups[0][0], 0.0)])]
        answers = [[r for r, _ in some] for _, some in live]
        worth = torch.tensor([a for _, some in live for _, a in some])
        batch = rolled([self._ids(p) for p, _ in live], answers, worth, float(total))
        return replace(batch, reference=self._reference(batch)) if self.refers and taught else batch

    @torch.no_grad()
    def _reference(self, batch: Rolled) -> Tensor:
        with adapters.only(self.model):
            return batch.to(self.device).scores(self.model, self.plan.temperature, self.vocab).cpu()

    def look(self, model: Model, device: str, limit: int | None) -> dict[str, float]:
        """Share of held-out questions answered rightly, greedily, with the half-width of its 95 % interval."""
        asked = self.heldout[: 50 if limit is not None else len(self.heldout)]
        groups = self.rollouts([q.prompt for q in asked], [0] * len(asked), 1, 0.0)
        solved = sum(self.judged(g[0], q)[1] for g, q in zip(groups, asked, strict=True))
        low, high = wilson(solved, len(asked))
        return {"heldout_solved": solved / len(asked), "heldout_interval": (high - low) / 2}
