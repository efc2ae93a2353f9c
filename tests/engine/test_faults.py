"""Whatever breaks, and whoever computes: every handle ends with a typed reason, and the next request works."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
import torch

from terakoya.config import override
from terakoya.engine import engine as module
from terakoya.engine.engine import Engine
from terakoya.engine.handle import Handle
from terakoya.engine.request import Completion, EngineError, Request
from terakoya.engine.runner import NativeRunner
from terakoya.engine.sampling import Sampling
from terakoya.model.build import Init, build, initialise
from terakoya.model.model import Model
from tests.engine.engine_fakes import tiny
from tests.engine.engine_laws import asked, empty, engine_of

pytestmark = pytest.mark.usefixtures("by")
PROMPT = (100, 7, 200, 33, 65)
OTHERS = [(i, *range(40, 70)) for i in range(3)]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny(context=256)


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    """Steps by itself, in its thread, as it does for a server."""
    with engine_of(model, threaded=True, max_tokens_per_step=24) as engine:
        yield engine
    empty(engine)


def ended(handles: Sequence[Handle]) -> list[Completion]:
    """All choices of all handles; a handle that stays open is a failure, not a test that hangs."""
    found: list[list[Completion] | None] = [None] * len(handles)

    def wait(i: int) -> None:
        found[i] = handles[i].result()

    threads = [threading.Thread(target=wait, args=(i,), daemon=True) for i in range(len(handles))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert all(done is not None for done in found), "somebody still waits"
    return [choice for done in found if done is not None for choice in done]


def working(engine: Engine, model: Model) -> None:
    """A new request, and those whose pages broke off, get the answers of an engine that never failed."""
    requests = [asked(PROMPT, 6), *(asked(p, 6) for p in OTHERS)]
    fresh = engine_of(model).generate(requests)
    found = ended([engine.submit(r) for r in requests])
    assert [c.ids for c in found] == [c.ids for [c] in fresh]


def within(engine: Engine, monkeypatch: pytest.MonkeyPatch, problem: Exception, when: int) -> None:
    """Let the library, or a layer of the model, fail in its `when`-th call from now."""
    count, runner = 0, engine.runner
    place, name = (runner.native.program, "run") if isinstance(runner, NativeRunner) else (runner.model.head, "forward")
    whole = getattr(place, name)

    def failing(*args, **more):
        nonlocal count
        count += 1
        if count == when:
            raise problem
        return whole(*args, **more)

    monkeypatch.setattr(place, name, failing)


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (RuntimeError("boom"), "step"),
        (MemoryError("no room"), "memory"),
        (torch.OutOfMemoryError("no room"), "memory"),
        (AssertionError("ours"), "step"),
    ],
)
@pytest.mark.parametrize("when", [1, 5])
def test_the_model_fails(
    engine: Engine, model: Model, monkeypatch: pytest.MonkeyPatch, problem: Exception, kind: str, when: int
) -> None:
    within(engine, monkeypatch, problem, when)
    done = ended([engine.submit(asked(p, 12, n=2)) for p in OTHERS])
    assert {c.finish for c in done} <= {"error", "length"}
    kinds = {c.error.kind for c in done if c.error}
    assert kinds == {kind}
    assert all(type(problem).__name__ in str(c.error) and "\n" not in str(c.error) for c in done if c.error)
    monkeypatch.undo()
    working(engine, model)


def spoilt(token: int) -> Model:
    """A model one of whose token vectors is no number."""
    s = tiny(context=256).spec
    made = initialise(build(override(s, {"head.tied": False})), 0, Init(std=0.3))
    with torch.no_grad():
        made.embed.token.weight[token, 3] = float("nan")
    return made


def test_numbers_that_are_none_end_whoever_has_them() -> None:
    """A token whose vector is NaN, in one prompt of a step: the others, read beside it, and their pages are whole."""
    bad = spoilt(7)
    how = {"logit_bias": ((7, -100.0),)}
    with engine_of(bad, threaded=True) as engine:
        clean = [asked(p, 10, how=how) for p in OTHERS]
        wanted = [c.ids for [c] in engine_of(bad).generate(clean)]
        for _ in range(2):
            handles = [engine.submit(r) for r in (*clean, asked([*OTHERS[0], 7], 10), asked([1, 2, 7, 3], 10))]
            *good, first, second = ended(handles)
            assert [c.ids for c in good] == wanted
            for c in (first, second):
                assert c.error is not None
                assert (c.finish, c.error.kind, c.ids) == ("error", "numbers", [])
    empty(engine)


class Breaking:
    """A grammar that allows all for a while."""

    def __init__(self, after: int, how: str) -> None:
        self.after, self.how, self.taken, self.ended = after, how, 0, False

    def matcher(self) -> Breaking:
        return Breaking(self.after, self.how)

    def mask(self, vocab: int) -> torch.Tensor:
        if self.how == "mask" and self.taken == self.after:
            raise EngineError("grammar", "grammar", "broke off: out of fuel")
        return torch.full((vocab,), self.how != "nothing" or self.taken < self.after)

    def take(self, id: int) -> None:
        self.taken += 1
        if self.how == "take" and self.taken > self.after:
            raise EngineError("grammar", "grammar", "broke off: no such token")


@pytest.mark.parametrize("after", [0, 4])
@pytest.mark.parametrize("how", ["mask", "take", "nothing"])
def test_a_grammar_fails(engine: Engine, model: Model, how: str, after: int) -> None:
    other = asked(OTHERS[0], 12)
    [[wanted]] = engine_of(model).generate([other])
    grammar = Breaking(after, how)
    how_long = Sampling(seed=1, max_tokens=20, min_tokens=20)
    handles = [engine.submit(Request(PROMPT, how_long, grammar=grammar)), engine.submit(other)]  # type: ignore[arg-type]
    broken, whole = ended(handles)
    assert broken.error is not None
    assert (broken.finish, broken.error.kind, len(broken.ids)) == ("error", "grammar", after)
    assert whole.ids == wanted.ids
    working(engine, model)


@pytest.mark.parametrize("steps", [1, 3])
def test_cancelled_in_the_middle_of_the_prompt(model: Model, steps: int) -> None:
    engine = engine_of(model, max_tokens_per_step=8)
    handle, other = engine.submit(asked([3] * 60, 6, n=2)), engine.submit(asked(PROMPT, 4))
    for _ in range(steps):
        engine.step()
    assert 0 < max(c.computed for c in engine.scheduler.running) < 60
    handle.cancel()
    engine.step()
    assert {c.finish for c in handle.result()} == {"abort"}
    assert other.result()[0].finish == "length"
    working_alone(engine, model)


def working_alone(engine: Engine, model: Model) -> None:
    [[wanted]] = engine_of(model).generate([asked([3] * 60, 6)])
    assert engine.generate([asked([3] * 60, 6)])[0][0].ids == wanted.ids
    empty(engine)


def test_out_of_blocks(model: Model) -> None:
    """Six answers of which two fit: nobody is refused, nobody waits for ever, and all say what they say alone."""
    page = engine_of(model).store
    budget = 8 * page.bytes // page.groups[0].pool.total
    requests = [asked([i] * 30, 40) for i in range(6)]
    wanted = [c.ids for [c] in engine_of(model).generate(requests)]
    with engine_of(model, threaded=True, memory_bytes=budget) as engine:
        assert [c.ids for c in ended([engine.submit(r) for r in requests])] == wanted
        assert engine.scheduler.preemptions
        with pytest.raises(EngineError) as error:
            engine.submit(asked([1] * 200))
        assert error.value.kind == "too long"
    empty(engine)


@pytest.mark.parametrize("place", ["open", "extend", "settle"])
@pytest.mark.parametrize("problem", [RuntimeError("boom"), MemoryError()])
def test_the_store_fails(
    engine: Engine, model: Model, monkeypatch: pytest.MonkeyPatch, place: str, problem: Exception
) -> None:
    """Planning is everybody's: where it breaks, all end, memory begins anew, and the engine goes on."""
    whole, count = getattr(engine.store, place), 0

    def failing(*args, **more):
        nonlocal count
        count += 1
        if count == 4:
            raise problem
        return whole(*args, **more)

    monkeypatch.setattr(engine.store, place, failing)
    done = ended([engine.submit(asked(p, 12, n=2)) for p in OTHERS])
    kinds = {c.error.kind for c in done if c.error}
    assert kinds == {"memory" if isinstance(problem, MemoryError) else "step"}
    monkeypatch.undo()
    working(engine, model)


def test_a_failure_that_stays_is_told_to_everybody(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.scheduler, "plan", lambda: 1 / 0)
    for _ in range(3):
        [done] = ended([engine.submit(asked(PROMPT))])
        assert done.error is not None
        assert done.error.kind == "step"


def test_drawing_fails(engine: Engine, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sampler, "draw", lambda *_: 1 / 0)
    done = ended([engine.submit(asked(p, 8)) for p in OTHERS])
    assert {c.error.kind for c in done if c.error} == {"step"}
    monkeypatch.undo()
    working(engine, model)
