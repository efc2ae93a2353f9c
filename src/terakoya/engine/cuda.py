"""Who computes the steps of an engine on a GPU: kernels for all sequences of a step, and recordings of short steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from terakoya.engine.compact import Kept, compact
from terakoya.engine.fused import Fused, Kernels, Kind, described
from terakoya.engine.fused import broken_parts as broken_parts
from terakoya.engine.graphs import Graphs, Record
from terakoya.engine.graphs import recorder as recorder
from terakoya.engine.kinds import Shape
from terakoya.engine.paged import Part, Probe
from terakoya.engine.runner import TorchRunner
from terakoya.engine.step import Notes, Step, numbers, size_of
from terakoya.engine.store import Store
from terakoya.model.model import Model


def known(found: Probe) -> bool:
    """Say whether all that a model remembers is keys and values of attention, and recurrent states."""
    return all(shape.reach is None or layer in found.asks for layer, shape in found.shapes.items())


class CudaRunner(TorchRunner):
    """The model itself, with kernels. `record` None: every step is launched anew, as where each bit matters.

    The logits of a step stay as they are until the next one.
    """

    whole = True

    def __init__(
        self,
        model: Model,
        found: Probe,
        kernels: Kernels,
        record: Record | None,
        reason: str = "",
        kept: Kept = "full",
    ) -> None:
        super().__init__(model, reason, kept)
        self.kernels = kernels
        self._shapes = {layer: compact(shape, kept) for layer, shape in found.shapes.items()}
        chosen = {layer: kernels.choose(ask, self._shapes[layer]) for layer, ask in found.asks.items()}
        self.kinds: dict[int, Kind] = {layer: kind for layer, (kind, _) in chosen.items()}
        alone = "alone" in self.kinds.values()
        self.graphs = Graphs(self._recorded, record) if record is not None and not alone else None
        self._bound: tuple[Store, Notes] | None = None
        self.words += f" · {described(chosen)}" if chosen else ""
        self.words += " · CUDA graphs of steps of one token each" if self.graphs else " · no CUDA graphs"

    def shapes(self) -> dict[int, Shape]:
        return self._shapes

    @torch.inference_mode()
    def compute(
        self, store: Store, parts: Sequence[Part], ids: Sequence[Sequence[int]], picks: Sequence[int], multiple: int = 1
    ) -> Tensor:
        notes = self._notes(store)
        if self.graphs is not None and self._recordable(store, parts):
            logits = self.graphs(store, parts, ids, notes)
            if logits is not None:
                whole = list(picks) == list(range(len(parts)))
                return logits if whole else logits[torch.tensor(picks, dtype=torch.long, device=self.device)]
        pad = -sum(p.count for p in parts) % multiple
        size = size_of(store, parts, pad)
        step = Step.of(size, numbers(store, parts, ids, size), notes)
        hidden = self.model(step.tokens, Fused(store, parts, step, self.kernels, self.kinds))
        wanted = [*picks, *([picks[0]] * (-len(picks) % multiple))] if picks else []
        return self.model.head(hidden[torch.tensor(wanted, dtype=torch.long, device=self.device)])[: len(picks)]

    def _recorded(self, store: Store, step: Step) -> Tensor:
        hidden = self.model(step.tokens, Fused(store, [], step, self.kernels, self.kinds))
        return self.model.head(hidden)

    def _recordable(self, store: Store, parts: Sequence[Part]) -> bool:
        """Say whether what a step does is all in its numbers: no vectors in the place of tokens, no broken pages."""
        if any(p.vectors is not None and p.vectors.within(p.start, p.start + p.count) for p in parts):
            return False
        groups = {store.group_of[layer] for layer, kind in self.kinds.items() if kind == "flash"}
        return not any(broken_parts(store, parts, g) for g in groups)

    def _notes(self, store: Store) -> Notes:
        if self._bound is None or self._bound[0] is not store:
            self._bound = store, Notes.of(store, self.device)
        return self._bound[1]
