"""Reformer: attention by hashing, and layers whose inputs are computed back from their outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from terakoya.model import spec, spec_sparse
from terakoya.model.context import Context
from terakoya.ops import lsh

Half = Callable[[Tensor], Tensor]


class Lsh(nn.Module):
    """softmax(q k^T / sqrt(K)) v over tokens that hash alike, with k = q of unit length (Kitaev 2020, §2).

    Where a sequence goes on from a memory, or is no longer than a chunk, it looks at everything. What hashes alike
    depends on the whole text, so generation is not, and cannot be, the same as one forward pass over a longer one.
    """

    def __init__(self, s: spec_sparse.Lsh, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec, self.layer, self.context = s, layer, model.context
        self.width = spec.head_dim(model, s)
        self.least, self.common = chunks(model)
        self.qk, self.v = (nn.Linear(model.dim, s.heads * self.width, bias=False) for _ in range(2))
        self.o = nn.Linear(s.heads * self.width, model.dim, bias=False)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Mix over time: x (T, D) -> (T, D)."""
        s = self.spec
        both = torch.cat([self.qk(x), self.v(x)], -1)
        out = []
        for past, n in zip(ctx.remember(self.layer, both), _lengths(ctx.cu), strict=True):
            qk, v = (t.unflatten(-1, (s.heads, -1)) for t in past.chunk(2, -1))
            if past.shape[0] > n:
                y = lsh.full(qk[-n:], qk, v, past.shape[0] - n)
            else:
                room = n if n <= self.least else -(-n // self.common) * self.common
                factors = s.buckets or lsh.factors_for(room, s.chunk, self.context)
                turns = ctx.share(("lsh", self.seed, s, factors), lambda f=factors: self.turns(x, f))
                y = lsh.attend(qk, v, turns, s.chunk, factors, room)
            out.append(y.flatten(1))
        return self.o(torch.cat(out))

    @property
    def seed(self) -> int:
        return self.layer if self.spec.seed is None else self.spec.seed

    def turns(self, x: Tensor, factors: Sequence[int]) -> Tensor:
        """Draw the directions, always the same for a seed, as transformers does: (rounds, H, K, buckets / 2)."""
        s = self.spec
        rng = torch.Generator().manual_seed(self.seed)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        shape = (s.heads, self.width, s.rounds, sum(factors) // 2)
        drawn = torch.randn(shape, generator=rng, device="cpu", dtype=wide)
        return drawn.permute(2, 0, 1, 3).to(x.device, x.dtype)


def chunks(model: spec.Model) -> tuple[int, int]:
    """Return the smallest chunk of a model's layers, and the length that all of them divide: rounds have room for
    multiples of it, as if the text were filled up.
    """
    mixers = [m for block in model.blocks for branch in block.branches for m in branch.mix]
    sizes = [m.chunk for m in mixers if isinstance(m, spec_sparse.Lsh)]
    sizes += [m.reach.size for m in mixers if isinstance(m, spec.Attention) and isinstance(m.reach, spec_sparse.Local)]
    return min(sizes), math.lcm(*sizes)


def _lengths(cu: Sequence[int]) -> list[int]:
    return [b - a for a, b in pairwise(cu)]


def reversible(x: Tensor, pairs: Sequence[tuple[nn.Module, Half, Half]]) -> Tensor:
    """Run y1 = x1 + f(x2), y2 = x2 + g(y1) layer after layer from x1 = x2 = x, and return the two side by side.

    Each of `pairs` is (the module that owns the weights, f, g). Nothing is kept for the backward pass but the last two
    streams: x2 = y2 - g(y1) and x1 = y1 - f(x2) bring the others back (Gomez 2017; Kitaev 2020, §3).
    x (T, D) -> (T, 2 D).
    """
    weights = [p for module, _, _ in pairs for p in module.parameters() if p.requires_grad]
    a, b = _Reversible.apply(x, x, pairs, *weights)
    return torch.cat([a, b], -1)


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, pairs: Any, *weights: Tensor) -> tuple[Tensor, Tensor]:
        for _, f, g in pairs:
            a = a + f(b)
            b = b + g(a)
        ctx.pairs = pairs
        ctx.save_for_backward(a, b)
        return a, b

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        da, db = grads
        found: dict[int, Tensor] = {}
        for module, f, g in reversed(ctx.pairs):
            own = [p for p in module.parameters() if p.requires_grad]
            change, slopes, more = _back(g, a, db, own)
            b, da = b - change, da + more
            _add(found, own, slopes)
            change, slopes, more = _back(f, b, da, own)
            a, db = a - change, db + more
            _add(found, own, slopes)
        weights = [p for module, _, _ in ctx.pairs for p in module.parameters() if p.requires_grad]
        return da, db, None, *(found.get(id(p)) for p in weights)


def _back(run: Half, x: Tensor, slope: Tensor, own: list[nn.Parameter]) -> tuple[Tensor, Sequence[Any], Tensor]:
    """Compute again and differentiate: (the output, slopes of the weights, slope of x)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = run(x)
        got = torch.autograd.grad(y, [x, *own], slope, allow_unused=True)
    return y.detach(), got[1:], got[0]


def _add(found: dict[int, Tensor], own: list[nn.Parameter], slopes: Sequence[Tensor | None]) -> None:
    for p, slope in zip(own, slopes, strict=True):
        if slope is not None:
            found[id(p)] = found[id(p)] + slope if id(p) in found else slope
