"""Objectives: pure functions from a model and a batch to a weighted sum of losses and its weight."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from terakoya.data.batch import Batch
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.ops.loss import linear_cross_entropy


@dataclass(frozen=True)
class Outcome:
    """What an objective made of a batch: Σ weight · loss, in nats, and whatever else is worth a line in the log."""

    loss: Tensor
    metrics: dict[str, float] = field(default_factory=dict)


def causal(model: Model, batch: Batch) -> Outcome:
    """Predict each target from what stands before it in its document: Σ w · -log p(target | past)."""
    hidden = model(batch.tokens, context_of(batch))
    return Outcome(cross_entropy(model, hidden, batch.targets, batch.weights))


def context_of(batch: Batch) -> Packed:
    """Return the context in which the pieces of a batch see only themselves."""
    return Packed(batch.cu.diff().tolist(), batch.tokens.device)


def cross_entropy(model: Model, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum the weighted negative log-likelihoods: hidden (T, D), targets (T,), weights (T,) -> ()."""
    head = model.head
    bare = head.transform is None and head.project is None and head.bias is None
    plain = head.spec.scale == 1.0 and head.spec.softcap is None and not head.spec.shift
    if bare and plain and head.weight is not None:
        return linear_cross_entropy(hidden, head.weight, targets, weights)
    return (F.cross_entropy(head(hidden).float(), targets, reduction="none") * weights).sum()


def log_probabilities(model: Model, batch: Batch) -> Tensor:
    """Return log p(target | past) of every token: -> (T,)."""
    logits = model.head(model(batch.tokens, context_of(batch))).float()
    return torch.log_softmax(logits, -1).gather(-1, batch.targets[:, None])[:, 0]
