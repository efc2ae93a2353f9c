"""A step on CUDA: all sequences in one call of a kernel, layer by layer, where there is one for the layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from terakoya.engine.compact import write
from terakoya.engine.kinds import BLOCK, Shape
from terakoya.engine.paged import Ask, Paged, Part
from terakoya.engine.step import Step
from terakoya.engine.store import Store
from terakoya.engine.whole import Glance, broken, flash, flex, noted, one, ones, wide_table
from terakoya.ops.attend import Bias, Look

Kind = Literal["flash", "flex", "alone"]
"""Who computes a layer: varlen_attn, FlexAttention, or the generic path, sequence by sequence."""
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Kernels:
    """What a device has. `flash` is called as torch's varlen_attn, `flex` as its flex_attention; None: it has none."""

    flash: Callable[..., Any] | None
    flex: Callable[..., Any] | None
    splits: int | None = None  # parts that flash cuts keys into; None: as it likes

    @staticmethod
    def of(device: torch.device, splits: int | None = None) -> Kernels:
        """Return those of a CUDA device: the flash kernels are for compute capability 8.0 and later."""
        from torch.nn.attention.flex_attention import flex_attention
        from torch.nn.attention.varlen import varlen_attn

        able = torch.cuda.get_device_capability(device) >= (8, 0)
        return Kernels(varlen_attn if able else None, torch.compile(flex_attention), splits)

    def choose(self, ask: Ask, shape: Shape) -> tuple[Kind, str]:
        """Return who computes a layer, and what stands in the way of the faster ones."""
        look, dtype = ask.look, shape.dtypes[0]
        if len(shape.sizes) != 2:
            return "alone", "keys kept in eight bits"
        if ask.biased and not ask.single:
            return "alone", "a bias that depends on queries"
        (_, key), (_, value) = shape.sizes
        reasons = {
            "a bias": ask.biased,
            "sinks": ask.sinks,
            "a soft cap": look.softcap is not None,
            "chunks": look.chunk is not None,
            "a pattern": look.patterned,
            str(dtype).removeprefix("torch."): dtype not in HALVES,
            f"heads of {key} and {value}": key != value or key > 256 or key % 8 != 0,
            "an older GPU": self.flash is None,
        }
        why = ", ".join(reason for reason, true in reasons.items() if true)
        if not why:
            return "flash", ""
        return ("flex", why) if self.flex is not None else ("alone", why)


def described(chosen: Mapping[int, tuple[Kind, str]]) -> str:
    """Say who computes how many layers, and why not the fastest."""
    names = {"flash": "varlen_attn", "flex": "FlexAttention", "alone": "sequence by sequence"}
    counts = Counter(chosen.values())
    parts = [f"{n} × {names[kind]}" + (f" ({why})" if why else "") for (kind, why), n in counts.items()]
    return "attention " + ", ".join(parts)


class Fused(Paged):
    """The context of one step of which the numbers are on the device. Rows that belong to nobody are sequences too."""

    def __init__(
        self, store: Store, parts: Sequence[Part], step: Step, kernels: Kernels, kinds: Mapping[int, Kind]
    ) -> None:
        self.store, self.parts, self.device = store, parts, step.tokens.device
        self.step, self.kernels, self.kinds = step, kernels, kinds
        counts = [p.count for p in parts] + [1] * (step.size.sequences - len(parts))
        self.cu = [0, *accumulate(counts)]
        self.tokens, self.pos = self.cu[-1], step.pos
        self.fresh = [i for i, p in enumerate(parts) if p.start == 0]
        self.read: dict[int, Tensor] = {}
        self._made = {"vectors": self._vectors()}

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look, bias: Bias | None, sinks: Tensor | None
    ) -> Tensor:
        number = self.store.group_of[layer]
        memory = self.store.groups[number].memory[layer]
        where = self.step.where[number]
        write(memory, where.rows, k, v)
        match self.kinds[layer]:
            case "flash":
                assert self.kernels.flash is not None
                table = self.share(("wide", number), lambda: wide_table(where))
                ends, most = (self.step.cu, self.step.ends[number]), self.step.longest
                out = flash(self.kernels.flash, q, memory, look, where, table, ends, most, self.kernels.splits)
                over = self.share(("broken", number), lambda: broken_parts(self.store, self.parts, number))
            case "flex":
                return self._flex(number, q, memory, look, bias, sinks)
            case _:
                out, over = q.new_zeros(*q.shape[:2], v.shape[-1]), range(len(self.parts))
        for n in over:
            self.alone(n, layer, q, out, look, bias, sinks)
        return out

    def _flex(
        self, number: int, q: Tensor, memory: Sequence[Tensor], look: Look, bias: Bias | None, sinks: Tensor | None
    ) -> Tensor:
        kernel, single = self.kernels.flex, None
        assert kernel is not None
        if bias is not None:
            single = bias.single(q)  # type: ignore[attr-defined]
        out = q.new_empty(*q.shape[:2], memory[1].shape[-1])
        for rows, at, glance in self.share(("glances", number), lambda: self._glances(number)):
            out[rows] = flex(kernel, q[rows].unsqueeze(at), memory, look, glance, single, sinks).squeeze(at)
        return out

    def _glances(self, number: int) -> list[tuple[Tensor | slice, int, Glance]]:
        """Return who looks from which rows: sequences of one token together (B, 1, …), others by themselves (1, T, …).

        Beside each is the axis that must be added to the rows.
        """
        where, reach = self.step.where[number], self.store.groups[number].reach
        noted(where)
        if self.step.longest[0] == 1:
            return [(slice(None), 1, ones(where, slice(None), self.pos.int()))]
        found: list[tuple[Tensor | slice, int, Glance]] = []
        if single := [n for n, (a, b) in enumerate(pairwise(self.cu)) if b == a + 1]:
            which, rows = torch.tensor([single, [self.cu[n] for n in single]]).to(self.device)
            found.append((rows, 1, ones(where, which, self.pos[rows].int())))
        for n, part in enumerate(self.parts):
            if part.count > 1:
                first = reach.lowest(part.start) // BLOCK * BLOCK
                rows = slice(self.cu[n], self.cu[n + 1])
                found.append((rows, 0, one(where, n, reach, part.start, part.count, first)))
        return found

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        states = self.store.states
        assert states is not None
        if self.fresh and len(self.fresh) == self.step.size.sequences:
            return None
        found = tuple(t[self.step.slots] for t in states.memory[layer])
        if self.fresh:
            for rows in found:
                rows[self.fresh] = 0
        return found

    def commit(self, layer: int, new: tuple[Tensor, ...]) -> None:
        assert self.store.states is not None
        for t, n in zip(self.store.states.memory[layer], new, strict=True):
            t[self.step.slots] = n.to(t.dtype)


def broken_parts(store: Store, parts: Sequence[Part], number: int) -> list[int]:
    """Return which sequences of a step `flash` cannot read in one group."""
    reach = store.groups[number].reach
    return [n for n, p in enumerate(parts) if broken(p.held.tables[number], reach.lowest(p.start) // BLOCK)]
