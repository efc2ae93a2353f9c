"""The paths of a GPU, on the CPU: kernels and recordings are stood in for (`cuda_fakes`), all around them is real."""

from __future__ import annotations

import random

import pytest
import torch

from terakoya.engine import engine as engines
from terakoya.engine import fused
from terakoya.engine.cuda import CudaRunner, known
from terakoya.engine.engine import Engine
from terakoya.engine.fused import Kernels
from terakoya.engine.paged import probed
from terakoya.engine.store import BLOCK
from terakoya.model.model import Model
from terakoya.zoo.convert import Loaded
from tests.engine.cuda_fakes import Recorder, Varlen, flexible
from tests.engine.engine_laws import TOLERANCE, asked, empty, engine_of, furthest
from tests.engine.test_paged import KINDS, prompts

FLASH = ["rope", "grouped", "one key head", "window", "qk norm", "learned", "parallel"]
FLEX = ["chunk", "softcap", "sinks", "alibi", "buckets", "latent"]
BOTH = ["mixed reach", "experts", "hybrid"]


class Bench:
    """An engine whose runner thinks that it has a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: Model, *, record: bool = True, **more) -> None:
        monkeypatch.setattr(fused, "HALVES", (torch.float32,))
        self.recorder, self.varlen = Recorder(), Varlen(torch.float32)
        kernels = Kernels(self.recorder.kernel(self.varlen), self.recorder.kernel(flexible))

        def made(loaded: Loaded, **_) -> CudaRunner:
            found = probed(loaded.model, "cpu")
            assert known(found)
            return CudaRunner(loaded.model, found, kernels, self.recorder if record else None)

        monkeypatch.setattr(engines, "runner", made)
        self.engine: Engine = engine_of(model, **({"memory_bytes": 1 << 19} | more))


@pytest.mark.parametrize("name", FLASH + FLEX + BOTH)
def test_whatever_happens_the_numbers_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed with others and in chunks, then the same prompts again and longer ones, from the cache."""
    model, rng = KINDS[name], random.Random(name)
    bench = Bench(monkeypatch, model, max_tokens_per_step=40)
    engine = bench.engine
    texts = prompts(7, 40, 3, 70, 17)
    requests = [asked(p, rng.randrange(4, 12), n=1 + i % 2) for i, p in enumerate(texts)]
    handles = []
    for request in requests:
        handles.append(engine.submit(request))
        for _ in range(rng.randrange(3)):
            engine.step()
    for request, handle in zip(requests, handles, strict=True):
        for done in handle.result():
            assert done.finish == "length"
            assert furthest(model, request.prompt, done) <= TOLERANCE
    again = [asked([*p, *prompts(9, 5)[0]]) for p in texts]
    for request, [done] in zip(again, engine.generate(again), strict=True):
        assert furthest(model, request.prompt, done) <= TOLERANCE
        if len(request.prompt) > 2 * BLOCK and engine.store.states is None:
            assert done.usage.cached >= len(request.prompt) - 5 - BLOCK
    empty(engine)
    kinds = set(engine.runner.kinds.values())
    assert kinds == ({"flash"} if name in FLASH else {"flex"} if name in FLEX else kinds)
    assert bool(bench.varlen.calls) == ("flash" in kinds)
    if name != "experts":  # which ask for numbers, and so cannot be recorded
        assert bench.recorder.recorded
        assert bench.recorder.played >= bench.recorder.recorded
        assert not engine.runner.graphs.refused
