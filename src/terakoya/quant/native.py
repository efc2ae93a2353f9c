"""Packed weights as the native program takes them: blocks as GGUF files hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from terakoya.model.build import parameters
from terakoya.model.model import Model
from terakoya.ops.lower import GGUF_KINDS
from terakoya.ops.lower import Blocks as Rows
from terakoya.quant.blocks import Q4_1, Q8_0
from terakoya.quant.codecs import Blocks, Int4, Int8
from terakoya.quant.linear import Packed, PackedStacked, packed_layers

if TYPE_CHECKING:
    from collections.abc import Mapping

GROUP = 32


def program_parameters(model: Model) -> Mapping[str, Tensor | Rows]:
    """Return what `ops.lower` takes: packed weights without loss where its formats hold them, all others as numbers.

    int8 and int4 by 32 columns or a multiple, and all of GGUF's blocks that we read stay packed. Numbers are then
    packed as `lower` is told: say "int8" for weights that were nf4 or fp8. Experts become numbers.
    """
    out: dict[str, Tensor | Rows] = dict(parameters(model))
    for name, layer in packed_layers(model).items():
        found = None if isinstance(layer, PackedStacked) else blocks(layer)
        out[name] = layer.dense() if found is None else found
    return out


def blocks(layer: Packed) -> Rows | None:
    """Return a weight in blocks that stand for the same numbers; None where there are none such."""
    columns, parts = layer.shape[-1], layer.kept()
    if isinstance(layer.codec, Blocks):
        kind = layer.codec.block.id
        return Rows(parts["rows"], kind, columns) if kind in GGUF_KINDS else None
    if not isinstance(layer.codec, Int8 | Int4) or columns % GROUP or "order" in parts:
        return None
    scales = parts["scales"]
    count, groups = len(scales), columns // GROUP
    if (columns // scales.shape[1]) % GROUP or scales.dtype != torch.float16:
        return None
    times = groups // scales.shape[1]
    head = [_bytes(scales, times)]
    if isinstance(layer.codec, Int8):
        body, kind = parts["codes"].view(torch.uint8).view(count, groups, GROUP), Q8_0
    else:
        if parts["minima"].dtype != torch.float16:
            return None
        head.append(_bytes(parts["minima"], times))
        body, kind = _halves(parts["codes"].view(count, groups, GROUP // 2)), Q4_1
    return Rows(torch.cat([*head, body], -1).view(count, -1), kind.id, columns)


def _bytes(scales: Tensor, times: int) -> Tensor:
    """Repeat half-precision numbers: (N, G) -> (N, G · times, 2) uint8."""
    return scales.repeat_interleave(times, 1).contiguous().view(torch.uint8).view(len(scales), -1, 2)


def _halves(pairs: Tensor) -> Tensor:
    """Nibbles of neighbours become nibbles 16 apart: (..., 16) -> (..., 16)."""
    flat = torch.stack([pairs & 15, pairs >> 4], -1).flatten(-2)
    return flat[..., :16] | flat[..., 16:] << 4
