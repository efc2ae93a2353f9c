"""Learning from a reward model: PPO with a critic, near the model it began with (Ouyang 2022, §3.5)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from terakoya.config import names
from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer, render
from terakoya.train.objective import Outcome
from terakoya.train.step import Objective
from terakoya.tune import adapters
from terakoya.tune.branch import branches
from terakoya.tune.methods import Ppo
from terakoya.tune.pack import dealt, laid
from terakoya.tune.plans import Added
from terakoya.tune.questions import prompts, roomy
from terakoya.tune.recipe import Tune
from terakoya.tune.reward import rewards
from terakoya.tune.rollout import Rolled, Rollout, drawn, rolled, seed_of
from terakoya.tune.samples import Sample
from terakoya.tune.work import Prompt, parted, said
from terakoya.zoo.convert import Loaded

POLICY, CRITIC = "default", "critic"


@dataclass(frozen=True, kw_only=True)
class Valued(Rolled):
    """Of each drawn token: `gains` (S,), its advantage; `returns` (S,), what was still to come; `values` (S,), what the
    critic thought was to come when it was drawn.
    """

    BY_TOKEN: ClassVar[tuple[str, ...]] = (*Rolled.BY_TOKEN, "gains", "returns", "values")

    gains: Tensor
    returns: Tensor
    values: Tensor


def add_critic(model: Model, plan: Added, seed: int) -> None:
    """Put a second adapter and a head (D,) -> 1, `model.value`, on an adapted model; the first stays the active one."""
    adapters.add(model, plan, CRITIC, seed=seed + 1)
    adapters.use(model, POLICY)
    for part in (*adapters.parts(model, POLICY).values(), adapters.virtual(model, POLICY)):
        if part is not None:
            part.requires_grad_(True)
    like = next(model.parameters())
    head = nn.Linear(model.spec.out_dim, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model.add_module("value", head.to(like.device))


def values(model: Model, batch: Rolled) -> Tensor:
    """Return what the critic expects from each drawn token on: -> (S,)."""
    with adapters.only(model, CRITIC):
        hidden = batch.hidden(model)
    return model.get_submodule("value")(hidden.float())[:, 0]


def gae(earned: Tensor, value: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation over one answer (Schulman 2016): earned (T,), value (T,) -> (T,).

    A_t = δ_t + γλ A_{t+1} with δ_t = r_t + γ V_{t+1} - V_t; nothing is expected after the last token.
    """
    out = torch.zeros_like(earned)
    later, ahead = 0.0, 0.0
    for t in range(len(earned) - 1, -1, -1):
        later = (earned[t] + gamma * ahead - value[t]).item() + gamma * lam * later
        out[t], ahead = later, value[t].item()
    return out


def whitened(x: Tensor) -> Tensor:
    """Shift and scale to mean 0 and variance 1."""
    return (x - x.mean()) / (x.var(unbiased=len(x) > 1) + 1e-8).sqrt()


def objective(plan: Ppo, vocab: int) -> Objective:
    """Make the clipped objective and the clipped error of the critic, Σ over tokens (Schulman 2017, eq. 9)."""

    def proximal(model: Model, batch: Batch) -> Outcome:
        assert isinstance(batch, Valued)
        logp = batch.scores(model, plan.temperature, vocab)
        ratio = torch.exp(logp - batch.old)
        held = ratio.clamp(1 - plan.clip, 1 + plan.clip)
        policy = torch.maximum(-ratio * batch.gains, -held * batch.gains)
        value = values(model, batch)
        near = batch.values + (value - batch.values).clamp(-plan.value_clip, plan.value_clip)
        error = 0.5 * torch.maximum((value - batch.returns).square(), (near - batch.returns).square())
        seen = {
            "policy_loss": policy,
            "value_loss": error,
            "clipped": (ratio != held).float(),
            "moved": batch.old - logp,  # estimates the KL to the model that drew
            "entropy": -logp,
        }
        loss = policy + plan.value_share * error
        return Outcome(loss.sum(), {name: x.detach().sum().item() for name, x in seen.items()})

    return proximal


class Judge:
    """A reward model, asked about answers as ids."""

    def __init__(self, loaded: Loaded, tokenizer: Tokenizer, device: str) -> None:
        if loaded.tokenizer is None or loaded.tokenizer.description() != tokenizer.description():
            raise TerakoyaError("method.reward", "has another vocabulary than the model")
        self.model, self.device = loaded.model.to(device).requires_grad_(False), device

    @torch.no_grad()
    def scores(self, texts: Sequence[Sequence[int]], at_once: int = 8) -> Tensor:
        """Score prompts with their answers, each a list of ids: -> (N,)."""
        most = self.model.spec.context
        out = []
        for first in range(0, len(texts), at_once):
            part = [tuple(ids) for ids in texts[first : first + at_once]]
            if any(len(ids) > most for ids in part):
                raise TerakoyaError("method.reward", f"reads {most} tokens; a prompt and its answer are longer")
            read = [Sample("", (*ids, ids[-1]), (0.0,) * (len(ids) + 1)) for ids in part]
            out.append(rewards(self.model, laid(read).to(self.device)).cpu())
        return torch.cat(out)


class Rewarded:
    """Prompts, rollouts of the model as it is at every `rounds`-th step, and what a reward model makes of them."""

    def __init__(
        self, recipe: Tune, plan: Ppo, model: Model, tokenizer: Tokenizer, judge: Loaded | None, device: str
    ) -> None:
        self.recipe, self.plan, self.model, self.tokenizer, self.device = recipe, plan, model, tokenizer, device
        if judge is None:
            raise TerakoyaError("method.reward", "must be a reward model", given=plan.reward)
        if not branches(model.spec):
            raise TerakoyaError("method", "needs a model whose memory is keys and values, not a state", given="ppo")
        if recipe.recompute:
            problem = "cannot be had with ppo: policy and critic share their blocks"
            raise TerakoyaError("recompute", problem, hint="raise rows.micro instead")
        self.judge = Judge(judge, tokenizer, device)
        self.vocab = min(model.spec.vocab, tokenizer.vocab_size)
        self.objective: Objective = objective(plan, self.vocab)
        kept, left = roomy(prompts(recipe.data), lambda p: len(self._ids(p)), recipe, plan.tokens)
        self.train, self.prompts = parted(list(dict.fromkeys(kept)), said, recipe.data.holdout, recipe.seed)
        self.notes = [f"{len(self.train):,} prompts to train on, {len(self.prompts):,} held out{left}"]
        self.stats: dict[str, float] = {}
        self._held: Valued | None = None

    @property
    def fingerprint(self) -> str:
        made = hashlib.sha256(repr([said(p) for p in self.train]).encode())
        made.update(repr((self.recipe.rows.count, self.recipe.seed, self.plan)).encode())
        return made.hexdigest()

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train) // self.recipe.rows.count) * self.plan.rounds

    def batch(self, step: int) -> Valued:
        """Draw and judge anew at every `rounds`-th step; in between, the same answers again."""
        turn, again = divmod(step, self.plan.rounds)
        if not again or self._held is None:
            chosen = dealt(len(self.train), self.recipe.rows.count, self.recipe.seed, turn)
            seeds = [seed_of(self.recipe.seed, turn, i) for i in range(len(chosen))]
            self._held, self.stats = self._judged([self.train[i] for i in chosen], seeds)
        return self._held

    @torch.no_grad()
    def _judged(self, asked: Sequence[Prompt], seeds: Sequence[int]) -> tuple[Valued, dict[str, float]]:
        plan = self.plan
        batch, groups, score = self._drawn(asked, seeds, plan.group)
        away = batch.old - batch.reference
        earned = -plan.beta * away
        every = [r for g in groups for r in g]
        ends = torch.tensor([*accumulate(len(r.ids) for r in every)]) - 1
        earned[ends] += score - plan.unfinished * torch.tensor([float(not r.finished) for r in every])
        expected = values(self.model, batch.to(self.device)).cpu()
        sizes = [len(r.ids) for r in every]
        pairs = zip(earned.split(sizes), expected.split(sizes), strict=True)
        gains = torch.cat([gae(e, v, plan.gamma, plan.lam) for e, v in pairs])
        fields = {n: getattr(batch, n) for n in names(Rolled)}
        made = Valued(**fields, gains=whitened(gains), returns=gains + expected, values=expected)
        spread = (made.returns - expected).var() / made.returns.var().clamp(min=1e-8)
        return made, self._said(batch, every, score) | {
            "reward": torch.zeros(len(every)).index_add(0, batch.owner, earned).mean().item(),
            "explained": 1 - spread.item(),  # of the returns' variance by the critic
        }

    @torch.no_grad()
    def _drawn(
        self, asked: Sequence[Prompt], seeds: Sequence[int], n: int
    ) -> tuple[Rolled, list[list[Rollout]], Tensor]:
        plan, ids = self.plan, [self._ids(p) for p in asked]
        groups = drawn(
            self.model, self.tokenizer, ids, seeds, n=n, temperature=plan.temperature, tokens=plan.tokens
        )  # fmt: skip
        total = sum(len(r.ids) for g in groups for r in g)
        batch = rolled(ids, groups, torch.zeros(len(groups), n), float(total))
        with adapters.only(self.model):
            reference = batch.to(self.device).scores(self.model, plan.temperature, self.vocab).cpu()
        score = self.judge.scores([(*p, *r.ids) for p, g in zip(ids, groups, strict=True) for r in g])
        return replace(batch, reference=reference), groups, score

    def _said(self, batch: Rolled, every: Sequence[Rollout], score: Tensor) -> dict[str, float]:
        return {
            "score": score.mean().item(),
            "kl": (batch.old - batch.reference).sum().item() / len(every),  # nats an answer, to the model it began with
            "length": len(batch.goals) / len(every),
            "unfinished": sum(not r.finished for r in every) / len(every),
        }

    def look(self, model: Model, device: str, limit: int | None) -> dict[str, float]:
        """Score of answers to held-out prompts, drawn with the same seeds every time, and how far it has gone."""
        asked = self.prompts[: 16 if limit is not None else len(self.prompts)]
        batch, groups, score = self._drawn(asked, [seed_of(self.recipe.seed, -1, i) for i in range(len(asked))], 1)
        seen = {f"heldout_{k}": v for k, v in self._said(batch, [r for g in groups for r in g], score).items()}
        if len(score) < 2:
            return seen  # one answer has no spread
        return seen | {"heldout_interval": 1.96 * score.std().item() / math.sqrt(len(score))}

    def _ids(self, prompt: Prompt) -> list[int]:
        return render(self.tokenizer, prompt, template=self.recipe.data.template, answer=True).ids

    def state(self) -> dict[str, Tensor]:
        """Return the answers that are learnt from again after this step, and what was said of them."""
        held = self._held
        if held is None:
            return {}
        tensors = {n: v for n in names(Valued) if isinstance(v := getattr(held, n), Tensor)}
        shapes = torch.tensor([(prompt, *answers) for prompt, answers in held.groups])
        told = {f"stats.{n}": torch.tensor(v, dtype=torch.float64) for n, v in self.stats.items()}
        return tensors | {"row_ends": torch.tensor(held.row_ends), "groups": shapes} | told

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        if not state:
            return
        fields: dict[str, Any] = {n: state[n].clone() for n in names(Valued) if n in state}
        fields["row_ends"] = tuple(state["row_ends"].tolist())
        fields["groups"] = tuple((g[0], tuple(g[1:])) for g in state["groups"].tolist())
        self._held = Valued(**fields, total=float(len(state["goals"])))
        self.stats = {n.removeprefix("stats."): v.item() for n, v in state.items() if n.startswith("stats.")}
