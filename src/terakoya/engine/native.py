"""A model whose every step is one call into the C library: the numbers of `model.Model`, memory by pages.

`Native` is the program. The engine runs it on the pages of its store (`engine.runner`); `NativeModel` stands in for
a `Model` wherever text is generated with a `Memory`, and keeps keys and values beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from terakoya.engine.stored import gguf_blocks
from terakoya.errors import TerakoyaError
from terakoya.model import position, spec
from terakoya.model.build import parameters as parameters_of
from terakoya.model.context import Cached, Memory
from terakoya.ops.lower import Blocks, Lowered, Weights, lower
from terakoya.ops.native import PAGE, Format, Memory_, Program, Rotary, Sequence_
from terakoya.quant.blocks import BLOCKS
from terakoya.zoo.convert import Loaded

ROOM = 128  # positions a sequence has room for at first
NUMBERS = {Format.F32: "float32", Format.F16: "float16", Format.B16: "bfloat16"}


class Slot:
    """The keys and values of one sequence, grown by doubling; its pages stand in order."""

    def __init__(self, lowered: Lowered) -> None:
        self._lowered = lowered
        self.room = 0
        self.length = 0
        self.data: list[np.ndarray] = []  # keys and values of every layer: (pages, heads * width * PAGE)
        self._memory = (Memory_ * len(lowered.memory))()
        self._pages = np.empty(0, np.int32)

    def reserve(self, need: int) -> None:
        """Make room for `need` positions; what is there stays."""
        if need <= self.room:
            return
        kind = np.float16 if self._lowered.half else np.float32
        self.room = max(ROOM, 1 << (need - 1).bit_length())
        pages, old = self.room // PAGE, self.data
        widths = [m.heads * w * PAGE for m in self._lowered.memory for w in (m.key, m.value)]
        self.data = [np.empty((pages, width), kind) for width in widths]
        for new, held in zip(self.data, old, strict=False):
            new[: len(held)] = held
        self._pages = np.arange(pages, dtype=np.int32)
        for n in range(len(self._lowered.memory)):
            keys, values = self.data[2 * n : 2 * n + 2]
            self._memory[n] = Memory_(keys.ctypes.data, values.ctypes.data, 0)

    def sequence(self, count: int) -> Sequence_:
        """Return what a step of `count` more tokens needs."""
        self.reserve(self.length + count)
        return Sequence_(self._memory, self._pages.ctypes.data, len(self._pages), self.length, count)

    def truncate(self, length: int) -> None:
        """Forget what follows position `length`."""
        self.length = min(self.length, length)


class Native:
    """A lowered model and its threads: `step` feeds tokens of several sequences and returns logits."""

    def __init__(
        self, s: spec.Model, parameters: Mapping[str, Tensor | Blocks], weights: Weights, threads: int, half: bool
    ) -> None:
        self.spec = s
        self.lowered = lower(s, parameters, weights, position, half)
        [(form, _)] = self.lowered.forms.most_common(1) or [(Format.F32, 0)]
        self.weights = NUMBERS.get(form, weights)  # how they are kept, in words
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
        s, parameters = source if isinstance(source, tuple) else (source.spec, parameters_of(source.model))
        words = None
        if isinstance(weights, Path):
            if isinstance(source, tuple):
                raise TerakoyaError("weights", "a GGUF file needs the model that was loaded from it", given=weights)
            blocks = gguf_blocks(source, weights)
            parameters, weights = dict(parameters) | blocks, "fp32"
            kinds = sorted({b.kind for b in blocks.values()})
            words = " and ".join(BLOCKS[kind].name for kind in kinds) + " of the file" if blocks else None
        half = (words is not None or weights != "fp32") if half is None else half
        made = cls(s, MappingProxyType(dict(parameters)), weights, threads or torch.get_num_threads(), half)
        made.weights = words or made.weights
        return made

    def slot(self) -> Slot:
        """Return memory for one sequence."""
        return Slot(self.lowered)

    def step(
        self, tokens: Sequence[int], slots: Sequence[Slot], counts: Sequence[int], *, every: bool = False
    ) -> Tensor:
        """Append counts[n] tokens to slots[n] -> (N, V) logits after each one's last, or (T, V) after `every` token."""
        last = None if every else np.cumsum(counts, dtype=np.int32) - 1
        return self._grown(np.asarray(tokens, np.int32), slots, counts, last)[1]

    def hidden(self, tokens: np.ndarray, slots: Sequence[Slot], counts: Sequence[int]) -> Tensor:
        """Append tokens as `step` does -> (T, D) vectors that `head` takes."""
        return self._grown(tokens, slots, counts, None, self.lowered.head)[0]

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

    def run(
        self, tokens: np.ndarray, sequences: Sequence[Sequence_], output: np.ndarray | None, last: int | None = None,
        space: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Do one step: tokens (T,) int32 of all sequences -> hidden (n, D) and logits (n, V) of the rows in `output`.

        With None all rows are asked for. `last`: the instruction before which it stops. `space` (n or more, V) holds
        the logits; a new one is made where there is none. Raise TerakoyaError for ids that the model has not, and
        positions.
        """
        starts, counts = [s.start for s in sequences], [s.count for s in sequences]
        assert sum(counts) == len(tokens)
        self._check(tokens, starts, counts)
        rows = len(tokens) if output is None else len(output)
        hidden = torch.empty(rows, self.spec.dim)
        logits = torch.empty(rows if last is None else 0, self.spec.vocab) if space is None else space[:rows]
        with self._lock:
            rotary, kept = self._rotary(starts, counts)
            self.program.run(
                tokens, sequences, rotary, last=last, output=output, hidden=hidden.numpy(), logits=logits.numpy()
            )  # fmt: skip
            del kept
        return hidden, logits

    def _grown(
        self, tokens: np.ndarray, slots: Sequence[Slot], counts: Sequence[int], output: np.ndarray | None,
        last: int | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        assert len({id(s) for s in slots}) == len(slots)
        found = self.run(tokens, [s.sequence(n) for s, n in zip(slots, counts, strict=True)], output, last)
        for slot, count in zip(slots, counts, strict=True):
            slot.length += count
        return found

    def _check(self, tokens: np.ndarray, starts: Sequence[int], counts: Sequence[int]) -> None:
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.spec.vocab:
            raise TerakoyaError("tokens", "are no ids of this model", allowed=f"0 to {self.spec.vocab - 1}")
        if self.spec.embed.position is None:
            return
        for start, count in zip(starts, counts, strict=True):
            if start + count > self.spec.context:
                raise TerakoyaError(
                    "tokens", "go past the model's positions", given=start + count, allowed=self.spec.context
                )

    def _rotary(self, starts: Sequence[int], counts: Sequence[int]) -> tuple[list[Rotary], list[Tensor]]:
        """Return the tables of this step, and what keeps them alive."""
        need = max(start + count for start, count in zip(starts, counts, strict=True))
        out, kept = [], []
        for number, (rope, width) in enumerate(self.lowered.rotary):
            by_row = isinstance(rope.scaling, spec.Dynamic | spec.LongRope)
            cos, sin = self._by_row(rope, width, starts, counts) if by_row else self._by_position(number, need)
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
        self, rope: spec.Rope, width: int, starts: Sequence[int], counts: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        cu = [0, *np.cumsum(counts).tolist()]
        pos = torch.cat([torch.arange(s, s + c) for s, c in zip(starts, counts, strict=True)])
        cos, sin = position.rope_table(rope, width, self.spec.context, pos, cu, torch.float32)
        return cos.contiguous(), sin.contiguous()

    @property
    def words(self) -> str:
        """How weights and inputs are kept."""
        exact = self.weights in NUMBERS.values()
        return self.weights + ("" if exact else " (inputs of layers in int8)")

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
