"""Where a checkpoint's weights come from: plain tensors, or what a `quantization_config` says is packed, and how.

A source gives every tensor under the name that it has in plain checkpoints (`get`, `shape`), and packed ones as they
are (`packed`). Layouts: GPTQ (AutoGPTQ, versions 1 and 2), AWQ (AutoAWQ, "gemm"), bitsandbytes (NF4, FP4, LLM.int8),
DeepSeek's fp8 blocks, gpt-oss' MXFP4, and our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from terakoya.errors import TerakoyaError
from terakoya.quant import foreign
from terakoya.quant.codecs import SHARED, TYPES, Blocks, Codec, from_data
from terakoya.quant.linear import Held, Packed

OURS = "terakoya"
METHODS = (OURS, "gptq", "awq", "bitsandbytes", "fp8", "mxfp4")


@dataclass(frozen=True)
class Source:
    """Weights by the names of plain checkpoints. `held`: packed ones by our own names."""

    files: foreign.Files
    entries: Mapping[str, foreign.Entry] = field(default_factory=dict)  # what is not stored as it is named
    held: Mapping[str, Held] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()  # stored names that stand for parts of entries
    packing: Callable[[str], Held | None] = lambda name: None  # what is packed under its plain name

    def keys(self) -> set[str]:
        return (set(self.files.keys()) - self.hidden) | set(self.entries)

    def get(self, name: str) -> Tensor:
        return self.entries[name].dense() if name in self.entries else self.files.get(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape if name in self.entries else self.files.shape(name)

    def rows(self, name: str, cut: Callable[[Tensor], list[Tensor]]) -> list[Held] | None:
        """Return codec and parts of weights that are rows of a packed one, as `cut` shares them out; else None."""
        found = self.entries[name].packed() if name in self.entries else self.packing(name)
        if found is None:
            return None
        codec, parts = found
        own = {name: cut(part) for name, part in parts.items() if name not in SHARED}
        shared = {name: part for name, part in parts.items() if name in SHARED}
        count = len(next(iter(own.values())))
        return [(codec, {name: rows[i].contiguous() for name, rows in own.items()} | shared) for i in range(count)]

    def check(self, weights: Mapping[str, Tensor], place: str) -> None:
        """Compare what is held with the model's weights; raise TerakoyaError for what has no place or does not fit."""
        for name, (codec, parts) in self.held.items():
            if name not in weights:
                raise TerakoyaError(f"{place}: quantization_config", "packs a weight this model has not", given=name)
            *outer, columns = weights[name].shape
            wanted = codec.sizes(math.prod(outer), columns)
            for part, tensor in parts.items():
                if tuple(tensor.shape) != wanted[part]:
                    given, allowed = tuple(tensor.shape), str(wanted[part])
                    raise TerakoyaError(f"{place}: {name}, part {part}", given=given, allowed=allowed)

    def idle(self, name: str) -> bool:
        """Say whether a tensor that no parameter wants does nothing: a bias of zeros beside a packed weight."""
        owner, _, leaf = name.rpartition(".")
        return leaf == "bias" and f"{owner}.weight" in self.entries and not self.files.get(name).any()


def opened(files: foreign.Files, told: Any, place: str) -> Source:
    """Read the `quantization_config` of a checkpoint (None: a plain one)."""
    if told is None:
        return Source(files)
    place = f"{place}: quantization_config"
    method = told.get("quant_method") if isinstance(told, dict) else None
    if method not in METHODS:
        hint = "open the checkpoint it was made from"
        raise TerakoyaError(
            place, "is a way to pack weights that we do not read", given=method, allowed=METHODS, hint=hint
        )
    if method == OURS:
        return _own(files, told, place)
    kinds: dict[str, Callable[[foreign.Maker], dict[str, foreign.Entry]]] = {
        "gptq": foreign.gptq, "awq": foreign.awq, "bitsandbytes": foreign.bitsandbytes, "fp8": foreign.fp8,
        "mxfp4": foreign.mxfp4,
    }  # fmt: skip
    maker = foreign.Maker(files, told, place)
    entries = kinds[method](maker)
    if not entries:
        raise TerakoyaError(place, f"says {method}, but no tensor is packed that way")
    return Source(files, entries, hidden=frozenset(maker.used))


class Blocked(Protocol):
    """The part of `zoo.gguf.GGUF` that is needed here."""

    @property
    def tensors(self) -> Mapping[str, Any]: ...
    def raw(self, name: str, /) -> np.ndarray: ...
    def read(self, name: str, /) -> np.ndarray: ...


@dataclass(frozen=True)
class _Numbers:
    """A GGUF file as a place where tensors are."""

    file: Blocked

    def keys(self) -> tuple[str, ...]:
        return tuple(self.file.tensors)

    def get(self, name: str, /) -> Tensor:
        return torch.from_numpy(self.file.read(name))

    def shape(self, name: str, /) -> tuple[int, ...]:
        return self.file.tensors[name].shape


def of_gguf(file: Blocked, packed: bool) -> Source:
    """Return the tensors of a GGUF file; `packed`: blocks can stay as they are."""

    def blocks(name: str) -> Held | None:
        info = file.tensors[name]
        if info.kind.name not in TYPES or len(info.shape) != 2:
            return None
        return Blocks(info.kind.name), {"rows": torch.from_numpy(file.raw(name).reshape(info.shape[0], -1).copy())}

    return Source(_Numbers(file), packing=blocks if packed else lambda name: None)


def described(layers: Mapping[str, Packed]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the `quantization_config` of packed layers, by the names of their weights, and the tensors to store."""
    codecs: list[Codec] = []
    rows: dict[str, int] = {}
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if layer.codec not in codecs:
            codecs.append(layer.codec)
        rows[name] = codecs.index(layer.codec)
        tensors |= {f"{OURS}.{name}.{part}": t.contiguous() for part, t in layer.kept().items()}
    return {"quant_method": OURS, "codecs": [c.data() for c in codecs], "weights": rows}, tensors


def _own(files: foreign.Files, told: Mapping[str, Any], place: str) -> Source:
    codecs, rows = told.get("codecs"), told.get("weights")
    if not isinstance(codecs, list) or not isinstance(rows, dict) or not all(isinstance(c, dict) for c in codecs):
        raise TerakoyaError(place, "lacks its lists of codecs and weights")
    made = [from_data(c, f"{place}: codecs[{i}]") for i, c in enumerate(codecs)]
    stored = {name for name in files.keys() if name.startswith(f"{OURS}.")}  # noqa: SIM118
    held: dict[str, Held] = {}
    left = set(stored)
    for name, row in rows.items():
        if type(row) is not int or not 0 <= row < len(made):
            raise TerakoyaError(f"{place}: weights: {name}", given=row, allowed=f"0 to {len(made) - 1}")
        start = f"{OURS}.{name}."
        parts = {n.removeprefix(start): files.get(n) for n in stored if n.startswith(start)}
        left -= {f"{start}{part}" for part in parts}
        wanted = set(made[row].sizes(1, 1)) - {"order"}
        if wrong := sorted(wanted ^ (set(parts) - {"order"})):
            raise TerakoyaError(f"{place}: {name} ({made[row]})", "lacks parts or has others", given=", ".join(wrong))
        held[name] = made[row], parts
    if left:
        raise TerakoyaError(place, f"does not say what {len(left)} tensors are", given=", ".join(sorted(left)[:4]))
    return Source(files, held=held, hidden=frozenset(stored))
