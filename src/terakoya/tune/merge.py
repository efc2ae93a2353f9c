"""One model out of base and adapters, and how far it says something else."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.build import build
from terakoya.model.model import Model
from terakoya.quant.linear import PREFIX, Packed
from terakoya.train.objective import context_of
from terakoya.tune.adapters import UNMERGEABLE, Adapted, adapted, mergeable
from terakoya.tune.parts import Decomposed, Factors, LowRank, dense

ROWS = 256  # tokens whose logits are held at once


@torch.no_grad()
def merged(model: Model) -> Model:
    """Return a plain model that does what `model` does with its active adapters; other weights are shared, not copied.

    Packed base weights are unpacked first.
    """
    if not mergeable(model):
        raise TerakoyaError("adapter", UNMERGEABLE)
    layers = adapted(model)
    tensors: dict[str, Tensor] = {
        n: t for n, t in model.state_dict().items() if ".adapters." not in n and f".{PREFIX}" not in n
    }
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (name in layers or isinstance(module, Packed)):
            weight, bias = _folded(module)
            tensors[f"{name}.weight"] = weight
            if bias is not None:
                tensors[f"{name}.bias"] = bias
        elif isinstance(module, Packed) and module.kept():
            tensors[f"{name}.weight"] = module.dense()
    out = build(model.spec, device="meta")
    wanted = out.state_dict().keys()
    if model.spec.head.tied:
        tensors["head.weight"] = tensors["embed.token.weight"]
    out.load_state_dict({n: t for n, t in tensors.items() if n in wanted}, assign=True)
    if model.spec.head.tied:
        out.head.weight = out.embed.token.weight
    return out.requires_grad_(False)


def _folded(linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
    weight, bias = dense(linear).clone(), linear.bias
    base = weight.clone() if isinstance(linear, Adapted) and len(linear.active) > 1 else weight
    for name in linear.active if isinstance(linear, Adapted) else ():
        part = cast("Adapted", linear).adapters[name]
        if isinstance(part, Decomposed | Factors):
            weight = weight + (part.merged(base) - base)
            if isinstance(part, Factors) and not part.inputs and bias is not None:
                bias = bias + linear.bias * (part.l - 1)
        else:
            weight = weight + cast("LowRank", part).product()
    return weight, bias


@torch.inference_mode()
def divergence(p: Model, q: Model, batch: Batch) -> float:
    """Return the mean KL(p ‖ q) over the tokens of a batch that count, in nats."""
    counted = batch.weights != 0
    a, b = (m(batch.tokens, context_of(batch))[counted] for m in (p, q))
    total = 0.0
    for first in range(0, len(a), ROWS):
        left, right = (torch.log_softmax(m.head(h[first : first + ROWS]).double(), -1) for m, h in ((p, a), (q, b)))
        total += (left.exp() * (left - right)).sum().item()
    return total / max(len(a), 1)
