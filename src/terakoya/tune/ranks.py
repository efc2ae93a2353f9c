"""AdaLoRA's budget: which parts of which layers stay, by how much they matter (Zhang 2023, §3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.train.objective import Outcome
from terakoya.train.step import Objective
from terakoya.tune.adapters import names, parts
from terakoya.tune.parts import Triplets
from terakoya.tune.plans import AdaLora

SKEW = "skew"  # name of the measured ‖PᵀP - I‖ + ‖QQᵀ - I‖


class Ranks:
    """The importance of every part of one AdaLoRA, and the budget as training goes on."""

    def __init__(self, model: Model, plan: AdaLora, steps: int, name: str = "default") -> None:
        found = parts(model, name)
        self.parts = {n: cast("Triplets", p) for n, p in found.items() if isinstance(p, Triplets)}
        assert self.parts, "an AdaLoRA is on the model"
        self.plan, self.steps = plan, steps
        self.begin, self.end = max(1, int(plan.warmup * steps)), steps - int(plan.last * steps)
        if self.begin >= self.end:
            raise TerakoyaError("adapter", f"leaves none of {steps} steps to give parts up in", hint="train longer")
        self.smooth: dict[str, Tensor] = {}
        self.unsure: dict[str, Tensor] = {}
        self.kept = {n: torch.ones(len(p.e), dtype=torch.bool, device=p.e.device) for n, p in self.parts.items()}

    def budget(self, step: int) -> int:
        """Return the parts that all layers together may have after `step` (from 1): a cubic fall (eq. 8)."""
        first, last = self.plan.rank * len(self.parts), self.plan.target * len(self.parts)
        if step <= self.begin:
            return first
        left = max(0.0, 1 - (step - self.begin) / (self.end - self.begin))
        return int((first - last) * left**3 + last)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Look at weights and gradients after `step`, and give up what the budget no longer covers."""
        if step < self.end:
            self._weigh()
        chosen = self.begin < step <= self.end and (step % self.plan.every == 0 or step == self.end)
        if chosen:
            self._choose(self.budget(step))
        if chosen or step > self.end:  # between two choices what was given up may come back
            for n, part in self.parts.items():
                part.e.masked_fill_(~self.kept[n], 0.0)

    def _weigh(self) -> None:
        """Smooth |w · gradient| and how it varies (eq. 10 and 11)."""
        for path, part in self.parts.items():
            for leaf, p in part.named_parameters():
                assert p.grad is not None
                now, key = (p * p.grad).abs(), f"{path}.{leaf}"
                was = self.smooth.get(key, torch.zeros_like(p))
                mean = self.plan.memory * was + (1 - self.plan.memory) * now
                off = self.unsure.get(key, torch.zeros_like(p))
                self.unsure[key] = self.plan.doubt * off + (1 - self.plan.doubt) * (now - mean).abs()
                self.smooth[key] = mean

    def scores(self) -> dict[str, Tensor]:
        """Return what each part matters, by layer: of its λ, and on average of its row of Q and column of P (eq. 7)."""
        out = {}
        for path in self.parts:
            a, b, e = (self.smooth[f"{path}.{leaf}"] * self.unsure[f"{path}.{leaf}"] for leaf in "abe")
            out[path] = e + a.mean(1) + b.mean(0)
        return out

    def _choose(self, budget: int) -> None:
        scores = self.scores()
        every = torch.cat(list(scores.values()))
        if budget < len(every):
            least = every.kthvalue(len(every) - budget).values
            self.kept = {n: s > least for n, s in scores.items()}

    def ranks(self) -> dict[str, int]:
        """Return how many parts each layer has now."""
        return {n: int(k.sum()) for n, k in self.kept.items()}

    def state(self) -> dict[str, Tensor]:
        """Return all that has to be known to go on."""
        tables = {"smooth": self.smooth, "unsure": self.unsure, "kept": self.kept}
        return {
            f"{t}.{n}": v.to(torch.uint8) if t == "kept" else v for t, some in tables.items() for n, v in some.items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        device = next(iter(self.parts.values())).a.device
        for key, value in state.items():
            table, _, name = key.partition(".")
            here = value.to(device)
            match table:
                case "smooth":
                    self.smooth[name] = here.clone()
                case "unsure":
                    self.unsure[name] = here.clone()
                case _:
                    self.kept[name] = here.bool()


def orthogonal(objective: Objective, plan: AdaLora, name: str = "default") -> Objective:
    """Add the penalty that keeps P and Q near orthogonal, the mean over both of all layers, to an objective."""

    def penalised(model: Model, batch: Batch) -> Outcome:
        out = objective(model, batch)
        if name not in names(model):
            return out
        found = [p for p in parts(model, name).values() if isinstance(p, Triplets)]
        skew = torch.stack([p.skew() for p in found]).sum() / (2 * len(found))
        share = batch.weight  # what the sum over tokens is divided by: the penalty counts once a step
        return Outcome(out.loss + plan.orthogonal * skew * share, {**out.metrics, SKEW: skew.item() * share})

    return penalised
