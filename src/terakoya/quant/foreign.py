"""Weights that other libraries packed, told in our codecs where those hold them exactly, else as numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from terakoya.errors import TerakoyaError
from terakoya.quant import nf4 as normal
from terakoya.quant.codecs import NF4, Codec, Int4, Int8, Parts

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight neighbours each nibble holds, the lowest first
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # e2m1; the high bit is the sign


class Files(Protocol):
    """The part of `zoo.weights.Weights` that is needed here."""

    def keys(self) -> tuple[str, ...]: ...
    def get(self, name: str, /) -> Tensor: ...
    def shape(self, name: str, /) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Entry:
    """A weight: its shape, how to get its numbers, and its packed form where a codec of ours says exactly the same."""

    shape: tuple[int, ...]
    dense: Callable[[], Tensor]
    packed: Callable[[], tuple[Codec, Parts] | None] = lambda: None


@dataclass
class Maker:
    """A checkpoint under reading: `used` are the stored names that stand for parts."""

    files: Files
    told: Mapping[str, Any]
    place: str
    used: set[str] = field(default_factory=set)

    def owners(self, ending: str) -> list[str]:
        return [name.removesuffix(ending) for name in self.files.keys() if name.endswith(ending)]  # noqa: SIM118

    def part(self, name: str) -> Tensor:
        """Return a part that must be there."""
        if name not in self.files.keys():  # noqa: SIM118
            raise TerakoyaError(self.place, "lacks a part of a packed weight", given=name)
        self.used.add(name)
        return self.files.get(name)

    def optional(self, name: str) -> Tensor | None:
        return self.part(name) if name in self.files.keys() else None  # noqa: SIM118

    def option(self, name: str, default: Any, allowed: tuple[Any, ...] | None = None) -> Any:
        value = self.told.get(name, default)
        if allowed is not None and value not in allowed:
            raise TerakoyaError(f"{self.place}: {name}", given=value, allowed=allowed)
        return value

    def wrong(self, owner: str, problem: str) -> TerakoyaError:
        return TerakoyaError(f"{self.place}, weight {owner}", problem)


def gptq(m: Maker) -> dict[str, Entry]:
    """qweight (K·b/32, N): the codes of a column of the layer, low bits first; qzeros (G, N·b/32), scales (G, N),
    g_idx (K,) the group of every input. Version 1 stores zeros less one. w = scale · (q - zero) (Frantar 2022).
    """
    bits = m.option("bits", 4, (4, 8))
    after = 0 if m.option("checkpoint_format", "gptq", ("gptq", "gptq_v2")) == "gptq_v2" else 1
    return {f"{o}.weight": _integers(m, o, bits, after, _gptq_codes) for o in m.owners(".qweight")}


def awq(m: Maker) -> dict[str, Entry]:
    """qweight (K, N/8), qzeros (G, N/8): eight outputs a word, in the order 0 2 4 6 1 3 5 7; scales (G, N)."""
    m.option("bits", 4, (4,))
    m.option("version", "gemm", ("gemm", "GEMM"))
    return {f"{o}.weight": _integers(m, o, 4, 0, _awq_codes) for o in m.owners(".qweight")}


def _gptq_codes(words: Tensor, zeros: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    codes = _bits(words.t(), bits)
    return codes.flatten(1), _bits(zeros, bits).flatten(1)


def _awq_codes(words: Tensor, zeros: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    place = torch.tensor(AWQ_ORDER).argsort()
    codes, zero = (_bits(t, bits)[..., place].flatten(1) for t in (words, zeros))
    return codes.t(), zero


def _bits(words: Tensor, bits: int) -> Tensor:
    """Cut words of 32 bits, the lowest first: (...) int32 -> (..., 32 / bits) uint8."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return (words[..., None] >> shifts & (1 << bits) - 1).to(torch.uint8)


Codes = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def _integers(m: Maker, owner: str, bits: int, after: int, codes_of: Codes) -> Entry:
    """w = scale · (q - zero): codes (N, K), zeros and scales (G, N)."""
    words, zeros, scales = (m.part(f"{owner}.{name}") for name in ("qweight", "qzeros", "scales"))
    index = m.optional(f"{owner}.g_idx")
    if words.dtype != torch.int32 or zeros.dtype != torch.int32 or words.dim() != 2 or zeros.dim() != 2:
        raise m.wrong(owner, "is not packed in words of 32 bits")
    per = 32 // bits
    wide = codes_of is _awq_codes
    shape = (words.shape[1] * per, words.shape[0]) if wide else (words.shape[1], words.shape[0] * per)
    groups = scales.shape[0]
    if tuple(scales.shape) != (groups, shape[0]) or tuple(zeros.shape) != (groups, shape[0] // per) or not groups:
        raise m.wrong(owner, f"has scales {tuple(scales.shape)} and zeros {tuple(zeros.shape)} that do not fit {shape}")
    group = m.option("group_size", -1)
    group = group if isinstance(group, int) and group > 0 else -(-shape[1] // groups)
    if -(-shape[1] // group) != groups:
        raise m.wrong(owner, f"has {groups} groups where group_size {group} means {-(-shape[1] // group)}")
    plain = torch.arange(shape[1]) // group
    index = plain if index is None or torch.equal(index.long(), plain) else index.long()
    if len(index) != shape[1] or int(index.min()) < 0 or int(index.max()) >= groups:
        raise m.wrong(owner, "has a g_idx that names no group for some inputs")

    def numbers() -> tuple[Tensor, Tensor, Tensor]:
        codes, zero = codes_of(words, zeros, bits)
        return codes, (zero.int() + after).t(), scales.t()

    def dense() -> Tensor:
        codes, zero, scale = numbers()
        return (codes.float() - zero[:, index].float()) * scale[:, index].float()

    def packed() -> tuple[Codec, Parts] | None:
        even = torch.bincount(index, minlength=groups)
        if bits != 4 or shape[1] % 2 or int(even.min()) != int(even.max()):
            return None
        codes, zero, scale = numbers()
        order = index.argsort(stable=True)
        moved = not torch.equal(order, torch.arange(shape[1]))
        minima = -(zero.float() * scale.float())  # exact: 5 bits times 11
        parts = Int4(group).parts(codes[:, order] if moved else codes, scale.contiguous(), minima.contiguous())
        return Int4(group), parts | ({"order": order.int()} if moved else {})

    return Entry(shape, dense, packed)


def bitsandbytes(m: Maker) -> dict[str, Entry]:
    """4 bit: weight (n/2, 1) uint8, the first of two in the high half, with absmax (itself in 8 bits if nested) and a
    JSON text of its state as bytes. 8 bit: weight (N, K) int8 and SCB (N,), w = q · SCB / 127. (Dettmers 2022, 2023)
    """
    out: dict[str, Entry] = {}
    for kind in ("nf4", "fp4"):
        for name in m.owners(f".quant_state.bitsandbytes__{kind}"):
            out[name] = _four(m, name, kind)
    for owner in m.owners(".SCB"):
        m.optional(f"{owner}.weight_format")
        scales = m.part(f"{owner}.SCB").float() / 127
        name = f"{owner}.weight"
        m.part(name)
        shape = tuple(m.files.shape(name))
        if len(shape) != 2 or len(scales) != shape[0]:
            raise m.wrong(owner, f"has {len(scales)} scales for {shape}")

        def packed(name: str = name, scales: Tensor = scales) -> tuple[Codec, Parts]:
            return Int8(0), {"codes": m.files.get(name).to(torch.int8), "scales": scales[:, None]}

        out[name] = Entry(shape, lambda packed=packed, k=shape[1]: packed()[0].decode(packed()[1], k), packed)
    return out


def _four(m: Maker, name: str, kind: str) -> Entry:
    codes, absmax = m.part(name), m.part(f"{name}.absmax")
    table, state = m.part(f"{name}.quant_map").float(), m.part(f"{name}.quant_state.bitsandbytes__{kind}")
    try:
        told = json.loads(bytes(state.tolist()).decode())
        rows, columns = (int(n) for n in told["shape"])
        block = int(told["blocksize"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise m.wrong(name, f"has a state that cannot be read: {error}") from None
    nested = m.optional(f"{name}.nested_absmax")
    levels = m.optional(f"{name}.nested_quant_map")
    if codes.numel() * 2 != rows * columns or rows * columns % block or absmax.numel() != rows * columns // block:
        raise m.wrong(name, f"has {codes.numel()} bytes and {absmax.numel()} scales for {rows} × {columns}")

    def scales() -> Tensor:
        if nested is None or levels is None:
            return absmax.float()
        spread = nested.float().repeat_interleave(int(told["nested_blocksize"]))[: absmax.numel()]
        return levels.float()[absmax.long()] * spread + float(told.get("nested_offset", 0.0))

    def dense() -> Tensor:
        flat = codes.flatten()
        both = torch.stack([table[(flat >> 4).long()], table[(flat & 15).long()]], -1)
        return (both.view(-1, block) * scales()[:, None]).view(rows, columns)

    def packed() -> tuple[Codec, Parts] | None:
        alike = kind == "nf4" and block == normal.BLOCK and columns % block == 0
        if not alike or (table - normal.codebook()).abs().max() > 1e-5:
            return None
        return NF4(False), {"codes": codes.view(rows, -1), "scales": scales().view(rows, -1)}

    return Entry((rows, columns), dense, packed)


def fp8(m: Maker) -> dict[str, Entry]:
    """weight (N, K) e4m3, weight_scale_inv (N/128, K/128): w = q · scale of its block (DeepSeek-V3, §3.3)."""
    high, wide = m.option("weight_block_size", [128, 128])
    out: dict[str, Entry] = {}
    for owner in m.owners(".weight_scale_inv"):
        name = f"{owner}.weight"
        scales = m.part(f"{owner}.weight_scale_inv").float()
        m.part(name)
        shape = tuple(m.files.shape(name))
        if len(shape) != 2 or tuple(scales.shape) != (-(-shape[0] // high), -(-shape[1] // wide)):
            raise m.wrong(owner, f"has scales {tuple(scales.shape)} for {shape} in blocks of {high} × {wide}")

        def dense(name: str = name, scales: Tensor = scales, shape: tuple[int, ...] = shape) -> Tensor:
            spread = scales.repeat_interleave(high, 0)[: shape[0]].repeat_interleave(wide, 1)[:, : shape[1]]
            return m.files.get(name).float() * spread

        out[name] = Entry(shape, dense)
    return out


def mxfp4(m: Maker) -> dict[str, Entry]:
    """X_blocks (E, out, G, 16): two e2m1 a byte, the first in the low half; X_scales (E, out, G): 2^(scale - 127).

    What gpt-oss stores without packing is (E, in, out), so that is what is given.
    """
    table = torch.tensor([*FP4, *(-x for x in FP4)])
    out: dict[str, Entry] = {}
    for name in m.owners("_blocks"):
        blocks, scales = m.part(f"{name}_blocks"), m.part(f"{name}_scales")
        if blocks.shape[:-1] != scales.shape or blocks.dim() < 3:
            raise m.wrong(name, f"has blocks {tuple(blocks.shape)} and scales {tuple(scales.shape)}")
        *outer, rows, groups, half = blocks.shape

        def dense(blocks: Tensor = blocks, scales: Tensor = scales) -> Tensor:
            both = torch.stack([table[(blocks & 15).long()], table[(blocks >> 4).long()]], -1).flatten(-2)
            return torch.ldexp(both, scales.int()[..., None] - 127).flatten(-2).transpose(-1, -2).contiguous()

        shape = (*outer, groups * half * 2, rows)
        assert math.prod(shape) == blocks.numel() * 2
        out[name] = Entry(shape, dense)
    return out
