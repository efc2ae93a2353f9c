"""Layers whose weight is kept packed and turned into numbers as it is used: the same modules under the same names.

`quantise(model, codec)` swaps the classes of linear layers, experts, token table and head in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.build import build
from terakoya.model.ffn import Stacked
from terakoya.model.model import Head, Model
from terakoya.quant.codecs import Codec, Int8, Parts

PREFIX = "packed_"  # of the buffers that hold the parts
KEPT = ("router", "shared_gate")  # small, and what they choose must not change
TABLE, HEAD = "embed.token.weight", "head.weight"
Held = tuple[Codec, Parts]
FINE = Int8()


class Packed(nn.Module):
    """What packed layers have in common: `shape` of the weight, its codec, its parts as buffers.

    `product`: how a linear layer multiplies without making numbers of its weight (see `quant.fused`).
    """

    codec: Codec
    shape: tuple[int, ...]
    product: Callable[[Tensor, Packed], Tensor | None] | None = None

    def kept(self) -> dict[str, Tensor]:
        """Return the parts by name."""
        return {n.removeprefix(PREFIX): t for n, t in self._buffers.items() if n.startswith(PREFIX) and t is not None}

    def dense(self, rows: Tensor | slice | None = None) -> Tensor:
        """Return the weight as numbers, or some rows of it: float32."""
        whole = self.codec.decode(self.kept(), self.shape[-1], rows)
        return whole.view(self.shape) if rows is None else whole

    @property
    def weight(self) -> Tensor:
        return self.dense()


class _Product(torch.autograd.Function):
    """x W^T that keeps only the packed weight for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Packed, shift: Tensor | None) -> Tensor:
        ctx.layer = layer
        if layer.product is not None and (y := layer.product(x, layer)) is not None:
            return y if shift is None else y + shift
        return F.linear(x, layer.dense().to(x.dtype), shift)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        shift = grad.sum(0) if ctx.needs_input_grad[2] else None
        return grad @ ctx.layer.dense().to(grad.dtype), None, shift


class PackedLinear(Packed, nn.Linear):  # type: ignore[misc]
    """A linear layer on a packed, frozen weight."""

    def forward(self, input: Tensor) -> Tensor:
        """input (T, in) -> (T, out)."""
        return _Product.apply(input, self, self.bias)  # type: ignore[return-value]


class PackedEmbedding(Packed, nn.Embedding):  # type: ignore[misc]
    """A token table: only the rows that are asked for become numbers."""

    def forward(self, input: Tensor) -> Tensor:
        """input (T,) -> (T, width)."""
        return self.dense(input)


class PackedStacked(Packed, Stacked):  # type: ignore[misc]
    """E linear layers in one packed tensor."""

    def forward(self, x: Tensor, expert: int) -> Tensor:
        """Apply one of them: x (T, in) -> (T, out)."""
        high = self.shape[1]
        weight = self.dense(slice(expert * high, (expert + 1) * high)).to(x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias[expert])


class PackedHead(Packed, Head):  # type: ignore[misc]
    """Logits from a packed table, its own or (tied) the embedding's."""

    _table: tuple[Packed, ...]  # in a tuple, so that it is no child of this module

    def dense(self, rows: Tensor | slice | None = None) -> Tensor:
        return self._table[0].dense(rows) if self._table else super().dense(rows)


SWAPS: dict[type[nn.Module], type[Packed]] = {
    nn.Linear: PackedLinear,
    nn.Embedding: PackedEmbedding,
    Stacked: PackedStacked,
    Head: PackedHead,
}


def quantise(model: Model, codec: Codec, *, table: Codec | None = FINE) -> Model:
    """Pack the weights of a model in place; `table`: how token table and head are kept (None: as they are).

    Routers, norms, biases and positions stay numbers. What is packed already stays as it is. Raise TerakoyaError,
    naming the layer, where rows do not fit the codec; layers before it are then packed.
    """
    for name, module in list(linears(model)):
        _encode(name, module, codec)
    if table is not None and not isinstance(model.embed.token, Packed):
        if all(n.startswith(("embed.token", HEAD)) for n, _ in model.named_parameters()):
            raise TerakoyaError("quantise", "would leave no number unpacked", hint="keep the token table as it is")
        own = not tied(model)
        if not own:
            del model.head.weight
        _encode("embed.token", model.embed.token, table)
        if not own:
            _tie(model)
        elif model.head.weight is not None and len(model.head.weight) > 1:
            _encode("head", model.head, table)
    return model


def tied(model: Model) -> bool:
    """Say whether the head scores by the token table."""
    return model.head.weight is model.embed.token.weight


def _tie(model: Model) -> None:
    head = _swap(model.head)
    assert isinstance(head, PackedHead) and isinstance(model.embed.token, Packed)
    head._table = (model.embed.token,)


def linears(model: Model) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of the blocks whose weights are worth packing and are not packed yet, by name."""
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        inside = name.startswith("layers.") or ".layers." in name
        if inside and type(module) in (nn.Linear, Stacked) and leaf not in KEPT and ".position" not in name:
            yield name, module


def _encode(name: str, module: nn.Module, codec: Codec) -> None:
    weight: Tensor = module.weight  # type: ignore[assignment]
    try:
        parts = codec.encode(weight.detach().reshape(-1, weight.shape[-1]))
    except TerakoyaError as error:
        raise TerakoyaError(name, str(error)) from None
    put(module, codec, parts)


def put(module: nn.Module, codec: Codec, parts: Parts) -> None:
    """Give a layer parts in the place of its weight (a packed one: other parts)."""
    if not isinstance(module, Packed):
        shape = tuple(module.weight.shape)  # type: ignore[union-attr, arg-type]
        del module.weight
        _swap(module).shape = shape
    assert isinstance(module, Packed)
    for name in module.kept():
        del module._buffers[PREFIX + name]
    module.codec = codec
    for name, tensor in parts.items():
        module.register_buffer(PREFIX + name, tensor)


def _swap(module: nn.Module) -> Packed:
    module.__class__ = SWAPS[type(module)]
    assert isinstance(module, Packed)
    if isinstance(module, PackedHead):
        module._table = ()
    return module


def packed_layers(model: nn.Module) -> dict[str, Packed]:
    """Return the packed layers by the name of their weight; a tied head is counted under the token table."""
    found = {f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, Packed)}
    return {name: m for name, m in found.items() if m.kept()}


def shell(s: spec.Model, held: Mapping[str, Held], *, device: str, dtype: torch.dtype) -> Model:
    """Build a model whose weights in `held` (by the names of parameters) are packed; the others have unset values."""
    model = build(s, device="meta", dtype=dtype)
    if one := TABLE in held and tied(model):
        del model.head.weight
    for name, (codec, parts) in held.items():
        put(model.get_submodule(name.removesuffix(".weight")), codec, {n: t.to(device) for n, t in parts.items()})
    if one:
        _tie(model)
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None and p.is_meta:
                # not empty_like: of a meta tensor it imports sympy, half a second
                space = torch.empty(p.shape, dtype=p.dtype, device=device)
                fresh = made.setdefault(id(p), nn.Parameter(space, p.requires_grad))
                module._parameters[name] = fresh
        for name, t in module._buffers.items():
            if t is not None and t.is_meta:
                module._buffers[name] = torch.zeros(t.shape, dtype=t.dtype, device=device)
    return model


def unpacked(model: Model) -> Model:
    """Return a plain model that computes the same; weights that are numbers already are shared, not copied."""
    tensors = {n: t.detach() for n, t in model.state_dict().items() if f".{PREFIX}" not in n}
    tensors |= {name: layer.dense() for name, layer in packed_layers(model).items()}
    plain = build(model.spec, device="meta")
    if one := tied(plain):
        tensors[HEAD] = tensors[TABLE]
    plain.load_state_dict(tensors, assign=True)
    if one:
        plain.head.weight = plain.embed.token.weight
    return plain.requires_grad_(False)


def nbytes(model: nn.Module) -> int:
    """Bytes that parameters and buffers take, shared ones once."""
    both = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in {t.data_ptr(): t for t in both}.values())
