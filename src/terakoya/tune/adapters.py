"""Small trainable parts on a frozen model: LoRA and its kin, by swapping the class of linear layers in place.

The base keeps its modules and the names of its weights. What sits on a linear layer is an addition to its output, so
several can sit side by side, and without any the layer is what it was, to the bit. What stands before a text (prefix,
prompt, P-tuning) sits on the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from terakoya.errors import TerakoyaError, nearest
from terakoya.model.context import Context
from terakoya.model.ffn import Stacked
from terakoya.model.model import Model
from terakoya.tune import ahead
from terakoya.tune.ahead import Virtual
from terakoya.tune.parts import Decomposed, Factors, LowRank, Part, Triplets
from terakoya.tune.plans import (
    IA3,
    AdaLora,
    Adapter,
    Added,
    Bias,
    Dora,
    Lora,
    Prefix,
    Prompt,
    PTuning,
    Table,
    Top,
)

LINEAR = ("q", "k", "v", "o", "gate", "up", "down")  # what the layers of a LLaMA are made of
UNMERGEABLE = "stands before the text and cannot be merged into weights; keep it beside the base"


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


class Led(Adapted):
    """Mixed in before a model: what the active adapters put before every text is read first."""

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:  # type: ignore[override]
        """tokens (T,) -> (T, D), as without them."""
        found = [cast("Virtual", self.adapters[name]) for name in self.active]
        whole = super(Adapted, self).forward  # type: ignore[misc]
        return ahead.read(cast("Model", self), whole, found, tokens, ctx) if found else whole(tokens, ctx)


def _swapped(cls: type[Any]) -> type[Any]:
    if issubclass(cls, Model):
        return type(f"Led{cls.__name__}", (Led, cls), {})
    return AdaptedLinear if cls is nn.Linear else type(f"Adapted{cls.__name__}", (Adapted, cls), {})


def layers(model: Model, wanted: Sequence[str] = (), field: str = "targets") -> dict[str, nn.Linear]:
    """Return the linear layers of the blocks whose names end in `wanted` (empty: all), by name; `field` named them."""
    found = {
        f"layers.{n}": m for n, m in model.layers.named_modules() if isinstance(m, nn.Linear) and ".adapters." not in n
    }
    leaves = sorted({n.rpartition(".")[2] for n in found})
    for leaf in wanted:
        if leaf not in leaves:
            raise TerakoyaError(f"adapter.{field}", given=leaf, allowed=leaves, hint=nearest(leaf, leaves))
    return {n: m for n, m in found.items() if not wanted or n.rpartition(".")[2] in wanted}


def passed_over(model: Model) -> int:
    """Return how many parameters lie in stacks of experts, which no adapter sits on."""
    return sum(p.numel() for m in model.modules() if isinstance(m, Stacked) for p in m.parameters())


def add(model: Model, plan: Added, name: str = "default", *, seed: int = 0) -> None:
    """Freeze the model and put a trainable adapter on it; it is active at once, beside those that are."""
    if not name.isidentifier():
        raise TerakoyaError("adapter name", given=name, allowed="letters, digits and _")
    if name in names(model):
        raise TerakoyaError("adapter name", "is taken", given=name)
    if isinstance(plan, Prefix | Prompt | PTuning):
        with only(model):
            part = ahead.virtual(model, plan, seed)
        model.requires_grad_(False)
        attach(model, name, part)
        return
    model.requires_grad_(False)
    for path, linear in _targets(model, plan).items():
        attach(linear, name, part_of(linear, plan, path, seed))


def attach(holder: nn.Linear | Model, name: str, part: Part | Virtual) -> None:
    """Put one part on one layer (what stands before a text: on the model), active."""
    if not isinstance(holder, Adapted):
        holder.__class__ = _swapped(type(holder))
        holder.adapters, holder.active = nn.ModuleDict(), ()  # type: ignore[assignment]
    layer = cast("Adapted", holder)
    mesh = getattr(getattr(holder, "weight", None), "device_mesh", None)
    if mesh is not None:  # the layer is tensor-parallel: the part lies whole on every rank, and torch cuts what it adds
        from torch.distributed.tensor import distribute_module

        distribute_module(part, mesh)
    layer.adapters[name] = part
    layer.active = (*layer.active, name)


def _targets(model: Model, plan: Lora | AdaLora | IA3) -> dict[str, nn.Linear]:
    if not isinstance(plan, IA3):
        return layers(model, plan.targets)
    if not plan.outputs and not plan.inputs:
        raise TerakoyaError("adapter", "names no layer in outputs or inputs", given="ia3")
    named = {
        field: layers(model, getattr(plan, field), field) for field in ("outputs", "inputs") if getattr(plan, field)
    }
    return {n: m for n, m in layers(model).items() if any(n in some for some in named.values())}


def part_of(linear: nn.Linear, plan: Lora | AdaLora | IA3, path: str, seed: int) -> Part:
    """Make the part that `plan` puts on the layer at `path`."""
    match plan:
        case IA3():
            return Factors(linear, plan, path.rpartition(".")[2] in plan.inputs)
        case AdaLora():
            return Triplets(linear, plan, path, seed)
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
    """Return one adapter's parts by the name of the layer they sit on; none where it stands before the text."""
    found = {n: m.adapters[name] for n, m in adapted(model).items() if name in m.adapters}
    if not found:
        known = names(model)
        raise TerakoyaError("adapter", "is not on this model", given=name, allowed=known, hint=nearest(name, known))
    return {n: cast("Part", p) for n, p in found.items() if not isinstance(p, Virtual)}


def virtual(model: Model, name: str = "default") -> Virtual | None:
    """Return what an adapter puts before every text, if that is what it does."""
    found = model.adapters[name] if isinstance(model, Led) and name in model.adapters else None
    return cast("Virtual | None", found)


def lead(model: Model) -> int:
    """Return how many positions before a text the active adapters take."""
    if not isinstance(model, Led):
        return 0
    return sum(cast("Virtual", model.adapters[name]).count for name in model.active)


def mergeable(model: Model) -> bool:
    """Say whether what the active adapters do can be had from weights alone."""
    return not lead(model)


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
            m.__class__ = next(c for c in type(m).__mro__ if not issubclass(c, Adapted))


@torch.no_grad()
def merge(model: Model, name: str = "default") -> None:
    """Add an adapter into the base weights and take it off; a layer whose weight is packed must be unpacked first."""
    if virtual(model, name) is not None:
        raise TerakoyaError("adapter", UNMERGEABLE, given=name)
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
        if isinstance(part, LowRank) and isinstance(part.plan, Lora) and part.plan.ratio != 1.0
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
