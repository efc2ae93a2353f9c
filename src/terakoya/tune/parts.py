"""What adapters put on one linear layer: each adds something to its output."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.errors import TerakoyaError
from terakoya.model.build import generator
from terakoya.tune.plans import IA3, AdaLora, Lora


class LowRank(nn.Module):
    """s B A x: a (R, in), b (out, R). With `a0`, `b0` (PiSSA) it adds s (B A - B0 A0) x, which starts at zero."""

    def __init__(self, linear: nn.Linear, plan: Lora | AdaLora, name: str, seed: int) -> None:
        super().__init__()
        self.plan, self.scale = plan, plan.scale
        self.a0: Tensor | None
        self.b0: Tensor | None
        like: dict[str, Any] = {"device": where(linear), "dtype": floating(linear)}
        if isinstance(plan, Lora) and plan.init == "pissa":
            if plan.rank > (most := min(linear.in_features, linear.out_features)):
                raise TerakoyaError(
                    "adapter.rank", given=plan.rank, allowed=f"at most {most} with init = pissa: {name}"
                )
            a, b = (t.to(**like).contiguous() for t in _principal(gathered(linear), plan.rank, plan.scale))
            self.register_buffer("a0", a.clone())
            self.register_buffer("b0", b.clone())
        else:
            bound = 1 / math.sqrt(linear.in_features)  # kaiming with a = sqrt(5), as peft starts
            a = torch.rand(plan.rank, linear.in_features, generator=generator(seed, f"{name}.a"))
            a = (a * 2 * bound - bound).to(**like)
            b = torch.zeros(linear.out_features, plan.rank, **like)
            self.a0 = self.b0 = None
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def delta(self, x: Tensor, y: Tensor, linear: nn.Linear) -> Tensor:
        """What it adds to y = linear(x): (T, in), (T, out) -> (T, out)."""
        a, b = self.whole()
        return F.linear(F.linear(x, a), b) * self.scale

    def whole(self) -> tuple[Tensor, Tensor]:
        """A and B of one plain LoRA that does the same; PiSSA's has twice the rank."""
        if self.a0 is None or self.b0 is None:
            return self.a, self.b
        return torch.cat([self.a, self.a0]), torch.cat([self.b, -self.b0], 1)

    def product(self) -> Tensor:
        """s B A: (out, in)."""
        a, b = self.whole()
        return self.scale * (b @ a)


class Triplets(LowRank):
    """s P Λ Q x: b (out, R) is P, e (R,) the diagonal of Λ, a (R, in) is Q. Λ starts at zero."""

    def __init__(self, linear: nn.Linear, plan: AdaLora, name: str, seed: int) -> None:
        super().__init__(linear, plan, name, seed)
        with torch.no_grad():
            for part, p in (("a", self.a), ("b", self.b)):
                p.copy_(torch.randn(p.shape, generator=generator(seed, f"{name}.{part}")) * 0.02)
        self.e = nn.Parameter(torch.zeros(plan.rank, device=self.a.device, dtype=self.a.dtype))

    def whole(self) -> tuple[Tensor, Tensor]:
        return self.a * self.e[:, None], self.b

    def skew(self) -> Tensor:
        """How far P and Q are from orthogonal: ‖QQᵀ - I‖ + ‖PᵀP - I‖ (Frobenius; Zhang 2023, eq. 4) -> ()."""
        one = torch.eye(len(self.e), device=self.a.device, dtype=self.a.dtype)
        return (self.a @ self.a.T - one).norm() + (self.b.T @ self.b - one).norm()


class Decomposed(LowRank):
    """m (W + s B A) / |W + s B A| by rows; the length of a row is taken as a constant, as the paper does (§4.3)."""

    def __init__(self, linear: nn.Linear, plan: Lora, name: str, seed: int) -> None:
        super().__init__(linear, plan, name, seed)
        self.m = nn.Parameter((gathered(linear) + self.product().detach()).norm(dim=1))

    def delta(self, x: Tensor, y: Tensor, linear: nn.Linear) -> Tensor:
        factor = self._factor(dense(linear))
        plain = y if linear.bias is None else y - linear.bias
        return (factor - 1) * plain + factor * super().delta(x, y, linear)

    def _factor(self, weight: Tensor) -> Tensor:
        return self.m / (weight + self.product().detach()).norm(dim=1).detach()

    def merged(self, weight: Tensor) -> Tensor:
        """The one weight that does the same."""
        return self._factor(weight)[:, None] * (weight + self.product())


class Factors(nn.Module):
    """Scale the input or the output of a layer, channel by channel."""

    def __init__(self, linear: nn.Linear, plan: IA3, inputs: bool) -> None:
        super().__init__()
        self.plan, self.inputs = plan, inputs
        size = linear.in_features if inputs else linear.out_features
        self.l = nn.Parameter(torch.ones(size, device=where(linear), dtype=floating(linear)))

    def delta(self, x: Tensor, y: Tensor, linear: nn.Linear) -> Tensor:
        return F.linear(x * (self.l - 1), dense(linear)) if self.inputs else y * (self.l - 1)

    def merged(self, weight: Tensor) -> Tensor:
        return weight * (self.l[None, :] if self.inputs else self.l[:, None])


Part = LowRank | Factors


def dense(linear: nn.Linear) -> Tensor:
    """The weight as numbers, (out, in), whatever it is kept as."""
    unpack = getattr(linear, "dense", None)
    return unpack() if unpack else linear.weight.detach()


def gathered(linear: nn.Linear) -> Tensor:
    """The weight as numbers, all of it, also where tensor parallelism has left a part of it here."""
    weight = dense(linear)
    gather = getattr(weight, "full_tensor", None)  # a DTensor's
    return gather() if gather else weight


def floating(linear: nn.Linear) -> torch.dtype:
    """The type an adapter computes in."""
    return torch.float32 if hasattr(linear, "dense") else linear.weight.dtype


def where(linear: nn.Linear) -> torch.device:
    """The device a layer lies on."""
    return next(iter(linear.state_dict().values())).device


def _principal(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A (R, in) and B (out, R) with s B A the best approximation of `weight` (out, in) of this rank."""
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    sign = torch.where(u[:, :rank].sum(0) < 0, -1.0, 1.0)  # singular vectors have no sign of their own
    return root[:, None] * sign[:, None] * vh[:rank], u[:, :rank] * sign * root
