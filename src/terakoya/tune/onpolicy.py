"""Learning the teacher's distribution on answers of one's own: generalised knowledge distillation (Agarwal 2024)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.model import Head, Model
from terakoya.tokenizer import Tokenizer, render
from terakoya.train.objective import Outcome, context_of
from terakoya.train.step import Objective
from terakoya.tune.distil import checked_teacher
from terakoya.tune.methods import Gkd
from terakoya.tune.pack import dealt, laid, plain, unsized
from terakoya.tune.recipe import Tune
from terakoya.tune.rollout import drawn, seed_of
from terakoya.tune.samples import Sample
from terakoya.tune.score import CHUNK
from terakoya.tune.sft import Lessons
from terakoya.zoo.convert import Loaded


@dataclass(frozen=True, kw_only=True)
class Shown(Batch):
    """`seen` (S, D'): what the teacher holds at each of the S targets that count, before its head."""

    seen: Tensor

    def split(self, n: int) -> list[Batch]:
        """Cut into n micro-batches along rows."""
        parts = super().split(n)
        ends = accumulate((int((p.weights != 0).sum()) for p in parts), initial=0)
        return [Shown(**plain(p), seen=self.seen[a:b]) for p, (a, b) in zip(parts, pairwise(ends), strict=True)]

    def to(self, device: torch.device | str) -> Shown:
        moved = super().to(device)
        assert isinstance(moved, Shown)
        return replace(moved, seen=self.seen.to(device))


def jensen_shannon(p: Tensor, q: Tensor, blend: float) -> Tensor:
    """β KL(p ‖ m) + (1 - β) KL(q ‖ m), m = β p + (1 - β) q, of log-probabilities (N, V) -> (N,).

    At β = 0 it is KL(p ‖ q), at β = 1 KL(q ‖ p), as Agarwal (2024, §3) and trl have it.
    """
    if blend in (0.0, 1.0):
        first, second = (p, q) if blend == 0.0 else (q, p)
        return (first.exp() * (first - second)).sum(-1)
    weights = torch.tensor([blend, 1 - blend], dtype=p.dtype, device=p.device).log()
    middle = torch.logsumexp(torch.stack([p + weights[0], q + weights[1]]), 0)
    return blend * (p.exp() * (p - middle)).sum(-1) + (1 - blend) * (q.exp() * (q - middle)).sum(-1)


def divergences(student: Head, teacher: Head, hidden: Tensor, seen: Tensor, plan: Gkd, vocab: int) -> Tensor:
    """Return the divergence at every row, CHUNK logits at a time: hidden (S, D), seen (S, D') -> (S,)."""

    def part(h: Tensor, t: Tensor) -> Tensor:
        p, q = (torch.log_softmax(x[:, :vocab].float() / plan.temperature, -1) for x in (teacher(t), student(h)))
        return jensen_shannon(p.detach(), q, plan.blend)

    size = max(1, CHUNK // (4 * vocab))
    chunks = zip(hidden.split(size), seen.split(size), strict=True)
    if torch.is_grad_enabled() and hidden.requires_grad:
        return torch.cat([checkpoint(part, h, t, use_reentrant=False) for h, t in chunks])
    return torch.cat([part(h, t) for h, t in chunks])


def objective(plan: Gkd, teacher: Model, vocab: int) -> Objective:
    """Make Σ w · JSD_β(teacher, student)."""

    def corrected(model: Model, batch: Batch) -> Outcome:
        assert isinstance(batch, Shown)
        counted = batch.weights != 0
        hidden = model(batch.tokens, context_of(batch))[counted]
        apart = divergences(model.head, teacher.head, hidden, batch.seen, plan, vocab) * batch.weights[counted]
        return Outcome(apart.sum(), {"divergence": apart.sum().item()})

    return corrected


class Corrected(Lessons):
    """Examples, or answers the student draws at that step, with the teacher's opinion of every token."""

    def __init__(
        self, recipe: Tune, plan: Gkd, model: Model, tokenizer: Tokenizer, teacher: Loaded | None, device: str
    ) -> None:
        super().__init__(recipe, tokenizer)
        self.recipe, self.plan, self.model, self.tokenizer, self.device = recipe, plan, model, tokenizer, device
        self.teacher = checked_teacher(plan.teacher, teacher, tokenizer).to(device).requires_grad_(False)
        self.vocab = min(model.spec.vocab, self.teacher.spec.vocab, tokenizer.vocab_size)
        self.objective = objective(plan, self.teacher, self.vocab)
        ids = [render(tokenizer, p, template=recipe.data.template, answer=True).ids for p in self.asked]
        self.questions = [q for q in ids if len(q) + plan.tokens <= recipe.rows.context]
        if plan.own and not self.questions:
            raise TerakoyaError("data", "holds no prompt that leaves room for method.tokens in rows.context")
        left = f"; {len(ids) - len(self.questions):,} leave no room" if len(self.questions) < len(ids) else ""
        self.notes.append(f"{len(self.questions):,} prompts for the student to answer itself{left}")

    def batch(self, step: int) -> Batch:
        own = random.Random(seed_of(self.recipe.seed, step, -1)).random() < self.plan.own
        batch = self._own(step) if own else self.train.batch(step)
        self.stats = {"own": float(own)}
        return Shown(**unsized(batch), seen=self._shown(batch))

    def _own(self, step: int) -> Batch:
        chosen = dealt(len(self.questions), self.recipe.rows.count, self.recipe.seed, step)
        asked = [self.questions[i] for i in chosen]
        seeds = [seed_of(self.recipe.seed, step, i) for i in range(len(asked))]
        plan = self.plan
        groups = drawn(
            self.model, self.tokenizer, asked, seeds, n=1, temperature=plan.temperature, tokens=plan.tokens
        )  # fmt: skip
        samples = [_said(q, g[0].ids) for q, g in zip(asked, groups, strict=True)]
        return laid(samples, tuple(accumulate(s.length for s in samples)), (0,) * len(samples))

    @torch.no_grad()
    def _shown(self, batch: Batch) -> Tensor:
        moved = batch.to(self.device)
        return self.teacher(moved.tokens, context_of(moved))[moved.weights != 0].cpu()


def _said(prompt: Sequence[int], answer: Sequence[int]) -> Sample:
    return Sample("", (*prompt, *answer), (0.0,) * len(prompt) + (1.0,) * len(answer))
