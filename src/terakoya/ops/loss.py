"""Next-token loss without the (T, V) matrix: the head's product, softmax and both gradients, chunk by chunk.

The usual way writes and reads the logits about eight times; here each chunk is made, used for the loss and for the
gradients while it is in cache, and forgotten. Memory is O(chunk * V) instead of O(T * V).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**21  # logits per chunk: 8 MiB in fp32, about what the caches hold
ROWS = 256  # at least, so that adding up the gradient of a large table stays rare


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum weights * -log softmax(x weight^T)[targets]: x (T, D), weight (V, D), targets (T,), weights (T,) -> ().

    Differentiable once, in x and weight.
    """
    return _LinearCrossEntropy.apply(x, weight, targets, weights)  # type: ignore[no-any-return]


def naive(x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The definition of `linear_cross_entropy`, by torch's own functions."""
    logits = F.linear(x, weight)
    return (
        F.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits, targets, reduction="none")
        * weights
    ).sum()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        learn_x, learn_w = ctx.needs_input_grad[:2]
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        w = weight.to(x.dtype)
        grad_x = torch.empty_like(x) if learn_x else None
        grad_w = torch.zeros_like(weight, dtype=wide) if learn_w else None
        total = torch.zeros((), dtype=wide, device=x.device)
        rows = max(ROWS, CHUNK // weight.shape[0])
        for a in range(0, len(x), rows):
            part, scale = slice(a, a + rows), weights[a : a + rows].to(wide)[:, None]
            logits = torch.mm(x[part], w.T)
            probs = torch.softmax(logits, -1, dtype=wide)
            # log of the sum through the likeliest token, whose probability cannot underflow
            norm = logits.amax(-1, keepdim=True).to(wide) - probs.amax(-1, keepdim=True).log()
            target = targets[part, None]
            total += ((norm - logits.gather(-1, target).to(wide)) * scale).sum()
            if not (learn_x or learn_w):
                continue
            slope = probs.scatter_add_(-1, target, torch.full_like(scale, -1.0)).to(x.dtype)
            # the weights go to the narrow side of both products, (rows, D) instead of (rows, V)
            if grad_x is not None:
                torch.mm(slope, w, out=grad_x[part]).mul_(scale)
            if grad_w is not None:
                grad_w.addmm_(slope.T.to(wide), x[part] * scale)
        ctx.save_for_backward(*(g for g in (grad_x, grad_w) if g is not None))
        ctx.learn = (learn_x, learn_w, weight.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved, (learn_x, learn_w, dtype) = list(ctx.saved_tensors), ctx.learn
        grad_x = saved.pop(0).mul_(grad) if learn_x else None
        grad_w = saved.pop(0).mul_(grad).to(dtype) if learn_w else None
        return grad_x, grad_w, None, None
