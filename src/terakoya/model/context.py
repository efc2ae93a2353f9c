"""What each token of a step may see and remember. The model knows no batch, mask, cache or phase: only a Context.

A step is a flat batch of T tokens that belong to N sequences. Training packs whole documents (`Packed`); generation
appends to memory (`Memory.step`). The same modules serve both.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from terakoya.ops.attend import Bias, Look, attend

Keys = Callable[[Tensor], tuple[Tensor, Tensor]]
"""keys(source (S, D)) -> k (S, G, K), v (S, G, K): what a layer of cross-attention makes of an encoder's vectors."""


@dataclass(frozen=True)
class Source:
    """What an encoder made of N texts, side by side: hidden (S, D), and how long each is."""

    hidden: Tensor
    lengths: tuple[int, ...]


class Context(Protocol):
    """The whole contract between a mixer and the world."""

    pos: Tensor  # (T,) position of every token in its sequence
    cu: list[int]  # N + 1 boundaries of the sequences in the flat batch

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look, bias: Bias | None, sinks: Tensor | None
    ) -> Tensor:
        """Append k (T, G, K), v (T, G, V) to this layer's memory, then let q (T, H, K) look -> (T, H, V)."""
        ...

    def cross(self, layer: int, q: Tensor, keys: Keys, scale: float) -> Tensor:
        """Let q (T, H, K) look at all of its sequence's source -> (T, H, K); `keys` is asked once per source."""
        ...

    def remember(self, layer: int, x: Tensor) -> list[Tensor]:
        """Append x (T, D) to this layer's memory and return all of it, for each sequence (S, D)."""
        ...

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        """Return a recurrent layer's memory, each (N, ...); None: start from nothing."""
        ...

    def commit(self, layer: int, new: tuple[Tensor, ...]) -> None:
        """Replace a recurrent layer's memory."""
        ...

    def share(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what `make` gives, made once per step: rotary tables and the like, common to layers.

        A context that knows better answers for itself: "segments" are the token types (T,) of an encoder, "vectors"
        what stands in the place of tokens, as places (M,) and vectors (M, D).
        """
        ...


class _Shared:
    """The part of a context that all kinds have."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def share(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class Packed(_Shared):
    """Whole sequences side by side, no memory outside the batch: training, scoring. They never see each other."""

    def __init__(
        self,
        lengths: Sequence[int],
        device: torch.device | str | None = None,
        *,
        source: Source | None = None,
        segments: Tensor | None = None,
        vectors: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.lengths, self.source = tuple(lengths), source
        self._made |= {k: v for k, v in (("segments", segments), ("vectors", vectors)) if v is not None}
        self.cu = [0, *accumulate(lengths)]
        # Neighbours of equal length share one kernel call.
        self.runs = [(n, len(list(same))) for n, same in groupby(lengths)]
        whole = torch.arange(max(lengths, default=0), device=device)
        self.pos = torch.cat([whole[:n].repeat(count) for n, count in self.runs]) if self.runs else whole

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look, bias: Bias | None, sinks: Tensor | None
    ) -> Tensor:
        out, a = [], 0
        for length, count in self.runs:
            b = a + length * count
            qs, ks, vs = (t[a:b].view(count, length, *t.shape[1:]) for t in (q, k, v))
            out.append(attend(qs, ks, vs, look, 0, bias, sinks).flatten(0, 1))
            a = b
        return out[0] if len(out) == 1 else torch.cat(out)

    def cross(self, layer: int, q: Tensor, keys: Keys, scale: float) -> Tensor:
        assert self.source is not None, "an encoder–decoder wants a source"
        return look_across(q, self.lengths, *keys(self.source.hidden), self.source.lengths, scale)

    def remember(self, layer: int, x: Tensor) -> list[Tensor]:
        return list(x.split(list(self.lengths)))

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        return None

    def commit(self, layer: int, new: tuple[Tensor, ...]) -> None:
        """Forget: nothing outlives the batch."""


def look_across(
    q: Tensor, counts: tuple[int, ...], k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float
) -> Tensor:
    """Let each of N runs of queries see all of its own source: q (T, H, K), k and v (S, G, K) -> (T, H, K)."""
    assert len(counts) == len(lengths), "one source per sequence"
    look, out, a, b = Look(scale, causal=False), [], 0, 0
    for (count, length), same in groupby(zip(counts, lengths, strict=True)):
        n = len(list(same))
        c, d = a + n * count, b + n * length
        qs, ks, vs = q[a:c].unflatten(0, (n, count)), k[b:d].unflatten(0, (n, length)), v[b:d].unflatten(0, (n, length))
        out.append(attend(qs, ks, vs, look).flatten(0, 1))
        a, b = c, d
    return out[0] if len(out) == 1 else torch.cat(out)


class Memory:
    """What N sequences remember between steps: contiguous keys and values per layer, grown by doubling."""

    def __init__(self, sequences: int = 1, *, source: Source | None = None) -> None:
        self.lengths = [0] * sequences
        self.before = 0  # positions ahead of every sequence's first token that no token has
        self.source = source
        self.sources: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> k, v (S, G, K) of the source
        self.keys: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> k (N, room, G, K), v (N, room, G, V)
        self.states: dict[int, tuple[Tensor, ...]] = {}

    def step(
        self,
        counts: Sequence[int],
        device: torch.device | str | None = None,
        *,
        vectors: tuple[Tensor, Tensor] | None = None,
    ) -> Cached:
        """Open a step in which sequence n contributes `counts[n]` new tokens; call `close` after the forward pass."""
        assert len(counts) == len(self.lengths)
        assert min(counts) > 0
        return Cached(self, list(counts), device, vectors)

    def truncate(self, length: int) -> None:
        """Forget what follows position `length` in every sequence; recurrent memory cannot go back."""
        assert not self.states, "a recurrent state holds only the present"
        self.lengths = [min(n, length) for n in self.lengths]

    def keep(self, last: int) -> None:
        """Remember only the last positions of every sequence, counted anew from 0 (Transformer-XL's segments).

        What is kept stays as it was computed; positions must be relative, and sequences in step.
        """
        assert len(set(self.lengths)) == 1, "sequences of one length"
        assert not self.before, "what stands before a text stays"
        gone = max(0, self.lengths[0] - last)
        if gone:
            self.keys = {layer: (k[:, gone:].clone(), v[:, gone:].clone()) for layer, (k, v) in self.keys.items()}
            self.lengths = [n - gone for n in self.lengths]

    def room(self, layer: int, need: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return this layer's buffers, grown to hold `need` positions."""
        held = self.keys.get(layer)
        if held is None or held[0].shape[1] < need:
            size = max(64, 1 << (need - 1).bit_length())
            grown = tuple(t.new_empty(len(self.lengths), size, *t.shape[1:]) for t in (k, v))
            if held is not None:
                for new, old in zip(grown, held, strict=True):
                    new[:, : old.shape[1]] = old
            self.keys[layer] = held = (grown[0], grown[1])
        return held


class Cached(_Shared):
    """One step of generation: each sequence sees its own memory and its new tokens."""

    def __init__(
        self,
        memory: Memory,
        counts: list[int],
        device: torch.device | str | None,
        vectors: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if vectors is not None:
            self._made["vectors"] = vectors
        self.memory, self.counts = memory, counts
        self.cu = [0, *accumulate(counts)]
        self.starts = [n + memory.before for n in memory.lengths]
        self.pos = torch.cat([torch.arange(n, n + c, device=device) for n, c in zip(self.starts, counts, strict=True)])

    def follow(self, count: int) -> None:
        """Let `count` positions that are in memory already, and are no tokens, stand before every sequence."""
        self.memory.before, self.pos = count, self.pos + count
        self.starts = [n + count for n in self.starts]

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look, bias: Bias | None, sinks: Tensor | None
    ) -> Tensor:
        lengths = self.starts
        keys, vals = self.memory.room(layer, max(n + c for n, c in zip(lengths, self.counts, strict=True)), k, v)
        if len(set(lengths)) == 1 and len(set(self.counts)) == 1:  # in step with each other: one call for all
            start, count = lengths[0], self.counts[0]
            qs, ks, vs = (t.unflatten(0, (-1, count)) for t in (q, k, v))
            keys[:, start : start + count], vals[:, start : start + count] = ks, vs
            seen = slice(0, start + count)
            return attend(qs, keys[:, seen], vals[:, seen], look, start, bias, sinks).flatten(0, 1)
        out = []
        for n, (start, count) in enumerate(zip(lengths, self.counts, strict=True)):
            a, b, end = self.cu[n], self.cu[n + 1], start + count
            keys[n, start:end], vals[n, start:end] = k[a:b], v[a:b]
            out.append(attend(q[None, a:b], keys[n : n + 1, :end], vals[n : n + 1, :end], look, start, bias, sinks)[0])
        return torch.cat(out)

    def cross(self, layer: int, q: Tensor, keys: Keys, scale: float) -> Tensor:
        source, held = self.memory.source, self.memory.sources
        assert source is not None, "an encoder–decoder wants a source"
        if layer not in held:
            held[layer] = keys(source.hidden)
        return look_across(q, tuple(self.counts), *held[layer], source.lengths, scale)

    def remember(self, layer: int, x: Tensor) -> list[Tensor]:
        ends = [n + c for n, c in zip(self.starts, self.counts, strict=True)]
        rows, _ = self.memory.room(layer, max(ends), x, x[:, :0])
        for n, (part, end) in enumerate(zip(x.split(self.counts), ends, strict=True)):
            rows[n, end - len(part) : end] = part
        return [rows[n, :end] for n, end in enumerate(ends)]

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        return self.memory.states.get(layer)

    def commit(self, layer: int, new: tuple[Tensor, ...]) -> None:
        self.memory.states[layer] = new

    def close(self) -> None:
        """Make the new tokens part of the memory."""
        self.memory.lengths = [n + c for n, c in zip(self.memory.lengths, self.counts, strict=True)]
