"""One training step, the same for every objective: micro-batches, global weight, clip, finite gate, update."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from terakoya.data.batch import Batch
from terakoya.model.model import Model
from terakoya.train.objective import Outcome
from terakoya.train.optim import Stepping

Objective = Callable[[Model, Batch], Outcome]


@dataclass(frozen=True)
class Stepped:
    """What one step saw: mean loss (nats per weighted token), gradient norm before clipping, whether it moved."""

    loss: float
    weight: float
    norm: float
    moved: bool
    metrics: dict[str, float]


def gradients(
    model: Model, micros: Sequence[Batch], objective: Objective, *, autocast: torch.dtype | None = None
) -> tuple[float, float, dict[str, float]]:
    """Add the gradient of Σ w·loss / Σ w over all micro-batches; return (loss, Σ w, summed metrics).

    The sum of weights is taken before the first backward pass, so the split into micro-batches changes nothing.
    """
    weight = float(sum(b.weight for b in micros))
    share = weight or 1.0
    total, metrics = 0.0, dict[str, float]()
    for batch in micros:
        with torch.autocast(batch.tokens.device.type, dtype=autocast, enabled=autocast is not None):
            outcome = objective(model, batch)
        (outcome.loss / share).backward()
        total += outcome.loss.item()
        for name, value in outcome.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value
    return total / share, weight, metrics


def step(
    model: Model,
    micros: Sequence[Batch],
    objective: Objective,
    optimizer: Stepping,
    *,
    factor: float,
    clip: float | None = 1.0,
    autocast: torch.dtype | None = None,
) -> Stepped:
    """Take one step; a loss or gradient that is not finite, or a batch where no target counts, moves nothing."""
    optimizer.zero()
    loss, weight, metrics = gradients(model, micros, objective, autocast=autocast)
    params = [p for p in optimizer.names if p.grad is not None]
    norm_tensor = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
    norm = norm_tensor.item()
    moved = weight > 0 and math.isfinite(loss) and math.isfinite(norm)
    if moved:
        if clip is not None and norm > clip:
            torch.nn.utils.clip_grads_with_norm_(params, clip, norm_tensor)
        optimizer.step(factor)
    return Stepped(loss, weight, norm, moved, metrics)
