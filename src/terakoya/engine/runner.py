"""Who computes the steps of an engine: the native program on CPUs, PyTorch everywhere else. Chosen once, and said.

Weights stand as they came: blocks of a GGUF file as they are in it, everything else in fp32. They are made smaller
only where `weights` asks for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from terakoya.engine.compact import Kept, checked, compact
from terakoya.engine.native import Native, NativeModel
from terakoya.engine.paged import Part, compute, probe
from terakoya.engine.store import Reach, Shape, Store
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.build import build
from terakoya.model.model import Model
from terakoya.ops.compile import NoCompiler
from terakoya.ops.lower import Blocks, NotLowered, Weights
from terakoya.ops.native import Memory_, Sequence_
from terakoya.quant.linear import SWAPS, packed_layers
from terakoya.quant.native import program_parameters
from terakoya.zoo.convert import Loaded, plain

log = logging.getLogger("terakoya.engine")

By = Literal["auto", "native", "torch"]
"""`auto`: the native program where it can be had; `native`: an error where it cannot; `torch`: PyTorch."""


class Runner(Protocol):
    """What an engine needs of a model."""

    spec: spec.Model
    device: torch.device
    weights: str  # how they are kept, in words
    threads: int
    words: str  # who computes, and if not the native program, why
    vectors: bool  # whether something else than tokens may be read
    whole: bool  # whether kernels read whole pages, which the store then looks after

    def shapes(self) -> dict[int, Shape]:
        """Return what each layer remembers."""
        ...

    def compute(
        self, store: Store, parts: Sequence[Part], ids: Sequence[Sequence[int]], picks: Sequence[int], multiple: int = 1
    ) -> Tensor:
        """Run one step -> (len(picks), V) logits after the tokens at `picks`. Rows may be padded to a `multiple`."""
        ...


class TorchRunner:
    """The model itself."""

    vectors = True
    whole = False

    def __init__(self, model: Model, reason: str = "", kept: Kept = "full") -> None:
        first = next(model.parameters())
        self.model, self.spec, self.device = model, model.spec, first.device
        self.weights = str(first.dtype).removeprefix("torch.")
        self.threads = torch.get_num_threads()
        self.kept: Kept = kept
        self.words = "model by PyTorch" + (f", as {reason}" if reason else "")

    def shapes(self) -> dict[int, Shape]:
        return {layer: compact(shape, self.kept) for layer, shape in probe(self.model, self.device).items()}

    def compute(
        self, store: Store, parts: Sequence[Part], ids: Sequence[Sequence[int]], picks: Sequence[int], multiple: int = 1
    ) -> Tensor:
        return compute(self.model, store, parts, ids, picks, multiple)


class NativeRunner:
    """The native program on the pages of the store. What a row becomes does not depend on the rows beside it.

    The logits of a step stay as they are until the next one.
    """

    vectors = False
    whole = False

    def __init__(self, native: Native) -> None:
        self.native, self.spec, self.device = native, native.spec, torch.device("cpu")
        self.weights, self.threads = native.words, native.program.threads
        self.words = f"model by the native program ({native.program.isa})"
        self._bound: tuple[Store, object] | None = None
        self._space = torch.empty(0)  # for logits: new memory would cost more than some steps

    def shapes(self) -> dict[int, Shape]:
        kind = torch.float16 if self.native.lowered.half else torch.float32
        found = {}
        for m in self.native.lowered.memory:
            window = m.reach.size if isinstance(m.reach, spec.Window) else None
            chunk = m.reach.size if isinstance(m.reach, spec.Chunk) else None
            found[m.layer] = Shape(((m.heads, m.key), (m.heads, m.value)), (kind, kind), Reach(window, chunk))
        return found

    def compute(
        self, store: Store, parts: Sequence[Part], ids: Sequence[Sequence[int]], picks: Sequence[int], multiple: int = 1
    ) -> Tensor:
        memory = self._memory(store)
        stride = max(len(table.pages) for p in parts for table in p.held.tables)
        pages = np.full((len(parts), len(store.groups), stride), -1, np.int32)
        sequences = []
        for n, part in enumerate(parts):
            for g, table in enumerate(part.held.tables):
                pages[n, g, : len(table.pages)] = table.pages
            sequences.append(Sequence_(memory, pages[n].ctypes.data, stride, part.start, part.count))
        tokens = np.array([id for some in ids for id in some], np.int32)
        if not picks:
            self.native.run(tokens, sequences, np.empty(0, np.int32), self.native.lowered.head)
            return torch.empty(0, self.spec.vocab)
        if len(self._space) < len(picks):
            self._space = torch.empty(len(picks), self.spec.vocab)
        return self.native.run(tokens, sequences, np.array(picks, np.int32), space=self._space)[1]

    def _memory(self, store: Store) -> object:
        """Return where keys and values of every layer are in the store, for the library."""
        if self._bound is None or self._bound[0] is not store:
            layers = [m.layer for m in self.native.lowered.memory]
            memory = (Memory_ * len(layers))()
            for n, layer in enumerate(layers):
                group = store.group_of[layer]
                keys, values = store.groups[group].memory[layer]
                memory[n] = Memory_(keys.data_ptr(), values.data_ptr(), group)
            self._bound = store, memory
        return self._bound[1]


def runner(
    loaded: Loaded,
    *,
    by: By = "auto",
    weights: Weights | None = None,
    threads: int | None = None,
    kept: Kept = "full",
    deterministic: bool = False,
) -> NativeRunner | TorchRunner:
    """Choose who computes. `weights`: None: as they came; int8 or int4 make them smaller, and answers a little worse.
    `kept`: how keys and values are remembered; in eight bits by PyTorch only. `deterministic`: kernels, too, compute
    each sequence as if it were alone.

    Raise TerakoyaError where what is asked for cannot be had.
    """
    if by not in ("auto", "native", "torch"):
        raise TerakoyaError("by", given=by, allowed=("auto", "native", "torch"))
    found = None if by == "torch" else lowered(loaded, weights, threads)
    if checked(kept) != "full" and found is not None:
        found = NotLowered("kept", f"as {kept}, keys and values are remembered by PyTorch only")
    if by == "auto" and weights is None and isinstance(found, Native) and loaded.spec.sight is not None:
        found = NotLowered("pictures", "enter as vectors, which PyTorch reads")
    if isinstance(found, Native):
        return NativeRunner(found)
    if by == "native" or weights in ("int8", "int4"):
        raise found or TerakoyaError("weights", "can be made smaller for the native program only", given=weights)
    if found is not None:
        log.warning("PyTorch runs the model, not the native program: %s", found)
    model, reason = _numbers(loaded), str(found) if found else "asked"
    if next(model.parameters()).device.type == "cuda":
        from terakoya.engine.cuda import on_cuda

        return on_cuda(model, reason, kept, deterministic)
    return TorchRunner(model, reason, kept)


def described(found: NativeRunner | TorchRunner) -> str:
    """Return in words where a model is computed, with which weights, and by whom."""
    return f"device {found.device} · weights {found.weights} · threads {found.threads} · {found.words}"


def _numbers(loaded: Loaded) -> Model:
    """Return the model for PyTorch: blocks of a GGUF file become numbers once, not in every step."""
    return plain(loaded).model if loaded.source is not None else loaded.model


def lowered(loaded: Loaded, weights: Weights | None = None, threads: int | None = None) -> Native | TerakoyaError:
    """Return the native program of a model, or why there is none."""
    try:
        _check_plain(loaded.model)
        if packed_layers(loaded.model):
            return _packed(loaded, weights, threads)
        stored = loaded.source if weights is None else weights
        return Native.lower(loaded, stored or "fp32", threads)
    except (NotLowered, NoCompiler) as reason:
        return reason


def _packed(loaded: Loaded, weights: Weights | None, threads: int | None) -> Native:
    """Lower a model with packed weights: as they are where the library has the same blocks, else rounded to int8."""
    layers, parameters = packed_layers(loaded.model), program_parameters(loaded.model)
    kept = all(isinstance(parameters[name], Blocks) for name in layers)
    native = Native.lower((loaded.spec, parameters), weights or ("fp32" if kept else "int8"), threads, half=True)
    native.weights = " and ".join(sorted({str(layer.codec) for layer in layers.values()}))
    if not kept:
        native.weights += ", for the program partly as int8"
    return native


def fastest(loaded: Loaded, weights: Weights | None = None, threads: int | None = None) -> Model | NativeModel:
    """Return what answers single texts soonest: the native program or, where that cannot be had, the model itself.

    PyTorch's own threads wait by spinning: whoever samples beside a program wants `torch.set_num_threads(1)`.
    """
    found = lowered(loaded, weights, threads)
    if isinstance(found, Native):
        log.info("%s", found)
        return NativeModel(found)
    if weights in ("int8", "int4"):
        raise found
    log.warning("PyTorch runs the model, not the native program: %s", found)
    return _numbers(loaded)


def _check_plain(model: Model) -> None:
    """Refuse a model that is elsewhere, or is more than its spec says: adapters, hooks, other layers."""
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise NotLowered("model", f"is on {device}")
    if not isinstance(model, Model):
        raise NotLowered("model", "is none of ours")
    if model.spec.encoder is not None:
        raise NotLowered("model", "looks at a source, which the native program does not")
    own = dict(build(model.spec, device="meta").named_modules())
    for name, module in model.named_modules():
        hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        plain = name in own and type(module) in (type(own[name]), SWAPS.get(type(own[name])))
        if hooked or not plain:
            raise NotLowered(name or "model", f"is a changed {type(module).__name__}")
