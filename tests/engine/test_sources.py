"""Encoder–decoders under the engine: what a source becomes is held once, and the numbers stay."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from terakoya.config import override
from terakoya.engine.engine import Engine
from terakoya.engine.request import Completion, EngineError, Request
from terakoya.engine.sampling import Sampling
from terakoya.errors import TerakoyaError
from terakoya.model.build import Init, build, initialise
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.zoo.convert import Loaded
from terakoya.zoo.lineage import sized
from tests.engine.engine_fakes import byte_tokenizer, tiny
from tests.engine.engine_laws import TOLERANCE, asked, empty, engine_of

NAMES = ("t5", "bart", "transformer")  # the last is Marian's
START = (258,)


def translator(name: str, context: int = 96, seed: int = 0) -> Model:
    s = sized(f"{name}/nano")
    small = {"vocab": 259, "dim": 32, "context": context, "mlp.hidden": 48}
    s = override(s, {**small, "depth": 2, "encoder": override(s.encoder, {**small, "depth": 2})})
    return initialise(build(s), seed, Init(std=0.3))


MODELS = {name: translator(name) for name in NAMES}


def words(rng: random.Random, n: int) -> tuple[int, ...]:
    return tuple(rng.randrange(256) for _ in range(n))


def wanted(seed: int, tokens: int = 7) -> list[Request]:
    """Sources short, long, over several pages, and one twice; answers that begin with the start or with more."""
    rng = random.Random(seed)
    twice = words(rng, 37)
    return [
        asked(START, tokens, source=words(rng, 50), n=2),
        asked(START, tokens + 9, source=twice),
        asked((*START, *words(rng, 21)), tokens, source=words(rng, 1)),
        asked((*START, *words(rng, 4)), tokens - 2, source=twice),
        asked(START, tokens, source=words(rng, 16)),
    ]


@torch.no_grad()
def furthest(model: Model, request: Request, done: Completion) -> float:
    """How far the log-probabilities lie from those of one pass over the whole answer."""
    ids, source = [*request.prompt, *done.ids], torch.tensor(request.source)
    ctx = Packed([len(ids)], source=model.encode(source, [len(source)]))
    logits = model.head(model(torch.tensor(ids), ctx))[len(request.prompt) - 1 : -1]
    right = logits.log_softmax(-1)[torch.arange(len(done.ids)), torch.tensor(done.ids)]
    got = torch.tensor([p.logprob for p in done.logprobs])
    assert len(got) == len(done.ids) == request.sampling.max_tokens
    return float((right - got).abs().max()) / max(1.0, float(logits.abs().max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [5, 32])
def test_whatever_happens_the_numbers_stay(name: str, budget: int) -> None:
    """Mixed with others, in chunks, and again: then nothing is read that has been read before."""
    model, rng = MODELS[name], random.Random(budget)
    engine, requests = engine_of(model, max_tokens_per_step=budget), wanted(budget)
    read = counted(engine)
    for turn in range(2):
        handles = []
        for request in requests:
            handles.append(engine.submit(request))
            for _ in range(rng.randrange(3)):
                engine.step()
        found = [handle.result() for handle in handles]
        assert len(read) in ((4, 5) if turn == 0 else (0,)), "every source is read once (the one twice perhaps twice)"
        for request, choices in zip(requests, found, strict=True):
            for done in choices:
                assert furthest(model, request, done) <= TOLERANCE
                assert done.usage.prompt == len(request.prompt) + len(request.source or ())
        empty(engine)
        read.clear()


def counted(engine: Engine) -> list[int]:
    """The lengths of the sources that the encoder reads from now on."""
    read: list[int] = []
    whole = engine.model.encode

    def encode(tokens, lengths):
        read.extend(lengths)
        return whole(tokens, lengths)

    engine.model.__dict__["encode"] = encode
    return read


@pytest.fixture(autouse=True)
def uncounted():
    yield
    for model in MODELS.values():
        model.__dict__.pop("encode", None)


@pytest.mark.parametrize("name", NAMES)
def test_preempted_and_resumed(name: str) -> None:
    model = MODELS[name]
    store = engine_of(model).store
    assert store.sources is not None
    page = store.bytes // store.sources.pool.total
    engine = engine_of(model, memory_bytes=page * 7)
    requests = wanted(3, 45)
    for request, choices in zip(requests, engine.generate(requests), strict=True):
        assert all(furthest(model, request, done) <= TOLERANCE for done in choices)
    assert engine.scheduler.preemptions
    empty(engine)


def test_memory_of_sources_is_counted_and_given_back() -> None:
    engine = engine_of(MODELS["t5"])
    sources = engine.store.sources
    assert sources is not None
    assert engine.store.bytes <= 4 << 20
    assert sum(t.nbytes for ts in sources.memory.values() for t in ts) * 2 == engine.store.bytes  # half: as wide here
    handles = [engine.submit(r) for r in wanted(1)]
    engine.step()
    assert sources.pool.counts()[2] > 0
    handles[0].cancel()
    for handle in handles:
        handle.result()
    free, cached, live = sources.pool.counts()
    assert (free + cached, live) == (sources.pool.total, 0)
    assert cached
    engine.store.forget()
    assert sources.pool.counts() == (sources.pool.total, 0, 0)


def test_another_source_is_another_prefix() -> None:
    """The same beginning of an answer to another source is not known, nor under another salt; to the same it is."""
    engine, rng = engine_of(MODELS["bart"]), random.Random(0)
    prompt = (*START, *words(rng, 40))
    first, other = asked(prompt, 3, source=words(rng, 20)), asked(prompt, 3, source=words(rng, 20))
    apart = replace(first, salt="another tenant")
    cached = [engine.generate([r])[0][0].usage.cached for r in (first, first, other, apart)]
    assert cached == [0, 32, 0, 0]
    short = asked((*START, 1, 2), 30, source=first.source)  # a first block that the answer fills
    long = engine.generate([short])[0][0].ids
    for source, known in ((first.source, 32), (other.source, 0)):
        again = asked((*short.prompt, *long), 3, source=source)
        [[done]] = engine.generate([again])
        assert done.usage.cached == known
        assert furthest(engine.model, again, done) <= TOLERANCE


def test_an_encoder_that_fails_ends_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["transformer"]
    requests = wanted(2)
    fresh = [[c.ids for c in done] for done in engine_of(model).generate(requests)]
    engine = engine_of(model)
    monkeypatch.setitem(model.__dict__, "encode", lambda *_: 1 / 0)
    done = [c for choices in engine.generate(requests) for c in choices]
    assert {c.error.kind for c in done if c.error} == {"step"}
    assert all(c.error for c in done)
    monkeypatch.undo()
    assert [[c.ids for c in done] for done in engine.generate(requests)] == fresh
    empty(engine)


def test_long_sources_are_read_a_step_each() -> None:
    """Sources do not pile up in one step: who answers waits for one encoder at most."""
    engine = engine_of(MODELS["t5"], max_tokens_per_step=40)
    read = counted(engine)
    handles = [engine.submit(asked(START, 8, source=words(random.Random(i), 30))) for i in range(4)]
    for n in range(1, 5):
        engine.step()
        assert len(read) == n
    assert all(h.result()[0].finish == "length" for h in handles)


def test_wrong_requests_are_one_line() -> None:
    engine = engine_of(MODELS["t5"])
    for source in (None, (), (259,), (-1,)):
        with pytest.raises(TerakoyaError, match=r"request\.source"):
            engine.submit(asked(START, 3, source=source))
    with pytest.raises(EngineError, match="97 tokens; there is room for 96") as error:
        engine.submit(asked(START, 3, source=(1,) * 97))
    assert error.value.kind == "too long"
    with pytest.raises(TerakoyaError, match=r"request\.source.*has none"):
        engine_of(tiny()).submit(asked((1, 2), 3, source=(1,)))


def test_eight_bits_hold_sources_too() -> None:
    model, request = MODELS["bart"], wanted(0)[1]
    engine = engine_of(model, kept="int8")
    [[done]] = engine.generate([request])
    assert furthest(model, request, done) < 0.05
    assert engine.store.sources is not None
    assert {t.dtype for ts in engine.store.sources.memory.values() for t in ts} == {torch.int8, torch.float16}


def test_deterministic() -> None:
    def engine() -> Engine:
        loaded = Loaded(MODELS["bart"], byte_tokenizer(), "test")
        return Engine(loaded, deterministic=True, threaded=False, memory_bytes=1 << 20)

    needle = asked((*START, 5), 20, source=range(40), how={"temperature": 0.8, "seed": 3})
    [[alone]] = engine().generate([needle])
    other = Request(START, Sampling(max_tokens=9), source=(1, 2, 3))
    busy = engine().generate([*wanted(2), needle, other])[5][0]
    assert (busy.ids, busy.logprobs) == (alone.ids, alone.logprobs)


def test_the_first_line_says_so() -> None:
    told = engine_of(MODELS["t5"]).describe()
    assert "tokens of sources" in told
    assert "by PyTorch" in told
