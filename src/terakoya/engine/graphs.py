"""Steps in which every sequence reads one token, recorded once per size and played again: CUDA graphs.

What is recorded is bound to its memory, so a step of another size is another recording, and the numbers of a step are
copied to where the recorded one found its own. Sizes are powers of two; rows that belong to nobody fill them up and
write to a page and a slot that nobody holds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from terakoya.engine.kinds import BLOCK
from terakoya.engine.paged import Part
from terakoya.engine.step import Notes, Size, Step, numbers, size_of
from terakoya.engine.store import Store

log = logging.getLogger("terakoya.engine")

MOST = 48  # recordings that are kept; steps of other sizes then run without

NEAR = 0.01  # how far what is played may be off from what is run, relative

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], Any], Tensor]]
"""record(f) -> (play, out): note what f does to the device; every `play` does it again and leaves the result in out."""


@dataclass(frozen=True)
class Recording:
    step: Step
    play: Callable[[], Any]
    out: Tensor


class Graphs:
    """Recordings of one model. `run` computes a step on a store -> (N, V) logits, from numbers on the device alone."""

    def __init__(self, run: Callable[[Store, Step], Tensor], record: Record, most: int = MOST) -> None:
        self.run, self.record, self.most = run, record, most
        self.refused = ""  # why nothing can be recorded
        self._store: Store | None = None
        self._kept: dict[Size, Recording] = {}
        self._seen: set[Size] = set()

    def __call__(
        self, store: Store, parts: Sequence[Part], ids: Sequence[Sequence[int]], notes: Notes
    ) -> Tensor | None:
        """Return the logits (N, V) of a step, until the next one; None: it must run without."""
        if self.refused or any(p.count != 1 or p.start == 0 for p in parts):
            return None
        if self._store is not store:
            self._store, self._kept, self._seen = store, {}, set()
        size = bucket(size_of(store, parts))
        found = self._kept.get(size) or self._recorded(store, size, notes)
        if found is None:
            return None
        found.step.take(numbers(store, parts, ids, size))
        found.play()
        return found.out[: len(parts)]

    def _recorded(self, store: Store, size: Size, notes: Notes) -> Recording | None:
        """Record a size that comes for the second time, with a step of nobody: what anybody remembers stays."""
        if size not in self._seen or len(self._kept) >= self.most:
            self._seen.add(size)
            return None
        step = Step.of(size, numbers(store, [], [], size), notes, longest=(1, size.pages * BLOCK))
        try:
            play, out = self.record(lambda: self.run(store, step))
            store.rest()
            play()
            played = out.clone()
            store.rest()
            off = float((played - self.run(store, step)).norm() / played.norm())
            if not off <= NEAR:
                raise RuntimeError(f"played logits are {off:.1%} off")
        except (RuntimeError, NotImplementedError) as error:
            self.refused = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("steps are not recorded, every kernel is launched anew: %s", self.refused)
            return None
        self._kept[size] = Recording(step, play, out)
        return self._kept[size]


def bucket(size: Size) -> Size:
    """Return the size of the recording for a step: sequences by powers of two."""
    count = 1 << (size.sequences - 1).bit_length()
    return replace(size, tokens=count, sequences=count)


def recorder(device: torch.device) -> Record:
    """Return what records on a CUDA device. All recordings share one pool of memory, for one is played at a time."""
    shared: list[Any] = []

    def record(f: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(2):  # kernels are compiled and libraries set up before the recording
                f()
        torch.cuda.current_stream(device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=shared[0] if shared else None, capture_error_mode="thread_local"):
            out = f()
        shared[:] = [graph.pool()]
        return graph.replay, out

    return record
