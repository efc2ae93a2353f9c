"""Small trainable parts on a frozen model: LoRA and its kin, by swapping the class of linear layers in place.

The base keeps its modules and the names of its weights. Every adapter is an addition to the output of a linear layer,
so several can sit side by side, and without any the layer is what it was, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.errors import TerakoyaError, nearest
from terakoya.model.build import generator
from terakoya.model.model import Model

LINEAR = ("q", "k", "v", "o", "gate", "up", "down")  # what the layers of a LLaMA are made of


@dataclass(frozen=True)
class Lora:
    """W x + s B A x with B, A of low rank (Hu 2021). A starts random and B at zero, so training starts at the base.

    `init = "pissa"` starts B A at the top singular parts of W, minus themselves (Meng 2024); `stabilised` scales by
    alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023); `ratio` is the rate of B over that of A (LoRA+, Hayou 2024: 16).
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ()  # last parts of layers' names, e.g. ["q", "v"]; empty: every linear layer
    init: Literal["zero", "pissa"] = "zero"
    stabilised: bool = False
    ratio: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rank", "alpha", "ratio"):
            if not 0 < getattr(self, name) < math.inf:
                raise TerakoyaError(f"adapter.{name}", given=getattr(self, name), allowed="more than 0")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.stabilised else self.rank)


@dataclass(frozen=True)
class Dora(Lora):
    """LoRA on the direction of each row of W, and a learned length of its own (Liu 2024)."""


@dataclass(frozen=True)
class IA3:
    """Learned factors on keys, values and the hidden channels of the MLP (Liu 2022)."""

    outputs: tuple[str, ...] = ("k", "v")  # layers whose output is scaled
    inputs: tuple[str, ...] = ("down",)  # layers whose input is scaled


@dataclass(frozen=True)
class Bias:
    """Train biases alone (BitFit, Ben Zaken 2021)."""


@dataclass(frozen=True)
class Top:
    """Train the last layers and the final norm; everything below is frozen."""

    layers: int = 2

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise TerakoyaError("adapter.layers", given=self.layers, allowed="1 or more")


@dataclass(frozen=True)
class Table:
    """Train the rows of tokens alone, those of a head of its own too: the first step after new tokens were added."""


Added = Lora | Dora | IA3
Adapter = Lora | Dora | IA3 | Bias | Top | Table


class LowRank(nn.Module):
    """s B A x: a (R, in), b (out, R). With `a0`, `b0` (PiSSA) it adds s (B A - B0 A0) x, which starts at zero."""

    def __init__(self, linear: nn.Linear, plan: Lora, name: str, seed: int) -> None:
        super().__init__()
        self.plan, self.scale = plan, plan.scale
        like: dict[str, Any] = {"device": where(linear), "dtype": floating(linear)}
        self.a0: Tensor | None
        self.b0: Tensor | None
        if plan.init == "pissa":
            a, b = (t.to(**like) for t in _principal(dense(linear), plan.rank, plan.scale))
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


class Decomposed(LowRank):
    """m (W + s B A) / |W + s B A| by rows; the length of a row is taken as a constant, as the paper does (§4.3)."""

    def __init__(self, linear: nn.Linear, plan: Lora, name: str, seed: int) -> None:
        super().__init__(linear, plan, name, seed)
        self.m = nn.Parameter((dense(linear) + self.product().detach()).norm(dim=1))

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


class Adapted:
    """Mixed in before a linear class: its output plus what the active adapters add."""

    adapters: nn.ModuleDict
    active: tuple[str, ...]

    def forward(self, input: Tensor) -> Tensor:
        """input (T, in) -> (T, out)."""
        y = super().forward(input)  # type: ignore[misc]
        total = y
        for name in self.active:
            part = cast("Part", self.adapters[name])
            total = total + part.delta(input, y, cast("nn.Linear", self))
        return total


class AdaptedLinear(Adapted, nn.Linear):
    """A plain linear layer with adapters."""


def dense(linear: nn.Linear) -> Tensor:
    """The weight as numbers, (out, in), whatever it is kept as."""
    unpack = getattr(linear, "dense", None)
    return unpack() if unpack else linear.weight.detach()


def floating(linear: nn.Linear) -> torch.dtype:
    """The type an adapter computes in."""
    return torch.float32 if hasattr(linear, "dense") else linear.weight.dtype


def where(linear: nn.Linear) -> torch.device:
    """The device a layer lies on."""
    return next(iter(linear.state_dict().values())).device


def _swapped(cls: type[nn.Linear]) -> type[nn.Linear]:
    return AdaptedLinear if cls is nn.Linear else type(f"Adapted{cls.__name__}", (Adapted, cls), {})


def layers(model: Model, wanted: Sequence[str] = ()) -> dict[str, nn.Linear]:
    """Return the linear layers of the blocks whose names end in `wanted` (empty: all), by name."""
    found = {
        f"layers.{n}": m for n, m in model.layers.named_modules() if isinstance(m, nn.Linear) and ".adapters." not in n
    }
    leaves = sorted({n.rpartition(".")[2] for n in found})
    for leaf in wanted:
        if leaf not in leaves:
            raise TerakoyaError("adapter.targets", given=leaf, allowed=leaves, hint=nearest(leaf, leaves))
    return {n: m for n, m in found.items() if not wanted or n.rpartition(".")[2] in wanted}


def add(model: Model, plan: Added, name: str = "default", *, seed: int = 0) -> None:
    """Freeze the model and put a trainable adapter on it; it is active at once, beside those that are."""
    if not name.isidentifier():
        raise TerakoyaError("adapter name", given=name, allowed="letters, digits and _")
    if name in names(model):
        raise TerakoyaError("adapter name", "is taken", given=name)
    model.requires_grad_(False)
    for path, linear in _targets(model, plan).items():
        attach(linear, name, part_of(linear, plan, path, seed))


def attach(linear: nn.Linear, name: str, part: Part) -> None:
    """Put one part on one layer, active."""
    if not isinstance(linear, Adapted):
        linear.__class__ = _swapped(type(linear))
        linear.adapters, linear.active = nn.ModuleDict(), ()  # type: ignore[assignment]
    layer = cast("Adapted", linear)
    layer.adapters[name] = part
    layer.active = (*layer.active, name)


def _targets(model: Model, plan: Added) -> dict[str, nn.Linear]:
    return layers(model, (*plan.outputs, *plan.inputs) if isinstance(plan, IA3) else plan.targets)


def part_of(linear: nn.Linear, plan: Added, path: str, seed: int) -> Part:
    """Make the part that `plan` puts on the layer at `path`."""
    match plan:
        case IA3():
            return Factors(linear, plan, path.rpartition(".")[2] in plan.inputs)
        case Dora():
            return Decomposed(linear, plan, path, seed)
        case Lora():
            return LowRank(linear, plan, path, seed)


def prepare(model: Model, plan: Adapter | None, *, seed: int = 0) -> None:
    """Freeze what `plan` does not train; None trains everything."""
    match plan:
        case None:
            model.requires_grad_(True)
        case Bias():
            for n, p in model.named_parameters():
                p.requires_grad_(n.endswith("bias"))
            if not any(p.requires_grad for p in model.parameters()):
                raise TerakoyaError("adapter", "this model has no biases to train", given="bias")
        case Table():
            for n, p in model.named_parameters():
                p.requires_grad_(n.startswith(("embed.token.", "head.")))
        case Top(count):
            last = {f"layers.{i}" for i in range(max(0, len(model.layers) - count), len(model.layers))} | {"norm"}
            for n, p in model.named_parameters():
                p.requires_grad_(".".join(n.split(".")[:2]) in last or n.split(".")[0] in last)
        case _:
            add(model, plan, seed=seed)


def adapted(model: Model) -> dict[str, Adapted]:
    """Return the layers that carry adapters, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Adapted)}


def names(model: Model) -> list[str]:
    """Return the names of the adapters on a model."""
    return sorted({n for m in adapted(model).values() for n in m.adapters})


def parts(model: Model, name: str = "default") -> dict[str, Part]:
    """Return one adapter's parts by the name of the layer they sit on."""
    found = {n: cast("Part", m.adapters[name]) for n, m in adapted(model).items() if name in m.adapters}
    if not found:
        known = names(model)
        raise TerakoyaError("adapter", "is not on this model", given=name, allowed=known, hint=nearest(name, known))
    return found


@contextmanager
def only(model: Model, *active: str) -> Iterator[None]:
    """Inside, just these adapters are active; none: the base alone."""
    for name in active:
        parts(model, name)
    touched = adapted(model).values()
    before = [m.active for m in touched]
    for m in touched:
        m.active = tuple(n for n in active if n in m.adapters)
    try:
        yield
    finally:
        for m, was in zip(touched, before, strict=True):
            m.active = was


def use(model: Model, *active: str) -> None:
    """Make just these adapters active, until told otherwise; none: the base alone."""
    for name in active:
        parts(model, name)
    for m in adapted(model).values():
        m.active = tuple(n for n in active if n in m.adapters)


def remove(model: Model, name: str = "default") -> None:
    """Take an adapter off; a layer without any is its old class again."""
    parts(model, name)
    for m in adapted(model).values():
        if name in m.adapters:
            del m.adapters[name]
            m.active = tuple(n for n in m.active if n != name)
        if not len(m.adapters):
            del m.adapters, m.active
            m.__class__ = type(m).__mro__[2]  # the class that Adapted was mixed into


@torch.no_grad()
def merge(model: Model, name: str = "default") -> None:
    """Add an adapter into the base weights and take it off; a layer whose weight is packed must be unpacked first."""
    for path, part in parts(model, name).items():
        linear = cast("nn.Linear", model.get_submodule(path))
        if hasattr(linear, "dense"):
            raise TerakoyaError(path, "is quantised: merge into the dense weights (quantised.unpack) instead")
        if isinstance(part, Decomposed | Factors):
            if isinstance(part, Factors) and not part.inputs and linear.bias is not None:
                linear.bias.mul_(part.l)
            linear.weight.copy_(part.merged(linear.weight))
        else:
            linear.weight.add_(part.product())
    remove(model, name)


def gains(model: Model) -> dict[str, float]:
    """Return the rate of each parameter relative to the recipe's, where it is not 1 (LoRA+)."""
    return {
        f"{path}.adapters.{name}.b": part.plan.ratio
        for name in names(model)
        for path, part in parts(model, name).items()
        if isinstance(part, LowRank) and part.plan.ratio != 1.0
    }


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that learn, by name."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def put(model: nn.Module, tensors: Mapping[str, Tensor], place: str) -> None:
    """Copy saved values into the parameters that learn; every name must be there, and no other."""
    own = trained(model)
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise TerakoyaError(place, f"holds other parameters than this model trains: {', '.join(odd[:4])}")
    with torch.no_grad():
        for n, p in own.items():
            p.copy_(tensors[n])


def _principal(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A (R, in) and B (out, R) with s B A the best approximation of `weight` (out, in) of this rank."""
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    sign = torch.where(u[:, :rank].sum(0) < 0, -1.0, 1.0)  # singular vectors have no sign of their own
    return root[:, None] * sign[:, None] * vh[:rank], u[:, :rank] * sign * root
