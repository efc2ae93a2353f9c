"""Keys and values in eight bits: for every position and head its numbers, and one scale beside them.

Half the memory of float16. What is read is what was stored, in the step that writes it too, so answers do not depend
on how a prompt was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from terakoya.engine.store import Shape
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.ops.attend import Bias, Look

Kept = Literal["full", "int8", "fp8"]
"""`full`: as they are computed; `int8`: 127 equal steps either way; `fp8`: e4m3, finer near zero."""
MOST = {"int8": 127.0, "fp8": 448.0}
LEAST = 1e-7  # below half precision's smallest number: the scale of nothing


def checked(kept: str) -> Kept:
    """Return the word if it is one of ours."""
    if kept not in get_args(Kept):
        raise TerakoyaError("kept", given=kept, allowed=get_args(Kept))
    return kept  # type: ignore[return-value]


def compact(shape: Shape, kept: Kept) -> Shape:
    """Return what an attention layer stores: codes of keys and values (G, K), (G, V), then their scales (G,), (G,)."""
    keys = len(shape.sizes) == 2 and all(len(size) == 2 for size in shape.sizes)
    if kept == "full" or shape.reach is None or not keys:
        return shape
    code = torch.int8 if kept == "int8" else torch.uint8
    sizes = (*shape.sizes, *(size[:1] for size in shape.sizes))
    return replace(shape, sizes=sizes, dtypes=(code, code, torch.float16, torch.float16))


def encode(x: Tensor, code: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return codes and scales: x (T, G, K) -> (T, G, K), (T, G)."""
    kind: Kept = "int8" if code == torch.int8 else "fp8"
    scale = (x.abs().amax(-1) / MOST[kind]).clamp(min=LEAST).half()
    steps = (x.float() / scale.float()[..., None]).clamp(-MOST[kind], MOST[kind])
    return (steps.round().to(code) if kind == "int8" else steps.to(torch.float8_e4m3fn).view(code)), scale


def decode(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers: codes (..., G, K), scale (..., G) -> (..., G, K)."""
    steps = codes if codes.dtype == torch.int8 else codes.view(torch.float8_e4m3fn)
    return (steps.float() * scale.float()[..., None]).to(dtype)


def write(memory: Sequence[Tensor], rows: Tensor, k: Tensor, v: Tensor) -> None:
    """Put keys and values (T, G, …) into the rows (T,) of a layer's memory."""
    if len(memory) == 2:
        parts: Sequence[Tensor] = (k, v)
    else:
        (a, c), (b, d) = encode(k, memory[0].dtype), encode(v, memory[1].dtype)
        parts = (a, b, c, d)
    for t, part in zip(memory, parts, strict=True):
        t.index_copy_(0, rows, part)


class Rounded(Packed):
    """Whole sequences side by side that read their keys and values as compact memory gives them back: to score."""

    def __init__(self, lengths: Sequence[int], device: torch.device | str | None = None, kept: Kept = "int8") -> None:
        super().__init__(lengths, device)
        self.code = torch.int8 if checked(kept) == "int8" else torch.uint8

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look, bias: Bias | None, sinks: Tensor | None
    ) -> Tensor:
        k, v = (decode(*encode(t, self.code), t.dtype) for t in (k, v))
        return super().attend(layer, q, k, v, look, bias, sinks)
