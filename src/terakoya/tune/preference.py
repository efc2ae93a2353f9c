"""Learning from which answer is better: DPO and its kin, one line each over one log-probability pass."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.objective import Outcome
from terakoya.train.step import Objective
from terakoya.tune import adapters
from terakoya.tune.formats import choices, verdicts
from terakoya.tune.methods import Cpo, Dpo, Ipo, Kto, Orpo, Preference, Reward, Simpo
from terakoya.tune.pack import dealt, laid, plain
from terakoya.tune.plans import ADDED, Added
from terakoya.tune.recipe import Tune
from terakoya.tune.reward import read_to_the_end, rewards
from terakoya.tune.samples import Counts, Sample, answer, fitted
from terakoya.tune.score import sums, token_scores
from terakoya.tune.work import Prompt, parted, read, said


@dataclass(frozen=True, kw_only=True)
class Judged(Batch):
    """Every piece is an answer. `liked` (N,) is 1 or 0; `reference` (N,) is log p of the answer for the reference.

    In pairs the liked answer stands before the other. Each row counts one: `weight` is the number of rows.
    `drift` is the mean log-ratio that KTO measures against.
    """

    liked: Tensor
    reference: Tensor
    drift: float = 0.0

    @property
    def weight(self) -> float:
        return float(len(self.row_ends))

    def split(self, n: int) -> list[Batch]:
        """Cut into n micro-batches along rows."""
        rows = len(self.row_ends)
        out: list[Batch] = []
        starts = self.cu.tolist()
        for part, (first, last) in zip(super().split(n), pairwise(rows * i // n for i in range(n + 1)), strict=True):
            a = starts.index(self.row_ends[first - 1] if first else 0)
            b = starts.index(self.row_ends[last - 1])
            out.append(Judged(**plain(part), liked=self.liked[a:b], reference=self.reference[a:b], drift=self.drift))
        return out

    def to(self, device: torch.device | str) -> Judged:
        moved = super().to(device)
        assert isinstance(moved, Judged)
        return replace(moved, liked=self.liked.to(device), reference=self.reference.to(device))


@dataclass(frozen=True)
class Pairs:
    """Log-probabilities of both answers, for the model and (`_0`) for the reference, and their lengths: each (P,)."""

    chosen: Tensor
    rejected: Tensor
    chosen_0: Tensor
    rejected_0: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def gains(self) -> tuple[Tensor, Tensor]:
        """How much likelier each answer is than for the reference, in nats."""
        return self.chosen - self.chosen_0, self.rejected - self.rejected_0

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Log-probability of a token, on average."""
        return self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens


def dpo(p: Pairs, beta: float) -> Tensor:
    """-log σ(β (gain₊ - gain₋))."""
    return -F.logsigmoid(beta * (p.gains[0] - p.gains[1]))


def ipo(p: Pairs, beta: float) -> Tensor:
    """(gain₊ / tokens₊ - gain₋ / tokens₋ - 1 / 2β)²; by tokens, as its authors compute it."""
    return (p.gains[0] / p.chosen_tokens - p.gains[1] / p.rejected_tokens - 1 / (2 * beta)).square()


def orpo(p: Pairs, beta: float) -> Tensor:
    """-mean₊ - β log σ(log odds₊ - log odds₋), odds of the mean token."""
    return -p.means[0] - beta * F.logsigmoid(_log_odds(p.means[0]) - _log_odds(p.means[1]))


def simpo(p: Pairs, beta: float, gamma: float) -> Tensor:
    """-log σ(β (mean₊ - mean₋) - γ)."""
    return -F.logsigmoid(beta * (p.means[0] - p.means[1]) - gamma)


def cpo(p: Pairs, beta: float, alpha: float) -> Tensor:
    """-log σ(β (log p₊ - log p₋)) - α mean₊."""
    return -F.logsigmoid(beta * (p.chosen - p.rejected)) - alpha * p.means[0]


def bradley_terry(margin: Tensor) -> Tensor:
    """-log σ(r₊ - r₋)."""
    return -F.logsigmoid(margin)


def kto(gain: Tensor, liked: Tensor, drift: float, plan: Kto) -> Tensor:
    """w₊ (1 - σ(β (gain - drift))) where liked, w₋ (1 - σ(β (drift - gain))) where not."""
    sign = 2 * liked - 1
    weight = liked * plan.liked + (1 - liked) * plan.disliked
    return weight * torch.sigmoid(plan.beta * sign * (drift - gain))


def _log_odds(logp: Tensor) -> Tensor:
    return logp - torch.log(-torch.expm1(logp))


def paired(plan: Preference) -> Callable[[Pairs], Tensor]:
    """Return the loss of one pair."""
    match plan:
        case Dpo(beta):
            return lambda p: dpo(p, beta)
        case Ipo(beta):
            return lambda p: ipo(p, beta)
        case Orpo(beta):
            return lambda p: orpo(p, beta)
        case Simpo(beta, gamma):
            return lambda p: simpo(p, beta, gamma)
        case Cpo(beta, alpha):
            return lambda p: cpo(p, beta, alpha)
        case Kto() | Reward():
            raise ValueError(f"{type(plan).__name__} has no loss of log-probabilities of pairs")


def objective(plan: Preference) -> Objective:
    """Make the objective: Σ over rows; metrics are sums over rows too."""

    def preferred(model: Model, batch: Batch) -> Outcome:
        assert isinstance(batch, Judged)
        if isinstance(plan, Reward):
            better = rewards(model, batch)
            margin = better[0::2] - better[1::2]
            seen = margin.detach()
            return Outcome(bradley_terry(margin).sum(), _seen(seen))
        logp, tokens = sums(token_scores(model, batch), batch)
        gain = (logp - batch.reference).detach()
        if isinstance(plan, Kto):
            loss = kto(logp - batch.reference, batch.liked, batch.drift, plan)
            right = ((gain > batch.drift) == (batch.liked > 0)).float()
            return Outcome(loss.sum(), {"accuracy": right.sum().item()})
        a, b = slice(0, None, 2), slice(1, None, 2)
        pairs = Pairs(logp[a], logp[b], batch.reference[a], batch.reference[b], tokens[a], tokens[b])
        margin = gain[a] - gain[b]
        return Outcome(paired(plan)(pairs).sum(), _seen(margin))

    return preferred


def _seen(margin: Tensor) -> dict[str, float]:
    """Sums over pairs: of the margins and their squares, and how many are right."""
    return {
        "margin": margin.sum().item(), "accuracy": float((margin > 0).sum()), "squares": margin.square().sum().item(),
    }  # fmt: skip


class Judgements:
    """Pairs (for KTO: single verdicts) with the reference's log-probabilities, computed once before anything moves."""

    def __init__(self, recipe: Tune, plan: Preference, model: Model, tokenizer: Tokenizer, device: str) -> None:
        if recipe.data.overlong == "split":
            raise TerakoyaError("data.overlong", given="split", allowed=["drop", "truncate", "error"])
        self.recipe, self.plan, self.model, self.device = recipe, plan, model, device
        self.objective: Objective = objective(plan)
        items = list(_items(recipe, tokenizer))
        learn, kept = parted(items, lambda i: said(i[0]), recipe.data.holdout, recipe.seed)
        speaks = not isinstance(plan, Reward)
        self.prompts = list(dict.fromkeys(prompt for prompt, _, _ in kept)) if speaks else []
        self.notes: list[str] = []
        self.stats: dict[str, float] = {}
        self.train, self.heldout = self._fit("training", learn), self._fit("held-out", kept)
        self.references = [self._scored(side) for side in (self.train, self.heldout)]

    def _fit(self, name: str, items: Sequence[_Item]) -> list[tuple[tuple[Sample, ...], tuple[float, ...]]]:
        counts, fitting = Counts(), []
        for _, samples, liked in items:
            try:
                short = fitted(samples, self.recipe.rows.context, self.recipe.data.overlong, counts)
            except TerakoyaError:
                if counts.dropped and self.recipe.data.overlong == "drop":
                    continue
                raise
            if len(short) == 2 and short[0].ids == short[1].ids:
                problem = f"can never teach anything: both answers are the same in {self.recipe.rows.context} tokens"
                raise TerakoyaError(short[0].place, problem, hint="raise rows.context, or data.overlong = drop")
            if len(short) == len(samples):
                fitting.append((tuple(short), liked))
        self.notes.append(f"{name}: {counts.said()}; {len(fitting):,} judgements of {len(items):,} fit")
        if not fitting:
            raise TerakoyaError("data", f"no judgement is left ({self.notes[-1]})")
        return fitting

    @property
    def fingerprint(self) -> str:
        made = hashlib.sha256(repr((self.recipe.rows.count, self.recipe.seed, self.plan)).encode())
        for samples, liked in self.train:
            for s, mark in zip(samples, liked, strict=True):
                made.update(np.array(s.ids, "<i8").tobytes() + np.array([*s.weights, mark], "<f4").tobytes())
        return made.hexdigest()

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train) // self.recipe.rows.count)

    def batch(self, step: int) -> Judged:
        chosen = dealt(len(self.train), self.recipe.rows.count, self.recipe.seed, step)
        batch = self._judged(self.train, self.references[0], chosen)
        return replace(batch, drift=self._drift(batch, step)) if isinstance(self.plan, Kto) else batch

    @torch.no_grad()
    def look(self, model: Model, device: str, limit: int | None) -> dict[str, float]:
        """Loss, margin (± interval) and accuracy on held-out judgements (KTO's drift is taken as 0)."""
        total: dict[str, float] = {}
        count, size = 0.0, 0
        for first in range(0, len(self.heldout), self.recipe.rows.count):
            rows = range(first, min(first + self.recipe.rows.count, len(self.heldout)))
            batch = self._judged(self.heldout, self.references[1], rows)
            seen = self.objective(model, batch.to(device))
            for name, value in {"loss": seen.loss.item(), **seen.metrics}.items():
                total[name] = total.get(name, 0.0) + value
            count, size = count + batch.weight, size + 4 * len(batch.tokens)
            if limit is not None and size >= limit:
                break
        means = {f"heldout_{name}": value / count for name, value in total.items()}
        if (squares := means.pop("heldout_squares", None)) is not None:  # half the 95 % interval of the mean margin
            spread = max(0.0, squares - means["heldout_margin"] ** 2) / max(1.0, count - 1)
            means["heldout_interval"] = 1.96 * math.sqrt(spread)
        return means

    def _judged(self, side: _Side, reference: Sequence[Tensor], rows: Sequence[int]) -> Judged:
        samples = [s for i in rows for s in side[i][0]]
        ends = tuple(accumulate(sum(s.length for s in side[i][0]) for i in rows))
        liked = torch.tensor([mark for i in rows for mark in side[i][1]])
        return Judged(**plain(laid(samples, ends)), liked=liked, reference=torch.cat([reference[i] for i in rows]))

    @torch.no_grad()
    def _scored(self, side: _Side) -> list[Tensor]:
        """Log p of every answer for the model as it is now, adapters off; zeros where the method has no reference."""
        if not isinstance(self.plan, Dpo | Ipo | Kto):
            return [torch.zeros(len(samples)) for samples, _ in side]
        out = []
        with adapters.only(self.model) if adapters.names(self.model) else nullcontext():
            for samples, _ in side:
                batch = laid(samples).to(self.device)
                out.append(sums(token_scores(self.model, batch), batch)[0].float().cpu())
        return out

    @torch.no_grad()
    def _drift(self, batch: Judged, step: int) -> float:
        """Mean log-ratio of answers to prompts they do not belong to, at least 0 (KTO §4.1): one number a step."""
        rows = dealt(len(self.train), self.recipe.rows.count, self.recipe.seed, step)
        samples = [self.train[i][0][0] for i in rows]
        shifted = [_crossed(a, b) for a, b in zip(samples, [*samples[1:], samples[0]], strict=True)]
        fitting = [s for s in shifted if s.length <= self.model.spec.context]
        if len(samples) < 2 or not fitting:
            return 0.0
        mixed = laid(fitting).to(self.device)
        now, _ = sums(token_scores(self.model, mixed), mixed)
        with adapters.only(self.model) if adapters.names(self.model) else nullcontext():
            then, _ = sums(token_scores(self.model, mixed), mixed)
        return max(0.0, (now - then).mean().item())


_Item = tuple[Prompt, tuple[Sample, ...], tuple[float, ...]]
_Side = Sequence[tuple[tuple[Sample, ...], tuple[float, ...]]]


def _items(recipe: Tune, tokenizer: Tokenizer) -> list[_Item]:
    template = recipe.data.template
    out: list[_Item] = []
    if isinstance(recipe.method, Kto):
        if recipe.adapter is None or not isinstance(recipe.adapter, Added):
            raise TerakoyaError("adapter", "KTO measures the model's drift from its base, kept under an adapter",
                                allowed=ADDED)  # fmt: skip
        return [
            (v.prompt, (answer(tokenizer, v.place, v.prompt, v.answer, template),), (float(v.liked),))
            for v in verdicts(read(recipe.data))
        ]
    for c in choices(read(recipe.data)):
        both = tuple(answer(tokenizer, c.place, c.prompt, text, template) for text in (c.chosen, c.rejected))
        if isinstance(recipe.method, Reward):
            both = tuple(read_to_the_end(s) for s in both)
        out.append((c.prompt, both, (1.0, 0.0)))
    return out


def _crossed(prompt: Sample, reply: Sample) -> Sample:
    """The prompt of one sample, the answer of another."""
    a = next(i for i, w in enumerate(prompt.weights) if w)
    b = next(i for i, w in enumerate(reply.weights) if w)
    ids, weights = prompt.ids[:a] + reply.ids[b:], prompt.weights[:a] + reply.weights[b:]
    return Sample(reply.place, ids, weights)
