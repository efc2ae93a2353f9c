"""Feed-forward layers: MLP, gated MLP, mixture of experts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.model import spec
from terakoya.model.context import Context
from terakoya.model.norm import Norm

ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def gate_by(act: str, gate: Tensor, up: Tensor) -> Tensor:
    """Return act(gate) * up; gpt-oss clamps both and adds one to up: (..., F), (..., F) -> (..., F)."""
    if act == "swiglu_clamped":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)
    return ACTS[act](gate) * up


class MLP(nn.Module):
    """down(act(up(x))) or down(act(gate(x)) * up(x))."""

    def __init__(self, s: spec.MLP, dim: int) -> None:
        super().__init__()
        self.spec = s
        self.gate = nn.Linear(dim, s.hidden, bias=s.bias) if s.gated else None
        self.up = nn.Linear(dim, s.hidden, bias=s.bias)
        self.norm = Norm(s.norm, s.hidden) if s.norm else None
        self.down = nn.Linear(s.hidden, dim, bias=s.bias)

    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """Transform each token: x (T, D) -> (T, D)."""
        if self.gate is not None:
            h = gate_by(self.spec.act, self.gate(x), self.up(x))
        else:
            h = ACTS[self.spec.act](self.up(x))
        return self.down(h if self.norm is None else self.norm(h))


class Stacked(nn.Module):
    """E linear layers in one tensor (E, out, in)."""

    def __init__(self, count: int, inner: int, outer: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, outer, inner))
        self.bias = nn.Parameter(torch.empty(count, outer)) if bias else None

    def forward(self, x: Tensor, expert: int) -> Tensor:
        """Apply one of them: x (T, in) -> (T, out)."""
        return F.linear(x, self.weight[expert], None if self.bias is None else self.bias[expert])


class Experts(nn.Module):
    """E MLPs of one shape."""

    def __init__(self, s: spec.MLP, dim: int, count: int) -> None:
        super().__init__()
        self.spec = s
        self.gate = Stacked(count, dim, s.hidden, s.bias) if s.gated else None
        self.up = Stacked(count, dim, s.hidden, s.bias)
        self.down = Stacked(count, s.hidden, dim, s.bias)

    def forward(self, x: Tensor, expert: int) -> Tensor:
        """Apply one of them: x (T, D) -> (T, D)."""
        up = self.up(x, expert)
        h = gate_by(self.spec.act, self.gate(x, expert), up) if self.gate is not None else ACTS[self.spec.act](up)
        return self.down(h, expert)


class MoE(nn.Module):
    """sum over the chosen experts of weight * expert(x), plus the shared one (Shazeer 2017; DeepSeek 2024)."""

    def __init__(self, s: spec.MoE, dim: int) -> None:
        super().__init__()
        self.spec = s
        self.router = nn.Linear(dim, s.count, bias=s.router_bias)
        self.experts = Experts(s.expert, dim, s.count)
        self.choice_bias = nn.Parameter(torch.zeros(s.count), requires_grad=False) if s.choice_bias else None
        self.shared = MLP(s.shared, dim) if s.shared else None
        self.shared_gate = nn.Linear(dim, 1, bias=False) if s.shared_gate else None

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Choose experts and their weights: x (T, D) -> (T, top_k), (T, top_k) indices."""
        s = self.spec
        logits = self.router(x)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        scores = logits.sigmoid() if s.score == "sigmoid" else logits
        scores = logits.softmax(-1) if s.score == "softmax" else scores
        choice = scores if self.choice_bias is None else scores + self.choice_bias
        if s.groups:
            choice = _keep_groups(choice, s.groups)
        chosen = choice.topk(s.top_k, -1).indices
        weights = scores.gather(-1, chosen)
        if s.score == "softmax_topk":
            weights = weights.softmax(-1)
        if s.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + (1e-20 if s.score == "sigmoid" else 0.0))
        return weights * s.scale, chosen

    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """Transform each token by its experts: x (T, D) -> (T, D)."""
        weights, chosen = self.route(x)
        if self.spec.capacity and ctx is not None:
            weights = weights * _within(chosen, ctx.cu, self.spec.count, self.spec.capacity)
        y = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            token, slot = torch.where(chosen == expert)
            w = weights[token, slot, None].to(x.dtype)
            part = x[token]
            part = self.experts(part * w, expert) if self.spec.scale_input else self.experts(part, expert) * w
            y = y.index_add(0, token, part)
        if self.shared is not None:
            z = self.shared(x)
            y = y + (torch.sigmoid(self.shared_gate(x)) * z if self.shared_gate is not None else z)
        return y


def _within(chosen: Tensor, cu: list[int], count: int, capacity: int) -> Tensor:
    """Tell which tokens come early enough to their expert, sequence by sequence: chosen (T, 1) -> (T, 1) of 0 and 1."""
    asked = F.one_hot(chosen[:, 0], count)
    rank = torch.cat([asked[a:b].cumsum(0) for a, b in pairwise(cu)])  # (T, E)
    return rank.gather(1, chosen) <= capacity


def _keep_groups(choice: Tensor, groups: spec.Groups) -> Tensor:
    """Mask all but the best groups of experts: (T, E) -> (T, E)."""
    g = choice.unflatten(-1, (groups.count, -1))
    score = g.amax(-1) if groups.by == "max" else g.topk(2, -1).values.sum(-1)
    keep = torch.zeros_like(score, dtype=torch.bool).scatter(-1, score.topk(groups.keep, -1).indices, True)
    return g.masked_fill(~keep[..., None], 0.0 if groups.by == "max" else float("-inf")).flatten(-2)
