"""The engine from outside: answers, choices, limits, cancelling, faults, threads, determinism."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from terakoya.engine import engine as module
from terakoya.engine.engine import Engine
from terakoya.engine.generate import complete
from terakoya.engine.request import EngineError, Request
from terakoya.engine.sampling import Sampling
from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.zoo.convert import Loaded
from tests.engine.engine_fakes import Actor, byte_tokenizer, tiny
from tests.engine.engine_laws import BY, asked, empty, engine_of
from tests.model import small

pytestmark = pytest.mark.usefixtures("by")
PROMPT = (100, 7, 200, 33, 65)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny(context=256)


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    engine = engine_of(model)
    yield engine
    empty(engine)


HOWS = [
    Sampling(temperature=0, max_tokens=20),
    Sampling(seed=3, max_tokens=20),
    Sampling(seed=0, top_k=5, temperature=0.7, max_tokens=15),
    Sampling(
        seed=2**63, top_p=0.8, min_p=0.01, typical=0.9, repetition=1.3, presence=0.5, frequency=0.2, max_tokens=25
    ),
    Sampling(seed=1, logit_bias=((65, 5.0), (66, -100.0)), min_tokens=4, stop=("A",), max_tokens=30),
    Sampling(temperature=0, repetition=1.5, max_tokens=10, min_tokens=10),
]


def test_answers_are_those_of_the_plain_loop(engine: Engine) -> None:
    """All together in one engine: the ids, the text and the reason are those of each alone."""
    found = engine.generate([Request(PROMPT, how) for how in HOWS])
    for how, [done] in zip(HOWS, found, strict=True):
        alone = complete(engine.model, engine.tokenizer, PROMPT, how)
        assert (done.ids, done.text, done.finish) == (alone.ids, alone.text, alone.finish)
        assert done.usage.prompt == len(PROMPT)
        assert done.usage.completion == len(done.ids)


def test_choices_differ_and_repeat(engine: Engine) -> None:
    how = Sampling(seed=5, max_tokens=12)
    prompt = tuple(range(40, 80))
    first, again = engine.generate([Request(prompt, how, n=4), Request(prompt, how, n=4)])
    assert [c.ids for c in first] == [c.ids for c in again]
    assert len({tuple(c.ids) for c in first}) == 4
    assert [c.index for c in first] == [0, 1, 2, 3]
    assert all(c.usage.cached >= 32 for c in first[1:]), "the prompt was computed more than once"
    assert first[2].ids == complete(engine.model, engine.tokenizer, prompt, how, choice=2).ids


@pytest.mark.parametrize("of", ["raw", "processed"])
def test_logprobs(engine: Engine, of: str) -> None:
    how = Sampling(seed=5, max_tokens=6, temperature=0.5, top_k=3)
    [[done]] = engine.generate([Request(PROMPT, how, logprobs=5, logprobs_of=of)])
    for told in done.logprobs:
        ids, values = zip(*told.top, strict=True)
        assert told.id in ids
        assert list(values) == sorted(values, reverse=True)
        assert dict(told.top)[told.id] == told.logprob <= 0
        assert len(ids) == (5 if of == "raw" else 3)
        if of == "processed":
            assert sum(map(torch.tensor(values).exp().tolist().__getitem__, range(3))) == pytest.approx(1, abs=1e-5)


def test_what_must_not_be_said(engine: Engine) -> None:
    [[plain]] = engine.generate([Request(PROMPT, Sampling(temperature=0, max_tokens=8))])
    a, b, *_ = plain.ids
    one = Request(PROMPT, Sampling(temperature=0, max_tokens=8), bad_words=((a,),))
    two = Request(PROMPT, Sampling(temperature=0, max_tokens=8), bad_words=((a, b), (3, 4, 5)))
    [[first], [second]] = engine.generate([one, two])
    assert a not in first.ids
    assert second.ids[0] == a
    assert all(pair != (a, b) for pair in zip(second.ids, second.ids[1:], strict=False))
    [[ended]] = engine.generate([Request(PROMPT, Sampling(temperature=0, max_tokens=8), stop_ids=frozenset({b}))])
    assert (ended.ids, ended.finish) == ([a, b], "end")


def test_the_stream_is_the_whole(engine: Engine) -> None:
    request = Request(PROMPT, Sampling(seed=9, max_tokens=40), n=2, logprobs=1)
    deltas = list(engine.submit(request))
    whole = engine.submit(request).result()
    for choice in whole:
        mine = [d for d in deltas if d.index == choice.index]
        assert "".join(d.text for d in mine) == choice.text
        assert [i for d in mine for i in d.ids] == choice.ids
        assert [d.finish for d in mine if d.finish] == [choice.finish]
        assert mine[-1].finish


def test_seeds_do_not_know_their_neighbours(model: Model) -> None:
    how = Sampling(seed=11, max_tokens=20, top_p=0.95)
    [[alone]] = engine_of(model).generate([Request(PROMPT, how)])
    rng = random.Random(0)
    crowd = [
        Request(tuple(rng.randrange(256) for _ in range(rng.randrange(1, 60))), Sampling(max_tokens=9))
        for _ in range(9)
    ]
    crowd.insert(4, Request(PROMPT, how))
    assert engine_of(model).generate(crowd)[4][0].ids == alone.ids


def test_a_long_prompt_delays_nobody(model: Model) -> None:
    """With new 150-token prompts at every step, who runs still gets a token in every step (requirement R3)."""
    engine = engine_of(model, max_tokens_per_step=16)
    handle = engine.submit(asked(PROMPT, 30))
    engine.step()
    begun = engine.counts.drawn
    others = []
    for step in range(1, 21):
        others.append(engine.submit(asked([step] * 150, 2)))
        engine.step()
        assert engine.counts.drawn - begun >= step
    assert handle.result()[0].finish == "length"
    assert all(h.result()[0].finish == "length" for h in others)
    empty(engine)


def test_short_prompts_overtake_a_long_one(model: Model) -> None:
    engine = engine_of(model, max_tokens_per_step=32)
    long = engine.submit(asked([5] * 240, 2))
    short = engine.submit(asked([6] * 8, 2))
    for _ in range(3):
        engine.step()
    assert not short.open
    assert long.open
    long.cancel()
    engine.step()


def test_the_queue_is_bounded(model: Model) -> None:
    engine = engine_of(model, max_waiting=4, max_running=2)
    handles = [engine.submit(asked(PROMPT, 3)) for _ in range(2 + 4)]  # two take the free seats at once, four wait
    with pytest.raises(EngineError, match="full") as error:
        engine.submit(asked(PROMPT, 3))
    assert error.value.kind == "overloaded"
    with pytest.raises(EngineError):
        engine.submit(asked(PROMPT, 3, n=2))
    assert all(h.result()[0].finish == "length" for h in handles)
    tight = engine_of(model, max_waiting_tokens=12)
    handles = [tight.submit(asked(PROMPT, 3)) for _ in range(2)]
    with pytest.raises(EngineError):
        tight.submit(asked(PROMPT, 3))
    assert len(engine.generate([asked(PROMPT, 3)] * 11)) == 11, "an offline batch waits instead"


def test_refused_before_anything_happens(engine: Engine) -> None:
    with pytest.raises(EngineError) as error:
        engine.submit(asked([1] * 256))
    assert error.value.kind == "too long"
    for bad in ([], [-1], [259], [10**9]):
        with pytest.raises(TerakoyaError):
            engine.submit(asked(bad))
    for wrong in ({"n": 0}, {"n": 10**9}, {"logprobs_of": "x"}, {"bad_words": ((),)}, {"deadline": 0}, {"draft": -1}):
        with pytest.raises(TerakoyaError):
            asked(PROMPT, **wrong)
    with pytest.raises(TerakoyaError):
        Request(PROMPT, logprobs=10**6)
    small = engine_of(engine.model, memory_bytes=40_000)
    assert small.context < 256
    with pytest.raises(EngineError, match="room"):
        small.submit(asked([1] * 200))
    assert small.generate([asked([1] * (small.context - 4), 50)])[0][0].finish == "length"


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 12])
def test_cancelled(model: Model, steps: int) -> None:
    """Waiting, in the middle of the prompt, while answering, on the last step: it ends, and frees what it held."""
    engine = engine_of(model, max_tokens_per_step=8)
    other = engine.submit(asked(PROMPT, 4))
    handle = engine.submit(asked([3] * 30, 6, n=2))
    for _ in range(steps):
        engine.step()
    handle.cancel()
    handle.cancel()
    done = handle.result()
    assert {c.finish for c in done} <= {"abort", "length"}
    if steps < 3:
        assert {c.finish for c in done} == {"abort"}
    assert other.result()[0].finish == "length"
    empty(engine)


def test_deadline(model: Model) -> None:
    engine = engine_of(model)
    handle = engine.submit(asked(PROMPT, 200, deadline=0.02))
    engine.step()
    time.sleep(0.03)
    [done] = handle.result()
    assert done.finish == "deadline"
    assert 0 < len(done.ids) < 200
    empty(engine)


def broken(engine: Engine, problem: BaseException | None, when: int) -> None:
    """Let the model fail (or give NaN) in its `when`-th step from now, once."""
    compute, count = engine.runner.compute, 0

    def failing(*step) -> Tensor:
        nonlocal count
        count += 1
        if count == when:
            if problem is not None:
                raise problem
            return compute(*step) * float("nan")
        return compute(*step)

    engine.runner.compute = failing


@pytest.mark.parametrize(
    ("problem", "when"),
    [(RuntimeError("boom"), 1), (RuntimeError("boom"), 4), (MemoryError(), 2), (None, 4), (None, 6)],
)
def test_a_step_that_fails_ends_its_requests_and_no_others(problem: BaseException | None, when: int) -> None:
    model = tiny(context=256)
    engine = engine_of(model, max_tokens_per_step=24)
    [[wanted]] = engine.generate([asked(PROMPT, 8)])
    engine.store.forget()
    handles = [engine.submit(asked([i, *range(30)], 8, n=1 + i)) for i in range(3)]
    broken(engine, problem, when)
    later = None
    for _ in range(when):
        engine.step()
    later = engine.submit(asked(PROMPT, 8))
    done = [choice for h in handles for choice in h.result()]
    assert any(c.finish == "error" for c in done)
    kind = {"RuntimeError": "step", "MemoryError": "memory", "NoneType": "numbers"}[type(problem).__name__]
    assert {c.error.kind for c in done if c.error} == {kind}
    assert later.result()[0].ids == wanted.ids
    assert engine.counts.failures
    empty(engine)
    again = engine.generate([asked([i, *range(30)], 8) for i in range(3)])
    assert all(c.finish == "length" and all(p.logprob <= 0 for p in c.logprobs) for [c] in again), "spoilt pages"


def test_a_text_that_fails_ends_one_choice(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(model)
    monkeypatch.setattr(module.sampler, "draw", lambda *_: 1 / 0)
    assert engine.generate([asked(PROMPT, 8)])[0][0].error.kind == "step"
    monkeypatch.undo()
    assert engine.generate([asked(PROMPT, 8)])[0][0].finish == "length"
    empty(engine)


def threaded(model: Model, **more) -> Engine:
    return engine_of(model, threaded=True, **more)


def test_many_threads(model: Model) -> None:
    """Submitted, cancelled and read from eight threads at once; everybody gets the answer that he gets alone."""
    expected = {
        k: complete(model, byte_tokenizer(), [k, k + 1], Sampling(seed=k, max_tokens=12)).ids for k in range(24)
    }
    found: dict[int, list[int]] = {}
    with threaded(model) as engine:

        def ask(k: int) -> None:
            doomed = engine.submit(asked([k] * 50, 100))
            found[k] = engine.submit(Request((k, k + 1), Sampling(seed=k, max_tokens=12))).result()[0].ids
            doomed.cancel()
            assert doomed.result()[0].finish in ("abort", "length")

        threads = [threading.Thread(target=ask, args=(k,)) for k in range(24)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(30)
        assert found == expected
    empty(engine)


def test_coroutines(model: Model) -> None:
    async def ask(engine: Engine, k: int) -> list[int]:
        return [i async for d in engine.submit(Request((k,), Sampling(seed=k, max_tokens=10))) for i in d.ids]

    async def leave(engine: Engine) -> None:
        async for _ in engine.submit(asked(PROMPT, 200)):
            break

    async def all_of_them(engine: Engine) -> list[list[int]]:
        found = await asyncio.gather(*(ask(engine, k) for k in range(6)), leave(engine))
        return found[:-1]

    with threaded(model) as engine:
        got = asyncio.run(all_of_them(engine))
    assert got == [complete(model, byte_tokenizer(), [k], Sampling(seed=k, max_tokens=10)).ids for k in range(6)]
    empty(engine)


def test_closing_leaves_nobody_waiting(model: Model) -> None:
    engine = threaded(model)
    handles = [engine.submit(asked([k] * 40, 200)) for k in range(5)]
    next(iter(handles[0]))
    engine.close()
    engine.close()
    assert all(h.result()[0].finish == "abort" for h in handles[1:])
    with pytest.raises(EngineError) as error:
        engine.submit(asked(PROMPT))
    assert error.value.kind == "closed"
    empty(engine)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_dies_leaves_nobody_waiting(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = threaded(model)
    monkeypatch.setattr(engine, "_settle", lambda: 1 / 0)
    done = engine.submit(asked(PROMPT)).result()
    assert done[0].error is not None
    assert done[0].error.kind == "closed"
    with pytest.raises(EngineError):
        engine.submit(asked(PROMPT))


@pytest.mark.parametrize("name", ["llama2", "experts"])
def test_deterministic(name: str) -> None:
    """Bit for bit the same alone, in any company, after preemption and from the cache (requirement R7)."""
    model = tiny(context=256) if name == "llama2" else small.made(small.SPECS[name])
    vocab, context = model.spec.vocab, model.spec.context

    def engine(**more) -> Engine:
        settings = {"memory_bytes": 1 << 20, "threaded": False, "poison": True, "max_tokens_per_step": 64} | more
        return Engine(Loaded(model, None, "test"), deterministic=True, by=BY.get(), **settings)

    rng = random.Random(1)
    needle = Request(
        tuple(rng.randrange(vocab) for _ in range(context // 2 + 5)),
        Sampling(seed=4, max_tokens=20, top_p=0.9),
        logprobs=2,
    )
    [[alone]] = engine().generate([needle])
    page = engine().store.bytes // engine().store.groups[0].pool.total
    for memory, crowd in ((1 << 20, 3), (1 << 20, 9), (page * (context // 16 + 3), 5)):
        busy = engine(memory_bytes=memory)
        for turn in range(2):
            requests = [Request(tuple(rng.randrange(vocab) for _ in range(rng.randrange(1, 40)))) for _ in range(crowd)]
            requests.insert(rng.randrange(crowd), needle)
            requests.append(Request(needle.prompt[:40] + needle.prompt[:3]))
            handles = []
            for r in requests:
                handles.append(busy.submit(r))
                for _ in range(rng.randrange(4)):
                    busy.step()
            [found] = handles[requests.index(needle)].result()
            assert (found.ids, found.logprobs) == (alone.ids, alone.logprobs), (memory, crowd, turn)
            for h in handles:
                h.cancel()
            while busy.step():
                pass


@pytest.mark.parametrize(
    "how", [Sampling(temperature=0, max_tokens=60), Sampling(seed=1, temperature=0.3, max_tokens=60)]
)
def test_drafts_change_nothing(model: Model, how: Sampling) -> None:
    rng = random.Random(0)
    texts = [tuple([rng.randrange(256) for _ in range(9)] * 4), PROMPT]
    for request in (Request(t, how, ignore_end=True) for t in texts):
        [[plain]] = engine_of(model).generate([request])
        engine = engine_of(model)
        drafting = Request(request.prompt, how, ignore_end=True, draft=5)
        [[found], [_]] = engine.generate([drafting, asked(PROMPT, 20)])
        assert found.ids == plain.ids
        assert found.usage.accepted <= found.usage.proposed
        empty(engine)


def test_drafts_are_accepted_where_text_repeats() -> None:
    script = list(range(60, 80)) * 4
    actor = Actor(script, 5, 259)
    engine = Engine(Loaded(actor, byte_tokenizer(), "test"), threaded=False, memory_bytes=1 << 20)  # type: ignore[arg-type]
    [[done]] = engine.generate([Request(PROMPT, Sampling(temperature=0, max_tokens=80), draft=8)])
    assert done.ids == script
    assert done.usage.accepted > 45
    assert engine.counts.steps < 40


def test_the_first_line_says_what_runs(model: Model, by: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "terakoya.engine"):
        engine_of(model)
    assert "device cpu · weights float32 · memory" in caplog.text
    assert "tokens in float32 · context 256 · threads" in caplog.text
    assert ("by the native program" if by == "native" else "by PyTorch") in caplog.text
