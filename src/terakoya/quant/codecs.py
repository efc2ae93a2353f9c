"""How a weight is kept in fewer bits: small frozen classes, each a pair of `encode` and `decode`.

A codec turns a weight (N, K) into named tensors and back. Every tensor but those in `SHARED` has a row for each row of
the weight, so rows can be cut, joined and reordered without decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from terakoya.errors import TerakoyaError, nearest
from terakoya.quant import nf4
from terakoya.quant.blocks import BLOCKS, BlockType, dequantise
from terakoya.quant.encode import ENCODED, quantise

Parts = Mapping[str, Tensor]
LEAST = 1e-12  # no scale is smaller
SHARED = ("order", "step", "mean")  # parts without a row for each row of the weight


@dataclass(frozen=True)
class Codec:
    """What all have in common."""

    kind: ClassVar[str]

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the parts of a weight (N, K); raise TerakoyaError where its rows do not fit."""
        raise NotImplementedError

    def decode(self, parts: Parts, columns: int, rows: Tensor | slice | None = None) -> Tensor:
        """Return the numbers, or some rows of them: -> (N, K) float32."""
        raise NotImplementedError

    def sizes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parts of a weight (rows, columns)."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.kind

    def data(self) -> dict[str, Any]:
        """Return what `from_data` makes the same codec of."""
        return {"kind": self.kind} | asdict(self)


@dataclass(frozen=True)
class Int8(Codec):
    """w = scale · q, q from -127 to 127, a scale for every `group` columns (0: for the whole row)."""

    group: int = 32
    kind: ClassVar[str] = "int8"

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        grouped = _grouped(weight, self.group)
        scales = self.scales(grouped)
        codes = (grouped / scales.float().clamp(min=LEAST)[..., None]).round().clamp(-127, 127)
        return self.parts(codes.flatten(1), scales)

    def scales(self, grouped: Tensor) -> Tensor:
        """Return the finest scales that reach every number: grouped (N, G, group) -> (N, G)."""
        return _half(grouped.abs().amax(-1) / 127)

    def parts(self, codes: Tensor, scales: Tensor) -> dict[str, Tensor]:
        """Name what is kept: codes (N, K) in -127..127."""
        return {"codes": codes.to(torch.int8), "scales": scales}

    def decode(self, parts: Parts, columns: int, rows: Tensor | slice | None = None) -> Tensor:
        codes, scales = _rows(parts, rows, "codes", "scales")
        return (codes.float().unflatten(-1, (scales.shape[-1], -1)) * scales.float()[..., None]).flatten(-2)

    def sizes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {"codes": (rows, columns), "scales": (rows, columns // (self.group or columns))}

    def __str__(self) -> str:
        return f"int8 by {self.group or 'row'}"


@dataclass(frozen=True)
class Int4(Codec):
    """w = scale · q + minimum, q from 0 to 15, both numbers for every `group` columns (0: for the whole row).

    Codes lie two a byte, the even column in the low half. A part `order` (K,) says where column i of the codes belongs
    (GPTQ's g_idx); without it they lie as the weight does.
    """

    group: int = 32
    kind: ClassVar[str] = "int4"

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        grouped = _grouped(weight, self.group)
        return self.rounded(grouped, *grid(grouped))

    def rounded(self, grouped: Tensor, scales: Tensor, minima: Tensor) -> dict[str, Tensor]:
        """Round to a given grid: grouped (N, G, group), scales and minima (N, G)."""
        return self.parts(codes_on(grouped, scales, minima).flatten(1), scales, minima)

    def parts(self, codes: Tensor, scales: Tensor, minima: Tensor) -> dict[str, Tensor]:
        """Put codes (N, K) in 0..15 two a byte."""
        small = codes.to(torch.uint8)
        return {"codes": small[:, 0::2] | small[:, 1::2] << 4, "scales": scales, "minima": minima}

    def decode(self, parts: Parts, columns: int, rows: Tensor | slice | None = None) -> Tensor:
        codes, scales, minima = _rows(parts, rows, "codes", "scales", "minima")
        levels = F.embedding(codes.int(), _nibbles().to(codes.device)).flatten(-2)
        grouped = levels.unflatten(-1, (scales.shape[-1], -1))
        out = torch.addcmul(minima.float()[..., None], grouped, scales.float()[..., None]).flatten(-2)
        if (order := parts.get("order")) is None:
            return out
        placed = torch.empty_like(out)
        placed[..., order.long()] = out
        return placed

    def sizes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        groups = (rows, columns // (self.group or columns))
        return {"codes": (rows, columns // 2), "scales": groups, "minima": groups, "order": (columns,)}

    def __str__(self) -> str:
        return f"int4 by {self.group or 'row'}"


@dataclass(frozen=True)
class NF4(Codec):
    """Levels of a normal distribution, a scale for every 64 neighbours; `double`: scales in int8 too (4.13 bits)."""

    double: bool = True
    kind: ClassVar[str] = "nf4"

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        if self.double:
            codes, small, step, mean = nf4.pack(weight)
            return {"codes": codes, "scales": small, "step": step, "mean": mean}
        blocks = nf4.blocks_of(weight)
        scales = blocks.abs().amax(1)
        codes = nf4.codes_of(blocks / scales.clamp(min=LEAST)[:, None])
        if weight.shape[1] % nf4.BLOCK:
            raise _uneven(weight, nf4.BLOCK, f"blocks of {nf4.BLOCK}")
        return {"codes": codes.view(len(weight), -1), "scales": scales.view(len(weight), -1)}

    def decode(self, parts: Parts, columns: int, rows: Tensor | slice | None = None) -> Tensor:
        codes, scales = parts["codes"], parts["scales"]
        if self.double:
            scales = nf4.unscaled(scales.flatten(), parts["step"], parts["mean"])
        if rows is None or columns % nf4.BLOCK:
            whole = nf4.spread(codes.flatten(), scales.flatten()).view(-1, columns)
            return whole if rows is None else whole[rows]
        codes, scales = (t.reshape(-1, columns // n)[rows] for t, n in ((codes, 2), (scales, nf4.BLOCK)))
        return nf4.spread(codes.flatten(), scales.flatten()).view(*codes.shape[:-1], columns)

    def sizes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        blocks = rows * columns // nf4.BLOCK
        if not self.double:
            return {"codes": (rows, columns // 2), "scales": (rows, columns // nf4.BLOCK)}
        return {"codes": (rows * columns // 2,), "scales": (blocks,), "step": (-(-blocks // nf4.GROUP),), "mean": ()}


@dataclass(frozen=True)
class FP8(Codec):
    """Numbers of 8 bits (e4m3), a scale for every row."""

    kind: ClassVar[str] = "fp8"

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        scales = (weight.detach().float().abs().amax(1, keepdim=True) / 448).clamp(min=LEAST)
        return {"codes": (weight.detach().float() / scales).to(torch.float8_e4m3fn), "scales": scales}

    def decode(self, parts: Parts, columns: int, rows: Tensor | slice | None = None) -> Tensor:
        codes, scales = parts["codes"], parts["scales"]
        if rows is not None:  # no indexing of this type everywhere: index its bytes
            codes, scales = codes.view(torch.uint8)[rows].view(codes.dtype), scales[rows]
        return codes.float() * scales

    def sizes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {"codes": (rows, columns), "scales": (rows, 1)}


@dataclass(frozen=True)
class Blocks(Codec):
    """Blocks as GGUF files hold them, decoded to the bit as ggml does."""

    type: str = "Q8_0"
    kind: ClassVar[str] = "gguf"

    @property
    def block(self) -> BlockType:
        return TYPES[self.type]

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        block = self.block
        if weight.shape[1] % block.elements:
            raise _uneven(weight, block.elements, f"{block.name} blocks of {block.elements}")
        return {"rows": torch.from_numpy(quantise(weight.detach().float().cpu().numpy(), block)).to(weight.device)}

    def decode(self, parts: Parts, columns: int, rows: Tensor | slice | None = None) -> Tensor:
        (raw,) = _rows(parts, rows, "rows")
        return torch.from_numpy(dequantise(raw.cpu().numpy(), self.block)).to(raw.device)

    def sizes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {"rows": (rows, columns // self.block.elements * self.block.bytes)}

    def __str__(self) -> str:
        return self.type


TYPES = {block.name: block for block in BLOCKS.values() if block.elements > 1}
KINDS: tuple[type[Codec], ...] = (Int8, Int4, NF4, FP8, Blocks)
NAMES = (*(c.kind for c in KINDS if c is not Blocks), *(block.name.lower() for block in ENCODED if block.elements > 1))


def named(name: str, group: int | None = None) -> Codec:
    """Return the codec that a user names: int8, int4, nf4, fp8, or a GGUF type such as q4_k."""
    wanted = name.lower()
    if wanted not in NAMES:
        raise TerakoyaError(
            "quantise", "is no way to keep weights", given=name, allowed=NAMES, hint=nearest(wanted, NAMES)
        )
    if group is not None and (wanted not in ("int8", "int4") or group < 0 or group % 2):
        raise TerakoyaError(
            "group", "is for int8 and int4: an even number, or 0 for whole rows", given=f"{group} with {name}"
        )
    if wanted in ("int8", "int4"):
        made = Int8 if wanted == "int8" else Int4
        return made() if group is None else made(group)
    return {"nf4": NF4(), "fp8": FP8()}.get(wanted) or Blocks(name.upper())


def from_data(data: Mapping[str, Any], place: str) -> Codec:
    """Return the codec that `Codec.data` described; raise TerakoyaError for anything else."""
    found = {c.kind: c for c in KINDS}.get(str(data.get("kind")))
    fields = {name: value for name, value in data.items() if name != "kind"}
    if found is None or set(fields) != set(asdict(found())):
        raise TerakoyaError(place, "describes no codec", given=dict(data), allowed=[str(c().data()) for c in KINDS])
    plain = asdict(found())
    if any(type(value) is not type(plain[name]) for name, value in fields.items()):
        raise TerakoyaError(place, "describes no codec", given=dict(data), allowed=str(found().data()))
    if found is Blocks and fields["type"] not in TYPES:
        raise TerakoyaError(f"{place}: type", given=fields["type"], allowed=list(TYPES))
    return found(**fields)


def grid(grouped: Tensor, shrink: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """Return the finest grid of 16 levels that reaches every number, zero among its reach: scales, minima (N, G)."""
    least, most = grouped.amin(-1).clamp(max=0) * shrink, grouped.amax(-1).clamp(min=0) * shrink
    return _half((most - least) / 15), _half(least)


def codes_on(grouped: Tensor, scales: Tensor, minima: Tensor, lowest: int = 0, highest: int = 15) -> Tensor:
    """Return the nearest levels of a grid: grouped (..., G, group), scales and minima (..., G) -> as grouped."""
    steps = scales.float().clamp(min=LEAST)[..., None]
    return ((grouped - minima.float()[..., None]) / steps).round().clamp(lowest, highest)


@cache
def _nibbles() -> Tensor:
    byte = torch.arange(256)
    return torch.stack([byte & 15, byte >> 4], 1).float()


def _half(scales: Tensor) -> Tensor:
    return scales.to(torch.float16)


def _grouped(weight: Tensor, group: int) -> Tensor:
    """Cut rows into groups: (N, K) -> (N, G, group) float32."""
    columns = weight.shape[1]
    if columns % (group or columns) or columns % 2:
        raise _uneven(weight, group or 2, f"groups of {group or 2}")
    return weight.detach().float().unflatten(1, (-1, group or columns))


def _uneven(weight: Tensor, group: int, what: str) -> TerakoyaError:
    columns = weight.shape[1]
    fit = [n for n in (16, 32, 64, 128) if columns % n == 0]
    return TerakoyaError("weight", f"has rows of {columns} columns, not whole {what}", allowed=f"groups of {fit}")


def _rows(parts: Parts, rows: Tensor | slice | None, *names: str) -> list[Tensor]:
    return [parts[name] if rows is None else parts[name][rows] for name in names]
