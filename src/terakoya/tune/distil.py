"""Learning a teacher's distribution: its likeliest tokens at every place that counts, kept from one pass."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.tokenizer import Message, Tokenizer, render
from terakoya.train.objective import Outcome, context_of
from terakoya.train.step import Objective
from terakoya.tune.formats import Example, Talk
from terakoya.tune.methods import Distil
from terakoya.tune.pack import Packer, laid, plain, unsized
from terakoya.tune.recipe import Tune
from terakoya.tune.rollout import drawn
from terakoya.tune.score import CHUNK, mixtures_of, targets_of
from terakoya.tune.sft import Lessons, opening
from terakoya.zoo.convert import Loaded


@dataclass(frozen=True, kw_only=True)
class Taught(Batch):
    """`ids` and `logp` (S, K): what the teacher holds likeliest at each of the S targets that count."""

    ids: Tensor
    logp: Tensor

    def split(self, n: int) -> list[Batch]:
        """Cut into n micro-batches along rows."""
        parts = super().split(n)
        ends = accumulate((int((p.weights != 0).sum()) for p in parts), initial=0)
        return [
            Taught(**plain(p), ids=self.ids[a:b], logp=self.logp[a:b])
            for p, (a, b) in zip(parts, pairwise(ends), strict=True)
        ]

    def to(self, device: torch.device | str) -> Taught:
        moved = super().to(device)
        assert isinstance(moved, Taught)
        return replace(moved, ids=self.ids.to(device), logp=self.logp.to(device))


def objective(plan: Distil) -> Objective:
    """Make Σ w ((1 - share) · -log q(target) + share · T² · KL(teacher ‖ student)), over the teacher's top tokens."""

    def taught(model: Model, batch: Batch) -> Outcome:
        assert isinstance(batch, Taught)
        counted = batch.weights != 0
        hidden, weights = model(batch.tokens, context_of(batch))[counted], batch.weights[counted]
        kl = mixtures_of(model.head, hidden, batch.ids.long(), batch.logp, plan.temperature)
        loss = plan.share * plan.temperature**2 * kl
        if plan.share < 1:
            loss = loss - (1 - plan.share) * targets_of(model.head, hidden, batch.targets[counted])
        return Outcome((loss * weights).sum(), {"teacher_kl": (kl * weights).sum().item()})

    return taught


class Distilled(Lessons):
    """Packed examples with the teacher's opinion of each."""

    def __init__(
        self, recipe: Tune, plan: Distil, tokenizer: Tokenizer, teacher: Loaded | None, folder: Path, device: str
    ) -> None:
        self.plan, self.objective, self.recipe, self.folder = plan, objective(plan), recipe, folder
        self.teacher = checked_teacher(plan.teacher, teacher, tokenizer).to(device)
        if plan.top > self.teacher.spec.vocab:
            allowed = f"at most the teacher's vocabulary, {self.teacher.spec.vocab}"
            raise TerakoyaError("method.top", given=plan.top, allowed=allowed)
        super().__init__(recipe, tokenizer)
        self.objective = objective(plan)
        self.top = _kept(folder / "teacher.safetensors", self.train, self.teacher, plan, device)

    def worded(self, learn: list[Example], tokenizer: Tokenizer) -> list[Example]:
        """Let the teacher answer, greedily, where the recipe says so; its answers are kept beside the run."""
        if self.plan.words == "examples":
            return learn
        asked = [(x.place, p) for x in learn if (p := opening(x))]
        template = self.recipe.data.template
        ids = [render(tokenizer, p, template=template, answer=True).ids for _, p in asked]
        room = min(self.teacher.spec.context, self.recipe.rows.context + 1)
        fits = [i for i, q in enumerate(ids) if len(q) + self.plan.tokens <= room]
        if not fits:
            raise TerakoyaError("data", "holds no prompt that leaves room for method.tokens in rows.context")
        said = _answered(
            self.folder / "teacher.jsonl", self.teacher, tokenizer, [ids[i] for i in fits], self.plan.tokens
        )
        talks: list[Example] = [
            Talk(asked[i][0], (*asked[i][1], Message("assistant", text)), first=len(asked[i][1]))
            for i, text in zip(fits, said, strict=True)
            if text
        ]
        if not talks:
            raise TerakoyaError("method.tokens", f"the teacher ended none of {len(fits):,} answers within them",
                                given=self.plan.tokens)  # fmt: skip
        self.notes.append(f"the teacher answered {len(talks):,} of {len(learn):,} examples to the end")
        return talks

    def batch(self, step: int) -> Batch:
        batch, order = self.train.batch(step), [i for row in self.train.chosen(step) for i in row]
        ids, logp = (torch.cat([self.top[i][side] for i in order]) for side in (0, 1))
        return Taught(**unsized(batch), ids=ids, logp=logp)


def checked_teacher(name: str, teacher: Loaded | None, tokenizer: Tokenizer) -> Model:
    """Return the teacher's model; its vocabulary must be the student's."""
    if teacher is None or teacher.tokenizer is None:
        raise TerakoyaError("method.teacher", "must be a model with a tokenizer", given=name)
    if teacher.tokenizer.description() != tokenizer.description():
        raise TerakoyaError("method.teacher", "has another vocabulary than the student", given=name)
    return teacher.model


def _answered(path: Path, teacher: Model, tokenizer: Tokenizer, asked: list[list[int]], tokens: int) -> list[str]:
    """Return an answer to every prompt, empty where it did not end; asked once, kept as JSON lines."""
    if not path.exists():
        groups = drawn(teacher, tokenizer, asked, [0] * len(asked), n=1, temperature=0.0, tokens=tokens)
        lines = [{"answer": g[0].text if g[0].finished else "", "finished": g[0].finished} for g in groups]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), encoding="utf-8")
        partial.replace(path)
    said = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    if len(said) != len(asked):
        raise TerakoyaError(str(path), "was made of other examples", hint="remove it to ask the teacher again")
    return said


@torch.inference_mode()
def _kept(path: Path, packer: Packer, teacher: Model, plan: Distil, device: str) -> list[tuple[Tensor, Tensor]]:
    """Ask the teacher once and keep what it said; a file from before is used again."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    if not path.exists():
        said = [_asked(teacher, laid([s]).to(device), plan) for s in packer.samples]
        tensors = {f"{i}.{n}": t for i, pair in enumerate(said) for n, t in zip(("ids", "logp"), pair, strict=True)}
        save_file(tensors, path, {"examples": packer.fingerprint})
    with safe_open(path, "pt") as found:
        if (found.metadata() or {}).get("examples") != packer.fingerprint:
            raise TerakoyaError(str(path), "was made of other examples", hint="remove it to ask the teacher again")
        return [(found.get_tensor(f"{i}.ids"), found.get_tensor(f"{i}.logp")) for i in range(len(packer.samples))]


def _asked(teacher: Model, batch: Batch, plan: Distil) -> tuple[Tensor, Tensor]:
    """Return the top tokens and their log-probabilities among themselves: (S, K) int32, (S, K)."""
    hidden = teacher(batch.tokens, context_of(batch))[batch.weights != 0]
    ids, logp = [], []
    for part in hidden.split(max(1, CHUNK // teacher.spec.vocab)):
        best = (teacher.head(part).float() / plan.temperature).topk(plan.top, -1)
        ids.append(best.indices.int().cpu())
        logp.append(torch.log_softmax(best.values, -1).cpu())
    return torch.cat(ids), torch.cat(logp)
