"""Multi-token prediction: small modules beside the model guess the tokens after the next (DeepSeek-V3, §2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.context import Packed
from terakoya.model.model import Block, Model
from terakoya.model.norm import Norm
from terakoya.tokenizer import Tokenizer
from terakoya.train.objective import Outcome, context_of, cross_entropy
from terakoya.train.objectives.task import EXTRA, Plan, Sort, Task


@dataclass(frozen=True)
class Mtp(Plan):
    """Multi-token prediction (Gloeckle 2024), in the sequential form of DeepSeek-V3 (2024, eq. 21 to 25).

    Module k sees what the one before it made of token i and the embedding of token i + k, and predicts token i + k + 1
    through the model's own table and head: loss = next token + weight / ahead · Σ of the modules.
    """

    ahead: int = 1  # modules, each one token further
    weight: float = 0.3

    sorts: ClassVar[tuple[Sort, ...]] = ("decoder",)
    leftward: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.ahead < 1:
            raise TerakoyaError("objective.ahead", given=self.ahead, allowed="1 or more")
        if not self.weight > 0:
            raise TerakoyaError("objective.weight", given=self.weight, allowed="more than 0")

    def room(self, context: int, joined: bool) -> int:
        if self.ahead >= context:
            most = f"less than the {context} tokens of a row: what is further has no answer there"
            raise TerakoyaError("objective.ahead", given=self.ahead, allowed=most)
        return context

    def check(self, s: spec.Model) -> None:
        super().check(s)
        last = [m for branch in s.layers()[-1].branches for m in branch.mix]
        if s.reversible or any(isinstance(m, spec.Attention) and _lent(m.position) for m in last):
            problem = "repeats the last layer, which cannot stand alone here: it shares positions or has two streams"
            raise TerakoyaError("objective mtp", problem)

    def task(self, tokenizer: Tokenizer, s: spec.Model, seed: int) -> Task:
        return _Ahead(self, tokenizer, seed)


def _lent(position: object) -> bool:
    shared = isinstance(position, spec.Buckets | spec.Relative) and position.shared
    return shared or isinstance(position, spec.Disentangled)


class Further(nn.Module):
    """One module: block(M [norm(h); norm(embedding)])."""

    def __init__(self, s: spec.Model, layer: int) -> None:
        super().__init__()
        norm = s.norm or spec.RMSNorm()
        self.norm_hidden, self.norm_token = Norm(norm, s.dim), Norm(norm, s.dim)
        self.join = nn.Linear(2 * s.dim, s.dim, bias=False)
        self.block = Block(s.layers()[-1], s, layer)
        self.norm = Norm(norm, s.dim)

    def forward(self, hidden: Tensor, token: Tensor, ctx: Packed) -> Tensor:
        """Go one token further: hidden (T, D), token (T, D) -> (T, D)."""
        return self.block(self.join(torch.cat([self.norm_hidden(hidden), self.norm_token(token)], -1)), ctx)


class _Ahead(Task):
    def __init__(self, plan: Mtp, tokenizer: Tokenizer, seed: int) -> None:
        super().__init__(tokenizer, seed)
        self.plan = plan

    def companion(self, s: spec.Model) -> nn.Module:
        return nn.ModuleList(Further(s, s.depth + i) for i in range(self.plan.ahead))

    def arrange(self, batch: Batch, step: int) -> Batch:
        return batch

    def loss(self, model: Model, batch: Batch) -> Outcome:
        hidden = model(batch.tokens, context_of(batch))
        total = cross_entropy(model, hidden, batch.targets, batch.weights)
        seen = {"next_loss": total.item()}
        modules = model.get_submodule(EXTRA)
        assert isinstance(modules, nn.ModuleList)
        lengths, at = batch.cu.diff(), torch.arange(len(batch.tokens), device=batch.tokens.device)
        for k, module in enumerate(modules, 1):
            keep = _not_last(lengths)
            hidden, at, lengths = hidden[keep], at[keep] + 1, lengths - 1
            lengths = lengths[lengths > 0]
            if not len(at):
                break
            assert isinstance(module, Further)
            ctx = Packed(lengths.tolist(), batch.tokens.device)
            hidden = module(hidden, model.embed(batch.tokens[at], ctx), ctx)
            far = cross_entropy(model, module.norm(hidden), batch.targets[at], batch.weights[at])
            seen[f"ahead_{k}_loss"] = far.item()
            total = total + self.plan.weight / self.plan.ahead * far
        return Outcome(total, seen)


def _not_last(lengths: Tensor) -> Tensor:
    """Mark all but the last token of each piece: lengths (N,) -> (T,) bool."""
    keep = torch.ones(int(lengths.sum()), dtype=torch.bool, device=lengths.device)
    keep[lengths.long().cumsum(0) - 1] = False
    return keep
