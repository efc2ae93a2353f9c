"""Who computes the steps of an engine on a GPU: kernels for all sequences of a step, and recordings of short steps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from terakoya.engine.compact import Kept, compact
from terakoya.engine.fused import HALVES, Fused, Kernels, Kind, broken_parts, described
from terakoya.engine.graphs import Graphs, Record, recorder
from terakoya.engine.kinds import Shape
from terakoya.engine.paged import Part, Probe, probed
from terakoya.engine.runner import TorchRunner
from terakoya.engine.steady import read, table
from terakoya.engine.step import Notes, Step, numbers, size_of
from terakoya.engine.store import Store
from terakoya.model.model import Model
from terakoya.quant.fused import enable

log = logging.getLogger("terakoya.engine")

NEAR, NEAR_SINGLE = 0.1, 1e-3  # how far logits may be off in half precision, where ties fall either way, and in single
LONG = 300  # tokens of a prompt that is longer than a page of any kernel


def known(found: Probe) -> bool:
    """Say whether all that a model remembers is keys and values of attention, and recurrent states."""
    return all(shape.reach is None or layer in found.asks for layer, shape in found.shapes.items())


def on_cuda(model: Model, reason: str, kept: Kept, deterministic: bool) -> TorchRunner:
    """Return who computes a model on a GPU: kernels for whole steps, as far as they know its memory and prove right."""
    device = next(model.parameters()).device
    found, packed = probed(model, device), enable(model)
    more = f" · {packed}" if packed else ""
    if not known(found):
        said = f"{reason}; sequence by sequence, for it remembers more than keys and states{more}"
        return TorchRunner(model, said, kept)
    kernels, wrong = proven(model, found, Kernels.of(device, splits=1 if deterministic else None), kept)
    made = CudaRunner(model, found, kernels, None if deterministic else recorder(device), reason, kept)
    made.words += "".join(f" · {name} is not used: {why}" for name, why in wrong.items()) + more
    return made


def proven(model: Model, found: Probe, kernels: Kernels, kept: Kept) -> tuple[Kernels, dict[str, str]]:
    """Leave out the kernels that do not give the numbers of the generic path on this very device: those left, and what
    is wrong with the others.
    """
    wrong: dict[str, str] = {}
    plain = CudaRunner(model, found, Kernels(None, None), None, kept=kept)
    for name in ("flash", "flex"):
        only = replace(kernels, **{other: None for other in ("flash", "flex") if other != name})
        if name not in CudaRunner(model, found, kernels, None, kept=kept).kinds.values():
            continue
        if why := trial(CudaRunner(model, found, only, None, kept=kept), plain):
            log.warning("%s is not used: %s", name, why)
            kernels, wrong[name] = replace(kernels, **{name: None}), why
    return kernels, wrong


@torch.inference_mode()
def trial(runner: CudaRunner, plain: CudaRunner) -> str:
    """Return what is wrong with the logits of a runner, beside those of a plain one; nothing if nothing."""

    def logits(one: CudaRunner) -> Tensor:
        store, prompts = table(one, one.shapes())
        if one.spec.context > LONG:
            prompts.append([i % one.spec.vocab for i in range(LONG)])
        return torch.stack(read(one, store, prompts, 1)).float()

    try:
        mine = logits(runner)
    except Exception as error:  # whatever it is, there is another way
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}"
    theirs = logits(plain)
    off = float((mine - theirs).norm() / theirs.norm())
    near = NEAR if next(runner.model.parameters()).dtype in HALVES else NEAR_SINGLE
    return "" if off <= near else f"logits {off:.2%} off"  # which NaN is too


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
