"""Optimisers over parameter groups by role: AdamW for all, or Muon for matrices with AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor, nn

from terakoya.errors import TerakoyaError
from terakoya.model.build import Role, roles

DECAYED: frozenset[Role] = frozenset({"embed", "head", "matrix", "out", "router"})
MATRICES: frozenset[Role] = frozenset({"matrix", "out"})


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov 2019) on everything; norms, biases and scalars do not decay."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        _rates("adamw", lr=self.lr, weight_decay=self.weight_decay, eps=self.eps)
        _shares("adamw", betas=self.betas)


@dataclass(frozen=True)
class Muon:
    """Orthogonalised momentum for matrices (Jordan 2024); AdamW, with rates of its own, for the rest."""

    lr: float = 0.02
    momentum: float = 0.95
    weight_decay: float = 0.01
    embed_lr: float = 0.02  # after a minute of the default recipe 0.005 and 0.01 are 0.03 bits/byte worse
    head_lr: float = 0.005
    scalar_lr: float = 0.01
    betas: tuple[float, float] = (0.8, 0.95)
    eps: float = 1e-10

    def __post_init__(self) -> None:
        rates = {"lr": self.lr, "embed_lr": self.embed_lr, "head_lr": self.head_lr, "scalar_lr": self.scalar_lr}
        _rates("muon", **rates, weight_decay=self.weight_decay, eps=self.eps)
        _shares("muon", betas=self.betas, momentum=(self.momentum,))


def _rates(kind: str, **given: float) -> None:
    for name, value in given.items():
        if not 0 <= value < math.inf:
            raise TerakoyaError(f"{kind}.{name}", given=value, allowed="0 or more")


def _shares(kind: str, **given: tuple[float, ...]) -> None:
    for name, values in given.items():
        if not all(0 <= value < 1 for value in values):
            raise TerakoyaError(f"{kind}.{name}", given=values, allowed="0 or more, less than 1")


Optim = AdamW | Muon


class Stepping(Protocol):
    """What a step and a checkpoint ask of an optimiser."""

    names: dict[nn.Parameter, str]

    def zero(self) -> None: ...
    def step(self, factor: float) -> None: ...
    def state(self) -> dict[str, Tensor]: ...
    def load(self, state: Mapping[str, Tensor]) -> None: ...


class Optimizer:
    """One optimiser for the whole model; its state is a flat table of named tensors."""

    def __init__(self, model: nn.Module, plan: Optim, gains: Mapping[str, float] = MappingProxyType({})) -> None:
        """`gains` multiplies the AdamW rate of single parameters, by name."""
        self.plan, kinds = plan, roles(model)
        self.names = {p: name for name, p in model.named_parameters()}
        learned = [(kinds[n], p) for n, p in model.named_parameters() if p.requires_grad]
        gain = {p: gains.get(name, 1.0) for p, name in self.names.items()}
        if isinstance(plan, Muon):
            self.matrices = [p for role, p in learned if role in MATRICES]
            rates: dict[str, float] = {"embed": plan.embed_lr, "head": plan.head_lr}
            rest = [(rates.get(role, plan.scalar_lr) * gain[p], 0.0, p) for role, p in learned if role not in MATRICES]
        else:
            self.matrices = []
            rest = [(plan.lr * gain[p], plan.weight_decay if role in DECAYED else 0.0, p) for role, p in learned]
        self.momentum = {p: torch.zeros_like(p, memory_format=torch.preserve_format) for p in self.matrices}
        groups = [
            {"params": [p for rate, decay, p in rest if (rate, decay) == key], "lr": key[0], "weight_decay": key[1]}
            for key in sorted({(rate, decay) for rate, decay, _ in rest})
        ]
        self.peaks = [g["lr"] for g in groups]
        self.adam = torch.optim.AdamW(groups, betas=plan.betas, eps=plan.eps, fused=True) if groups else None
        if self.adam is not None:  # from the start, not from the first step, so that what is saved is always whole
            self.adam.state.update({p: _start(p) for _, _, p in rest})

    def step(self, factor: float) -> None:
        """Move every parameter along its gradient, at `factor` of the peak rates."""
        if self.adam is not None:
            for group, peak in zip(self.adam.param_groups, self.peaks, strict=True):
                group["lr"] = peak * factor
            self.adam.step()
        if isinstance(self.plan, Muon) and self.matrices:
            self._muon(self.plan, factor)

    @torch.no_grad()
    def _muon(self, plan: Muon, factor: float) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for p in self.matrices:
            if p.grad is None:
                continue
            m = self.momentum[p]
            m.lerp_(p.grad, 1 - plan.momentum)
            by_shape.setdefault(p.shape, []).append(p)
        for shape, params in by_shape.items():
            # Nesterov: look ahead along the new momentum
            stacked = torch.stack([p.grad.lerp(self.momentum[p], plan.momentum) for p in params if p.grad is not None])
            updates = orthogonalise(stacked.flatten(0, -3)).view_as(stacked)
            scale = plan.lr * factor * math.sqrt(max(1.0, shape[-2] / shape[-1]))
            for p, update in zip(params, updates, strict=True):
                p.mul_(1 - plan.lr * factor * plan.weight_decay).add_(update, alpha=-scale)

    def zero(self) -> None:
        """Forget the gradients."""
        for p in self.names:
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """Return every state tensor by "kind/parameter name"."""
        out = {f"momentum/{self.names[p]}": m for p, m in self.momentum.items()}
        if self.adam is not None:
            names = {p: n for p, n in self.names.items() if p in self.adam.state}
            out |= {f"{kind}/{n}": value for p, n in names.items() for kind, value in self.adam.state[p].items()}
        return out

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave; anything missing or left over is an error."""
        own = self.state()
        for problem, names in (("lacks", own.keys() - state.keys()), ("has no place for", state.keys() - own.keys())):
            if names:
                shown = ", ".join(sorted(names)[:4])
                raise TerakoyaError("optimizer state", f"{problem} {len(names)} tensors: {shown}")
        for name, tensor in own.items():
            if state[name].shape != tensor.shape:
                given, allowed = tuple(state[name].shape), tuple(tensor.shape)
                raise TerakoyaError(f"optimizer state: {name}", "has the wrong shape", given=given, allowed=allowed)
        for name, tensor in own.items():
            tensor.copy_(state[name])


def _start(p: Tensor) -> dict[str, Tensor]:
    zeros = (torch.zeros_like(p, memory_format=torch.preserve_format) for _ in range(2))
    return {"step": torch.zeros((), device=p.device), **dict(zip(("exp_avg", "exp_avg_sq"), zeros, strict=True))}


# Polar Express (Amsel 2025): the five quintics, each best for the interval of singular values the last one leaves.
QUINTICS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalise(g: Tensor) -> Tensor:
    """Replace each matrix by (nearly) the closest one with orthonormal rows or columns: g (N, R, C) -> (N, R, C)."""
    x = g.bfloat16() if g.is_cuda else g.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    for a, b, c in QUINTICS:
        gram = x @ x.mT
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, poly, x, beta=a)
    return (x.mT if tall else x).to(g.dtype)
