"""The paths of a GPU, on the CPU: kernels and recordings are stood in for (`cuda_fakes`), all around them is real."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from terakoya.engine import cuda, fused
from terakoya.engine import engine as engines
from terakoya.engine.compact import Kept
from terakoya.engine.engine import Engine
from terakoya.engine.fused import Fused, Kernels, Kind
from terakoya.engine.kinds import Reach, Shape, Table
from terakoya.engine.paged import Paged, Part
from terakoya.engine.runner import TorchRunner
from terakoya.engine.step import Notes, Step, numbers, size_of
from terakoya.engine.store import BLOCK, Held, Store
from terakoya.model import spec
from terakoya.model.model import Model
from terakoya.model.position import Alibi, Buckets
from terakoya.ops.attend import Look
from terakoya.zoo.convert import Loaded
from tests.engine.cuda_fakes import Recorder, Varlen, flexible, twice
from tests.engine.engine_laws import TOLERANCE, asked, empty, engine_of, furthest
from tests.engine.test_paged import KINDS, prompts
from tests.model import small

FLASH = ["rope", "grouped", "one key head", "window", "qk norm", "learned", "parallel"]
FLEX = ["chunk", "softcap", "sinks", "alibi", "buckets", "latent"]
BOTH = ["mixed reach", "experts", "hybrid"]


class Bench:
    """An engine that thinks it has a GPU: `Kernels.of` and `recorder` give what `cuda_fakes` has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: Model, **more) -> None:
        self.recorder, self.varlen = Recorder(), Varlen(*fused.HALVES)
        self.splits: list[int | None] = []
        kernels = Kernels(self.recorder.kernel(self.varlen), self.recorder.kernel(flexible))

        def of(device: torch.device, splits: int | None = None) -> Kernels:
            self.splits.append(splits)
            return replace(kernels, splits=splits)

        def made(loaded: Loaded, *, kept: Kept = "full", deterministic: bool = False, **_) -> TorchRunner:
            return cuda.on_cuda(loaded.model, "a test", kept, deterministic)

        monkeypatch.setattr(Kernels, "of", staticmethod(of))
        monkeypatch.setattr(cuda, "recorder", lambda device: self.recorder)
        monkeypatch.setattr(engines, "runner", made)
        self.engine: Engine = engine_of(model, **({"memory_bytes": 1 << 19} | more))
        self.runner = self.engine.runner


@pytest.fixture
def single(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the flash kernel take single precision, so that what is compared is all but its rounding."""
    monkeypatch.setattr(fused, "HALVES", (torch.float32,))


@pytest.mark.usefixtures("single")
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
    kinds = set(bench.runner.kinds.values())
    assert kinds == ({"flash"} if name in FLASH else {"flex"} if name in FLEX else kinds)
    assert bool(bench.varlen.calls) == ("flash" in kinds)
    assert "not used" not in bench.runner.words
    if name == "experts":  # which ask for numbers
        assert "capturing" in bench.runner.graphs.refused
    else:
        assert bench.recorder.recorded
        assert bench.recorder.played >= bench.recorder.recorded
        assert not bench.runner.graphs.refused


LOOKS: dict[str, tuple[Kind, Look]] = {
    "all": ("flash", Look(0.3)),
    "window": ("flash", Look(0.3, window=21)),
    "all, by flex": ("flex", Look(0.3)),
    "window, by flex": ("flex", Look(0.3, window=40, softcap=3.0)),
    "chunk": ("flex", Look(0.3, chunk=24)),
    "pattern": ("flex", Look(0.3, fixed=(20, 4))),
    "stride": ("flex", Look(0.3, stride=3)),
}


def scattered(
    rng: random.Random, look: Look, held: list[int], *, width: int = 8, dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Store, list[Part]]:  # fmt: skip
    """A store in which sequences that remember `held` tokens, and read up to 150 more, lie in pages anywhere, some
    side by side, some not; what nobody wrote is NaN, what nobody sees any more is gone.
    """
    reach = Reach(look.window, look.chunk)
    shape = Shape(((2, width), (2, width)), (dtype, dtype), reach)
    store = Store({0: shape}, 2048 * shape.bytes, sequences=8, step=200, device=device, whole=True)
    group = store.groups[0]
    keys, values = group.memory[0]
    keys[: group.pool.total * BLOCK] = values[: group.pool.total * BLOCK] = float("nan")
    free = list(range(group.pool.total))
    parts = []
    for n, start in enumerate(held):
        count = rng.choice([1, 1, 1, rng.randrange(2, 150)])
        need = -(-(start + count) // BLOCK)
        table = Table()
        while len(table.pages) < need:  # runs of any length, at any place
            at, run = rng.randrange(len(free)), rng.choice([1, 5, 40])
            for page in free[at : at + min(run, need - len(table.pages))]:
                table.append(page)
            free = [page for page in free if page not in table.pages]
        group.clear(table.pages)
        low = reach.lowest(start) // BLOCK
        for i in range(low):
            keys[group.rows(table.pages[i])] = values[group.rows(table.pages[i])] = float("nan")
            table.pages[i] = -1
        for i in range(low * BLOCK, start):
            row = table.pages[i // BLOCK] * BLOCK + i % BLOCK
            keys[row], values[row] = torch.randn(2, width).to(keys), torch.randn(2, width).to(keys)
        parts.append(Part(Held(n, [table]), start, count))
    return store, parts


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("name", LOOKS)
def test_layers_see_what_they_see_alone(name: str) -> None:
    """Any sequences in any pages, read by a kernel and by the generic path; with biases and sinks by flex."""
    (kind, look), rng = LOOKS[name], random.Random(name)
    kernels, broken = Kernels(Varlen(torch.float32), twice), 0
    for trial in range(6):
        torch.manual_seed(trial)
        store, parts = scattered(rng, look, [rng.choice([0, 5, 16, 200, 600]) for _ in range(rng.randrange(1, 5))])
        pad = rng.randrange(3)
        T = sum(p.count for p in parts)
        q, k, v = torch.randn(T + pad, 4, 8), torch.randn(T + pad, 2, 8), torch.randn(T + pad, 2, 8)
        bias, sinks = None, None
        if kind == "flex":
            buckets = Buckets(spec.Buckets(8, 30), 4)
            torch.nn.init.normal_(buckets.weight)
            bias = [None, Alibi(spec.Alibi(), 4, 0.3), Alibi(spec.Alibi(rounded=True), 4, 0.3), buckets][trial % 4]
            sinks = [None, torch.randn(4)][trial % 2]
        wanted = Paged(store, parts, pad=pad).attend(0, q, k, v, look, bias, sinks)
        ids, size = [[0] * p.count for p in parts], size_of(store, parts, pad)
        step = Step.of(size, numbers(store, parts, ids, size), Notes.of(store, torch.device("cpu")))
        ctx = Fused(store, parts, step, kernels, {0: kind})
        found = ctx.attend(0, q, k, v, look, bias, sinks)
        assert ctx.pos[:T].tolist() == [i for p in parts for i in range(p.start, p.start + p.count)]
        assert torch.allclose(found[:T], wanted[:T], atol=1e-5)
        broken += len(ctx._made.get(("broken", 0), []))
    assert broken or kind == "flex"


def test_halves_go_to_flash_and_what_it_cannot_take_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 as it is on a GPU: near the generic path, and the line says who computes what, and why."""
    model = small.made(KINDS["mixed reach"].spec, dtype=torch.bfloat16)
    bench = Bench(monkeypatch, model)
    assert "attention 2 × varlen_attn, 1 × FlexAttention (chunks)" in bench.engine.describe()
    [[done]] = bench.engine.generate([asked(prompts(3, 50)[0], 12)])
    assert bench.varlen.calls
    assert furthest(model, prompts(3, 50)[0], done) <= 0.05
    assert Bench(monkeypatch, small.made(KINDS["rope"].spec)).runner.kinds == {0: "flex", 1: "flex"}
    compact = Bench(monkeypatch, model, kept="int8").runner
    assert "3 × sequence by sequence (keys kept in eight bits)" in compact.words
    assert compact.graphs is None
    relative = Bench(monkeypatch, KINDS["relative"]).runner
    assert "sequence by sequence (a bias that depends on queries)" in relative.words


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("how", ["raises", "wrong", "nan"])
def test_a_kernel_that_fails_on_this_device_is_not_used(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(self: Varlen, query: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        if how == "raises":
            raise RuntimeError("no kernel image is available")
        return query * (1.5 if how == "wrong" else float("nan"))

    monkeypatch.setattr(Varlen, "__call__", call)
    model = KINDS["rope"]
    bench = Bench(monkeypatch, model)
    assert set(bench.runner.kinds.values()) == {"flex"}
    reason = "RuntimeError: no kernel image is available" if how == "raises" else "off"
    assert "flash is not used" in bench.runner.words
    assert reason in bench.runner.words
    [[done]] = bench.engine.generate([asked(prompts(3, 50)[0])])
    assert furthest(model, prompts(3, 50)[0], done) <= TOLERANCE


@pytest.mark.usefixtures("single")
def test_where_every_bit_matters_keys_are_not_split_and_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, KINDS["rope"], deterministic=True)
    assert bench.splits == [1]
    assert bench.runner.graphs is None
    texts = prompts(3, 30, 12)
    alone = [bench.engine.generate([asked(t)])[0][0] for t in texts]
    together = [done for [done] in bench.engine.generate([asked(t) for t in texts])]
    for a, b in zip(alone, together, strict=True):
        assert [p.logprob for p in a.logprobs] == [p.logprob for p in b.logprobs]


@pytest.mark.usefixtures("single")
def test_recordings_are_few_and_belong_to_their_store(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, KINDS["hybrid"])
    graphs, engine = bench.runner.graphs, bench.engine
    assert graphs is not None
    graphs.most = 2
    texts = prompts(5, 9, 20, 30, 14, 8)
    for count in (1, 2, 3, 5):  # sizes 1, 2, 4 and 8, of which two may stay
        for text, [done] in zip(texts, engine.generate([asked(t, 9) for t in texts[:count]]), strict=False):
            assert furthest(engine.model, text, done) <= TOLERANCE
    assert bench.recorder.recorded == 2
    assert all(size.sequences in (1, 2) for size in graphs._kept)
    before = graphs._kept
    engine.store = Store(engine.runner.shapes(), 1 << 19, sequences=8, step=40, poison=True, whole=True)
    engine.scheduler.store = engine.store
    [[done]] = engine.generate([asked(texts[0], 9)])
    assert furthest(engine.model, texts[0], done) <= TOLERANCE
    assert graphs._kept is not before


@pytest.mark.usefixtures("single")
def test_a_recording_that_plays_other_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, real = Bench(monkeypatch, KINDS["rope"]), Recorder.__call__

    def stale(self: Recorder, f):
        _play, out = real(self, f)
        return (lambda: out.zero_()), out

    monkeypatch.setattr(Recorder, "__call__", stale)
    [[done]] = bench.engine.generate([asked(prompts(3, 20)[0], 9)])
    assert furthest(bench.engine.model, prompts(3, 20)[0], done) <= TOLERANCE
    assert "off" in bench.runner.graphs.refused
