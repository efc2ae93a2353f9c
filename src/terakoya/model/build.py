"""Spec to module: build, initialise, count. Values depend on (seed, parameter name) alone, never on the order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from terakoya.model import spec
from terakoya.model.model import Model
from terakoya.model.norm import Norm
from terakoya.model.position import Biases

Role = Literal["embed", "head", "matrix", "out", "router", "norm", "bias", "scalar"]
"""What a parameter does: groups for optimisers, initialisation and parallel plans are all keyed by it."""

# Numbers of channels, in whatever shape.
SCALARS = frozenset("sinks u w decay mix_k mix_v mix_r turn read low write bonus".split())  # noqa: SIM905
ENTITIES = tuple(f"embed.entity.{name}" for name in ("token", "position", "segment"))
EMBEDS = ("embed.token", "embed.position", "embed.segment", "relative.table", *ENTITIES)


class Starts(Protocol):
    """A module whose parameters begin with values of their own; `draw(leaf)` gives a generator for one of them."""

    def start(self, draw: Callable[[str], torch.Generator]) -> None: ...


@dataclass(frozen=True)
class Init:
    """Starting values: normal with `std`, output projections scaled for depth or zero (Radford 2019; Yang 2022)."""

    std: float = 0.02
    embed_std: float | None = None  # None: std
    out: Literal["depth", "zero", "plain"] = "depth"  # depth: std / sqrt(2 * depth)


class _Unset(TorchFunctionMode):
    """Skip the values that layers start with: on the meta device they cost PyTorch two seconds of imports."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


def build(s: spec.Model, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """Build the module with unset values; `initialise` or load weights next."""
    with torch.device("meta"), _Unset():
        model = Model(s)
    model = model.to(dtype=dtype)
    if torch.device(device).type == "meta":
        return model
    model = model.to_empty(device=device)
    if s.head.tied and s.head.scores == "words":
        model.head.weight = model.embed.token.weight
    for buffer in model.buffers():
        buffer.zero_()
    return model


def stored(model: nn.Module) -> dict[str, Tensor]:
    """Return what a checkpoint holds, by name: every parameter once, and constants."""
    return parameters(model) | dict(model.named_buffers())


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter once, by name; a tied head is counted under the embedding."""
    return dict(model.named_parameters())


def count(s: spec.Model) -> int:
    """Return the exact number of parameters; equal layers are built once, on the meta device, and multiplied."""
    bare = _shallow(s, spec.Block(()), s.encoder and _shallow(s.encoder, spec.Block(()), None))
    return _numel(build(bare, device="meta")) + _layers(s) + (_layers(s.encoder) if s.encoder else 0)


def _shallow(s: spec.Model, block: spec.Block, encoder: spec.Model | None) -> spec.Model:
    return replace(s, depth=1, blocks=(block,), layout=None, share=None, encoder=encoder)


def _layers(s: spec.Model) -> int:
    """Count the parameters of all layers and of the position they have in common."""
    layers = s.layers()[: s.share or s.depth]
    empty = s.encoder and _shallow(s.encoder, spec.Block(()), None)
    made = {block: build(_shallow(s, block, empty), device="meta") for block in set(layers)}
    common = max((_numel(m.relative) for m in made.values() if m.relative is not None), default=0)
    return common + sum(layers.count(block) * _numel(m.layers) for block, m in made.items())


def _numel(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def roles(model: nn.Module) -> dict[str, Role]:
    """Return what each parameter does, by name."""
    norms = {n for n, m in model.named_modules() if isinstance(m, Norm)}
    return {name: _role(name, p, norms) for name, p in model.named_parameters()}


def _role(name: str, p: Tensor, norms: set[str]) -> Role:
    owner, _, leaf = name.rpartition(".")
    if owner in norms:
        return "norm"
    if owner == "token" or owner.endswith(EMBEDS):
        return "embed"
    if owner == "head":
        return "head" if leaf == "weight" else "bias"
    if leaf == "bias" or leaf.endswith("_bias"):
        return "bias"
    if p.dim() < 2 or leaf in SCALARS or owner.endswith((".conv", ".position", "relative")):
        return "scalar"
    if owner.endswith(".router") or owner.endswith(".shared_gate"):
        return "router"
    return "out" if owner.rpartition(".")[2] in ("o", "down") else "matrix"


@torch.no_grad()
def initialise(model: Model, seed: int, init: Init = Init()) -> Model:
    """Set every parameter from (seed, its name); returns the model."""
    kinds = roles(model)
    modules = dict(model.named_modules())
    for name, p in model.named_parameters():
        owner = modules[name.rpartition(".")[0]]
        if kinds[name] == "norm" and isinstance(owner, Norm):
            p.fill_(1.0 - owner.offset if name.endswith("weight") else 0.0)
        elif kinds[name] == "bias" or isinstance(owner, Biases):
            p.zero_()
        else:
            std = _std(kinds[name], init, model.spec)
            p.copy_(torch.randn(p.shape, generator=generator(seed, name)) * std) if std else p.zero_()
    for path, module in modules.items():
        if hasattr(module, "start"):
            cast(Starts, module).start(lambda leaf, path=path: generator(seed, f"{path}.{leaf}"))
    return model


def _std(role: Role, init: Init, s: spec.Model) -> float:
    if role == "out":
        return {"depth": init.std / math.sqrt(2 * s.depth), "zero": 0.0, "plain": init.std}[init.out]
    return init.embed_std if role == "embed" and init.embed_std is not None else init.std


def generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator keyed by (seed, name)."""
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
