"""A model whose every step is one call into the C library: same calls as `model.Model`, memory of its own.

`NativeModel` stands in for a `Model` wherever text is generated: `model(tokens, ctx)` gives hidden vectors and
`model.head(hidden)` logits. It keeps keys and values beside the context's `Memory`, which still counts positions.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from terakoya.errors import TerakoyaError
from terakoya.model import position, spec
from terakoya.model.build import parameters as parameters_of
from terakoya.model.context import Cached, Memory
from terakoya.model.model import Model
from terakoya.ops.compile import NoCompiler
from terakoya.ops.lower import GGUF_KINDS, Blocks, Lowered, NotLowered, Weights, lower
from terakoya.ops.native import Program, Rotary, Sequence_
from terakoya.zoo import lineage
from terakoya.zoo.convert import Loaded, split
from terakoya.zoo.gguf import GGUF, is_gguf
from terakoya.zoo.names import expand

log = logging.getLogger("terakoya.engine")

ROOM = 128  # positions a sequence has room for at first


class Slot:
    """The keys and values of one sequence, grown by doubling."""

    def __init__(self, lowered: Lowered) -> None:
        self._lowered = lowered
        self.room = 0
        self.length = 0
        self.data = np.empty(0, np.float16 if lowered.half else np.float32)

    def reserve(self, need: int) -> None:
        """Make room for `need` positions; what is there stays."""
        if need <= self.room:
            return
        room = max(ROOM, 1 << (need - 1).bit_length())
        data = np.empty(self._lowered.width * room, self.data.dtype)
        at = 0
        for heads, key, value in self._lowered.memory:
            for width in (key, value) * heads:
                held = width * self.room
                data[at * room : at * room + held] = self.data[at * self.room : at * self.room + held]
                at += width
        self.room, self.data = room, data

    def truncate(self, length: int) -> None:
        """Forget what follows position `length`."""
        self.length = min(self.length, length)


class Native:
    """A lowered model and its threads: `step` feeds tokens of several sequences and returns logits."""

    def __init__(
        self, s: spec.Model, parameters: Mapping[str, Tensor | Blocks], weights: Weights, threads: int, half: bool
    ) -> None:
        self.spec = s
        self.weights: str = weights  # how they are kept, in words
        self.lowered = lower(s, parameters, weights, position, half)
        self.program = Program(self.lowered.code, threads)
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    @classmethod
    def lower(
        cls,
        source: Loaded | tuple[spec.Model, Mapping[str, Tensor | Blocks]],
        weights: Weights | Path = "fp32",
        threads: int | None = None,
        *,
        half: bool | None = None,
    ) -> Native:
        """Lower a model; `weights` may be the GGUF file it came from, whose blocks are then taken as they are.
        Keys and values are remembered in fp16 unless the weights are fp32, or as `half` says.

        Raise NotLowered for what has no instruction, NoCompiler where the library cannot be had.
        """
        name = "blocks of the file" if isinstance(weights, Path) else weights
        s, parameters = source if isinstance(source, tuple) else (source.spec, parameters_of(source.model))
        if isinstance(weights, Path):
            if isinstance(source, tuple):
                raise TerakoyaError("weights", "a GGUF file needs the model that was loaded from it", given=weights)
            parameters, weights = dict(parameters) | gguf_blocks(source, weights), "int8"
        half = weights != "fp32" if half is None else half
        made = cls(s, MappingProxyType(dict(parameters)), weights, threads or os.cpu_count() or 1, half)
        made.weights = name
        return made

    def slot(self) -> Slot:
        """Return memory for one sequence."""
        return Slot(self.lowered)

    def step(
        self, tokens: Sequence[int], slots: Sequence[Slot], counts: Sequence[int], *, every: bool = False
    ) -> Tensor:
        """Append counts[n] tokens to slots[n] -> (N, V) logits after each one's last, or (T, V) after `every` token."""
        last = None if every else np.cumsum(counts, dtype=np.int32) - 1
        ids = np.asarray(tokens, np.int32)
        hidden = np.empty((len(ids) if every else len(slots), self.spec.dim), np.float32)
        logits = torch.empty(len(hidden), self.spec.vocab)
        self._run(ids, slots, counts, output=last, hidden=hidden, logits=logits.numpy())
        return logits

    def hidden(self, tokens: np.ndarray, slots: Sequence[Slot], counts: Sequence[int]) -> Tensor:
        """Append tokens as `step` does -> (T, D) vectors that `head` takes."""
        hidden = torch.empty(len(tokens), self.spec.dim)
        self._run(tokens, slots, counts, output=None, hidden=hidden.numpy(), last=self.lowered.head)
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary: hidden (n, D) -> (n, V)."""
        hidden = hidden.detach().to("cpu", torch.float32).contiguous()
        logits = torch.empty(len(hidden), self.spec.vocab)
        rows = np.arange(len(hidden), dtype=np.int32)
        with self._lock:
            self.program.run(
                rows, [], [], first=self.lowered.head, output=rows, hidden=hidden.numpy(), logits=logits.numpy()
            )  # fmt: skip
        return logits

    def _run(
        self, tokens: np.ndarray, slots: Sequence[Slot], counts: Sequence[int], *, output: np.ndarray | None,
        hidden: np.ndarray, logits: np.ndarray | None = None, last: int | None = None,
    ) -> None:  # fmt: skip
        assert len(slots) == len(counts)
        assert sum(counts) == len(tokens)
        assert len({id(s) for s in slots}) == len(slots)
        self._check(tokens, slots, counts)
        with self._lock:
            for slot, count in zip(slots, counts, strict=True):
                slot.reserve(slot.length + count)
            sequences = [
                Sequence_(slot.data.ctypes.data, slot.room, slot.length, count)
                for slot, count in zip(slots, counts, strict=True)
            ]
            rotary, kept = self._rotary(slots, counts)
            self.program.run(
                tokens, sequences, rotary, last=last, output=output, hidden=hidden, logits=logits
            )  # fmt: skip
            del kept
            for slot, count in zip(slots, counts, strict=True):
                slot.length += count

    def _check(self, tokens: np.ndarray, slots: Sequence[Slot], counts: Sequence[int]) -> None:
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.spec.vocab:
            raise TerakoyaError("tokens", "are no ids of this model", allowed=f"0 to {self.spec.vocab - 1}")
        bound = self.spec.embed.position is not None
        for slot, count in zip(slots, counts, strict=True):
            if bound and slot.length + count > self.spec.context:
                raise TerakoyaError(
                    "tokens", "go past the model's positions", given=slot.length + count, allowed=self.spec.context
                )

    def _rotary(self, slots: Sequence[Slot], counts: Sequence[int]) -> tuple[list[Rotary], list[Tensor]]:
        """Return the tables of this step, and what keeps them alive."""
        need = max(slot.length + count for slot, count in zip(slots, counts, strict=True))
        out, kept = [], []
        for number, (rope, width) in enumerate(self.lowered.rotary):
            by_row = isinstance(rope.scaling, spec.Dynamic | spec.LongRope)
            cos, sin = self._by_row(rope, width, slots, counts) if by_row else self._by_position(number, need)
            kept += [cos, sin]
            out.append(Rotary(cos.data_ptr(), sin.data_ptr(), int(by_row)))
        return out, kept

    def _by_position(self, number: int, need: int) -> tuple[Tensor, Tensor]:
        rope, width = self.lowered.rotary[number]
        if number not in self._tables or len(self._tables[number][0]) < need:
            room = max(ROOM, 1 << (need - 1).bit_length())
            pos = torch.arange(room)
            self._tables[number] = position.rope_table(rope, width, self.spec.context, pos, [0, room], torch.float32)
        return self._tables[number]

    def _by_row(
        self, rope: spec.Rope, width: int, slots: Sequence[Slot], counts: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        cu = [0, *np.cumsum(counts).tolist()]
        pos = torch.cat([torch.arange(s.length, s.length + c) for s, c in zip(slots, counts, strict=True)])
        cos, sin = position.rope_table(rope, width, self.spec.context, pos, cu, torch.float32)
        return cos.contiguous(), sin.contiguous()

    def __str__(self) -> str:
        size = self.program.weights.nbytes / 1e6
        return f"native {self.program.isa}, {self.weights}, {size:.0f} MB of weights, {self.program.threads} threads"


class NativeModel:
    """What generation needs of a `Model`, by the native program."""

    def __init__(self, native: Native) -> None:
        self.native, self.spec = native, native.spec
        self._slots: WeakKeyDictionary[Memory, list[Slot]] = WeakKeyDictionary()
        self._device = torch.empty(0)

    def parameters(self) -> Iterator[Tensor]:
        """Yield one empty tensor, which says where the model is."""
        yield self._device

    def __call__(self, tokens: Tensor, ctx: Cached) -> Tensor:
        """Read a step's tokens: tokens (T,) -> hidden (T, D)."""
        memory = ctx.memory
        slots = self._slots.setdefault(memory, [])
        while len(slots) < len(memory.lengths):
            slots.append(self.native.slot())
        for slot, length in zip(slots, memory.lengths, strict=True):
            assert slot.length >= length, "this memory was filled by another model"
            slot.truncate(length)
        return self.native.hidden(tokens.numpy().astype(np.int32), slots, ctx.counts)

    def head(self, hidden: Tensor) -> Tensor:
        """Score every token of the vocabulary: hidden (n, D) -> (n, V)."""
        return self.native.head(hidden)


def fastest(loaded: Loaded, weights: Weights | Path = "fp32", threads: int | None = None) -> Model | NativeModel:
    """Return the native program of a model or, where that cannot be had, the model; the log says which, and why.

    PyTorch's own threads wait by spinning: whoever samples beside a program wants `torch.set_num_threads(1)`.
    """
    try:
        native = Native.lower(loaded, weights, threads)
    except (NotLowered, NoCompiler) as reason:
        log.warning("PyTorch runs the model, not the native program: %s", reason)
        return loaded.model
    log.info("%s", native)
    return NativeModel(native)


def gguf_blocks(loaded: Loaded, path: Path) -> dict[str, Blocks]:
    """Return the parameters that stand in the file as blocks which the library takes without loss."""
    if not is_gguf(path):
        raise TerakoyaError(str(path), "is not a GGUF file")
    file = GGUF.open(path)
    own = parameters_of(loaded.model)
    out: dict[str, Blocks] = {}
    for match in expand(lineage.rules(loaded.family, "gguf"), list(own), str(path)):
        info = file.tensors.get(match.theirs)
        by_rows = match.layout.dim == 0 and not match.layout.transpose
        if info is None or info.kind.id not in GGUF_KINDS or len(info.shape) != 2 or not by_rows:
            continue
        rows = torch.from_numpy(file.raw(match.theirs).reshape(info.shape[0], -1).copy())
        parts = split(rows, [own[n].shape for n in match.ours], match.layout, loaded.spec)
        for name, part in zip(match.ours, parts, strict=True):
            out[name] = Blocks(part.contiguous(), info.kind.id, info.shape[1])
    return out
