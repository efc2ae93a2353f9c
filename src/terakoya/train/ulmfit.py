"""What AWD-LSTM and ULMFiT learn by: penalties on states, rates by layer, layers that wake one after another."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn

from terakoya.config import kind
from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.awd import AwdLstm
from terakoya.model.model import Model
from terakoya.train.objective import Outcome, context_of, cross_entropy
from terakoya.train.objectives import EXTRA
from terakoya.train.optim import AdamW

LAYERS = ("layers", "back")  # lists of layers, by the name of the list
BEHIND = ("norm", "head", "pool", "mix")  # what reads the last layer


def groups(model: Model) -> list[list[str]]:
    """Return the names of parameters by depth: words, each layer, and what a task has put on the model.

    What stands behind the layers goes with the last of them: for AWD-LSTM the bias of its head, tied to the words.
    """
    names = [name for name, _ in model.named_parameters()]
    last = max((at for name in names if (at := _layer(name)) is not None), default=0)
    found: dict[int, list[str]] = {}
    for name in names:
        first, at = name.partition(".")[0], _layer(name)
        behind = last + 1 if first == EXTRA else last if first in BEHIND else 0
        found.setdefault(behind if at is None else at, []).append(name)
    return [found[at] for at in sorted(found)]


def _layer(name: str) -> int | None:
    """Return the number of a parameter's layer, from 1; None where it is in none."""
    parts = name.split(".")
    return next((int(n) + 1 for of, n in pairwise(parts) if of in LAYERS and n.isdigit() and parts[0] != EXTRA), None)


def by_layer(model: Model, optim: object, decay: float) -> dict[str, float]:
    """Return what each parameter's rate is multiplied with: 1 at the top, 1 / decay a group further down (§3.2)."""
    if not 1 <= decay < math.inf:
        raise TerakoyaError("decay", given=decay, allowed="1 or more")
    if decay == 1:
        return {}
    if not isinstance(optim, AdamW):
        raise TerakoyaError("decay", "rates by layer are AdamW's", given=kind(optim), allowed="optim.kind=adamw")
    order = groups(model)
    return {name: decay ** (i + 1 - len(order)) for i, group in enumerate(order) for name in group}


def unfreeze(model: nn.Module, order: list[list[str]], epoch: int) -> None:
    """Let the last `epoch` + 1 groups learn, the others rest (gradual unfreezing, §3.3)."""
    awake = {name for group in order[max(0, len(order) - 1 - epoch) :] for name in group}
    for name, p in model.named_parameters():
        p.requires_grad_(name in awake)
        if name not in awake:
            p.grad = None


def awd(model: Model, batch: Batch, ar: float = 2.0, tar: float = 1.0) -> Outcome:
    """Return the language model's loss with AR and TAR (Merity 2017, section 4.4), both times Σ w.

    ar times the mean square of the masked top states, tar times that of the unmasked ones' change along time.
    """
    assert isinstance(model, AwdLstm)
    plain, masked = model.states(batch.tokens, context_of(batch))
    loss = cross_entropy(model, masked, batch.targets, batch.weights)
    if not model.noise.on:
        return Outcome(loss)
    inside = torch.ones(len(plain), dtype=torch.bool, device=plain.device)
    inside[batch.cu[:-1].long()] = False
    change = (plain - plain.roll(1, 0))[inside]
    extra = ar * masked.pow(2).mean() + (tar * change.pow(2).mean() if len(change) else 0.0)
    return Outcome(loss + extra * batch.weights.sum(), {"nats": loss.item()})
