"""A step of the engine as the model sees it: any mix of sequences, each with its own memory in the store."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from terakoya.engine.compact import decode, write
from terakoya.engine.kinds import BLOCK, Reach, Shape, Table, beside
from terakoya.engine.store import Held, Store
from terakoya.engine.vectors import Vectors
from terakoya.errors import TerakoyaError
from terakoya.model.context import Keys, look_across
from terakoya.model.model import Model
from terakoya.ops.attend import Bias, Look, attend


@dataclass(frozen=True)
class Part:
    """One sequence's share of a step: `count` tokens from position `start` on, `vectors` in the place of some."""

    held: Held
    start: int
    count: int
    vectors: Vectors | None = None


class Paged:
    """The context of one step. `pad` rows that belong to nobody may follow, so that products have a good height."""

    def __init__(self, store: Store, parts: Sequence[Part], device: torch.device | str = "cpu", pad: int = 0) -> None:
        self.store, self.parts, self.device = store, parts, device
        counts = [p.count for p in parts]
        self.tokens = sum(counts)
        self.cu = [0, *accumulate([*counts, *([pad] if pad else [])])]
        pos = [i for p in parts for i in range(p.start, p.start + p.count)]
        self.pos = torch.tensor(pos + list(range(pad)), device=device)
        self.fresh = [i for i, p in enumerate(parts) if p.start == 0]
        self.read: dict[int, Tensor] = {}  # what the encoder made of sources that nobody has read yet, by sequence
        self._made: dict[Hashable, Any] = {"vectors": self._vectors()}

    def _vectors(self) -> tuple[Tensor, Tensor] | None:
        """Return what stands in the place of this step's tokens: places (M,), vectors (M, D)."""
        places, rows = [], []
        for part, first in zip(self.parts, self.cu, strict=False):
            if part.vectors is not None and (found := part.vectors.within(part.start, part.start + part.count)):
                places += [first + place for place, _ in found]
                rows.append(part.vectors.rows[[row for _, row in found]])
        return (torch.tensor(places, device=self.device), torch.cat(rows).to(self.device)) if rows else None

    def share(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look, bias: Bias | None, sinks: Tensor | None
    ) -> Tensor:
        number = self.store.group_of[layer]
        group = self.store.groups[number]
        rows = self.share(("rows", number), lambda: self._rows(number))
        write(group.memory[layer], rows, k[: self.tokens], v[: self.tokens])
        out = q.new_zeros(q.shape[0], q.shape[1], v.shape[-1])
        for n in range(len(self.parts)):
            self.alone(n, layer, q, out, look, bias, sinks)
        return out

    def alone(
        self, n: int, layer: int, q: Tensor, out: Tensor, look: Look, bias: Bias | None, sinks: Tensor | None
    ) -> None:
        """Let one sequence look at its memory: q (T, H, K), of which its rows; out (T, H, V), into its rows."""
        number = self.store.group_of[layer]
        group, part, a, b = self.store.groups[number], self.parts[n], self.cu[n], self.cu[n + 1]
        low = group.reach.lowest(part.start)
        ks, vs = self._numbers(group.memory[layer], lambda *two: self._read(number, part, low, *two), q)
        out[a:b] = attend(q[None, a:b], ks, vs, look, part.start - low, shifted(bias, low), sinks)[0]

    def cross(self, layer: int, q: Tensor, keys: Keys, scale: float) -> Tensor:
        sources, out = self.store.sources, torch.zeros_like(q)
        assert sources is not None
        memory = sources.memory[beside(layer)]
        for part, a, b in zip(self.parts, self.cu, self.cu[1:], strict=False):
            slab = part.held.source
            assert slab is not None
            length, id = len(slab.ids), part.held.id
            if id in self.read:
                rows = self.share(("source", id), lambda t=slab.table, n=length: places(t, 0, n, self.device))
                write(memory, rows, *keys(self.read[id]))
            runs = self.share(("across", id), lambda t=slab.table, n=length: straight(t, 0, n))
            k, v = self._numbers(memory, lambda *two, r=runs: tuple(gathered(t, r) for t in two), q)
            out[a:b] = look_across(q[a:b], (part.count,), k[0], v[0], (length,), scale)
        return out

    def _numbers(
        self, memory: Sequence[Tensor], read: Callable[..., tuple[Tensor, ...]], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Read keys and values, and make numbers of them where they are kept as codes."""
        keys, vals, *scales = memory
        ks, vs = read(keys, vals)
        if scales:
            of_k, of_v = read(*scales)
            ks, vs = decode(ks, of_k, like.dtype), decode(vs, of_v, like.dtype)
        return ks, vs

    def remember(self, layer: int, x: Tensor) -> list[Tensor]:
        number = self.store.group_of[layer]
        kept, nothing = self.store.groups[number].memory[layer]
        kept.index_copy_(0, self.share(("rows", number), lambda: self._rows(number)), x[: self.tokens])
        pasts = [self._read(number, part, 0, kept, nothing)[0][0] for part in self.parts]
        return [*pasts, x[self.tokens :]] if self.tokens < x.shape[0] else pasts

    def _rows(self, number: int) -> Tensor:
        """Where this step's keys and values go: (T,)."""
        parts = [(p.held.tables[number], p.start, p.start + p.count) for p in self.parts]
        return torch.cat([places(*part, self.device) for part in parts])

    def _read(self, number: int, part: Part, low: int, keys: Tensor, vals: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values from position `low` to the part's end, (1, S, G, K) and (1, S, G, V)."""
        end, table = part.start + part.count, part.held.tables[number]
        if table.bend <= low // BLOCK:
            first = table.pages[low // BLOCK] * BLOCK + low % BLOCK
            return keys[None, first : first + end - low], vals[None, first : first + end - low]
        runs = self.share(("runs", number, part.held.id), lambda: straight(table, low, end))
        return gathered(keys, runs), gathered(vals, runs)

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        states = self.store.states
        assert states is not None
        if len(self.fresh) == len(self.parts):
            return None
        slots = self.share("slots", self._slots)
        found = []
        for t in states.memory[layer]:
            rows = t[slots]
            rows[self.fresh] = 0  # zeros are the state of nothing
            pad = len(self.cu) - 1 - len(self.parts)
            found.append(torch.cat([rows, rows.new_zeros(pad, *rows.shape[1:])]) if pad else rows)
        return tuple(found)

    def commit(self, layer: int, new: tuple[Tensor, ...]) -> None:
        assert self.store.states is not None
        slots = self.share("slots", self._slots)
        for t, n in zip(self.store.states.memory[layer], new, strict=True):
            t[slots] = n[: len(self.parts)].to(t.dtype)

    def _slots(self) -> Tensor:
        return torch.tensor([p.held.slot for p in self.parts], device=self.device)


def places(table: Table, low: int, end: int, device: torch.device | str) -> Tensor:
    """Return the rows (end - low,) in which positions `low` to `end` lie."""
    rows = [table.pages[i // BLOCK] * BLOCK + i % BLOCK for i in range(low, end)]
    return torch.tensor(rows, dtype=torch.long, device=device)


def gathered(t: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    """Return what lies in some runs of rows, (1, S, …)."""
    (a, n), *more = runs
    return torch.cat([t[a : a + n] for a, n in runs])[None] if more else t[None, a : a + n]


def straight(table: Table, low: int, end: int) -> list[tuple[int, int]]:
    """Return the runs of rows (first, count) that positions `low` to `end` lie in."""
    runs: list[tuple[int, int]] = []
    for i in range(low // BLOCK, -(-end // BLOCK)):
        a, b = max(low, i * BLOCK), min(end, (i + 1) * BLOCK)
        first = table.pages[i] * BLOCK + a - i * BLOCK
        if runs and sum(runs[-1]) == first:
            runs[-1] = (runs[-1][0], runs[-1][1] + b - a)
        else:
            runs.append((first, b - a))
    return runs


def shifted(bias: Bias | None, low: int) -> Bias | None:
    """Let a bias see true positions where the keys begin at `low`."""
    if bias is None or low == 0:
        return bias
    return lambda q, q_pos, k_pos: bias(q, q_pos + low, k_pos + low)


@dataclass(frozen=True)
class Ask:
    """What the attention of one layer is: how it looks, and whether scores have a term, which kernels can compute
    (`single`), and sinks.
    """

    look: Look
    biased: bool
    single: bool
    sinks: bool


class Probe:
    """A context that takes down what each layer asks to be remembered. `width` is that of an encoder's vectors."""

    def __init__(self, device: torch.device | str, width: int = 0) -> None:
        self.width = width
        self.pos, self.cu = torch.zeros(1, dtype=torch.long, device=device), [0, 1]
        self.shapes: dict[int, Shape] = {}
        self.asks: dict[int, Ask] = {}

    def share(self, key: Hashable, make: Callable[[], Any]) -> Any:
        return make()

    def cross(self, layer: int, q: Tensor, keys: Keys, scale: float) -> Tensor:
        made = keys(q.new_zeros(1, self.width))
        sizes, kinds = tuple(tuple(t.shape[1:]) for t in made), tuple(t.dtype for t in made)
        self.shapes[beside(layer)] = Shape(sizes, kinds, Reach(source=True))
        return torch.zeros_like(q)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look, bias: Bias | None, sinks: Tensor | None
    ) -> Tensor:
        if not look.causal:
            raise TerakoyaError("model", "looks into the future, so it cannot continue a text")
        sizes = tuple(tuple(t.shape[1:]) for t in (k, v))
        self.shapes[layer] = Shape(sizes, (k.dtype, v.dtype), Reach(look.window, look.chunk))
        self.asks[layer] = Ask(look, bias is not None, hasattr(bias, "single"), sinks is not None)
        return attend(q[None], k[None], v[None], look, 0, bias, sinks)[0]

    def remember(self, layer: int, x: Tensor) -> list[Tensor]:
        self.shapes[layer] = Shape((tuple(x.shape[1:]), (0,)), (x.dtype, x.dtype), Reach())
        return [x]

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        return None

    def commit(self, layer: int, new: tuple[Tensor, ...]) -> None:
        self.shapes[layer] = Shape(tuple(tuple(t.shape[1:]) for t in new), tuple(t.dtype for t in new))


def probe(model: Model, device: torch.device | str) -> dict[int, Shape]:
    """Find what each layer remembers, by reading one token."""
    return probed(model, device).shapes


@torch.inference_mode()
def probed(model: Model, device: torch.device | str) -> Probe:
    """Read one token, and return what was taken down."""
    ctx = Probe(device, model.spec.encoder.dim if model.spec.encoder is not None else 0)
    model(torch.zeros(1, dtype=torch.long, device=device), ctx)
    return ctx


@torch.inference_mode()
def compute(
    model: Model,
    store: Store,
    parts: Sequence[Part],
    ids: Sequence[Sequence[int]],
    picks: Sequence[int],
    multiple: int = 1,
) -> Tensor:
    """Run one step of the model -> (len(picks), V) logits after the tokens at `picks`, rows padded to a `multiple`.

    Sources are read one by one, whole, so that what is made of them depends on nothing beside them.
    """
    flat = [id for some in ids for id in some]
    pad = -len(flat) % multiple
    device = next(model.parameters()).device
    ctx = Paged(store, parts, device, pad)
    slabs = [(p.held.id, p.held.source) for p in parts if p.held.source is not None and not p.held.source.filled]
    for id, slab in slabs:
        ctx.read[id] = model.encode(torch.tensor(slab.ids, device=device), [len(slab.ids)]).hidden
    hidden = model(torch.tensor(flat + [0] * pad, device=device), ctx)
    for _, slab in slabs:
        slab.filled = True
    wanted = [*picks, *([picks[0]] * (-len(picks) % multiple))] if picks else []
    return model.head(hidden[torch.tensor(wanted, dtype=torch.long, device=device)])[: len(picks)]
