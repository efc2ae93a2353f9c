"""Pictures in a prompt: the numbers are those of one pass over the whole, whatever else is going on."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from terakoya.config import override
from terakoya.engine.engine import Engine
from terakoya.engine.request import Completion, Request
from terakoya.engine.sampling import Sampling
from terakoya.engine.vectors import Vectors, pictured
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.build import Init, build, initialise
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.zoo.convert import Loaded
from terakoya.zoo.lineage import sized
from tests.engine.engine_fakes import byte_tokenizer, tiny
from tests.engine.engine_laws import TOLERANCE, asked, empty, engine_of

MARK, PLACES = 258, 16
EYE = spec.Sight(image=16, patch=4, dim=16, depth=2, heads=2, hidden=24, token=MARK)


def seeing(context: int = 160) -> Model:
    s = override(sized("llava1.5/nano"), {"vocab": 259, "dim": 32, "depth": 2, "context": context})
    s = override(s, {"mlp.hidden": 64, "sight": EYE})
    return initialise(build(s), 0, Init(std=0.3))


@pytest.fixture(scope="module")
def model() -> Model:
    return seeing()


def pixels(*seeds: int) -> Tensor:
    return torch.stack([torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(s)) * 3 for s in seeds])


def asked_of(model: Model, ids: list[int], seeds: list[int], tokens: int = 6, **more) -> Request:
    if not seeds:
        return asked(ids, tokens, **more)
    prompt, vectors = pictured(model, ids, pixels(*seeds))
    return asked(prompt, tokens, vectors=vectors, **more)


@torch.no_grad()
def furthest(model: Model, request: Request, done: Completion) -> float:
    """How far the log-probabilities lie from those of one pass over prompt and answer, with the vectors in place."""
    ids, given = [*request.prompt, *done.ids], request.vectors
    vectors = None if given is None else (torch.tensor(given.places), given.rows)
    logits = model.head(model(torch.tensor(ids), Packed([len(ids)], vectors=vectors)))[len(request.prompt) - 1 : -1]
    wanted = logits.log_softmax(-1)[torch.arange(len(done.ids)), torch.tensor(done.ids)]
    got = torch.tensor([p.logprob for p in done.logprobs])
    return float((wanted - got).abs().max()) / max(1.0, float(logits.abs().max()))


def requests_of(model: Model, seed: int) -> list[Request]:
    rng = random.Random(seed)
    words = lambda n: [rng.randrange(256) for _ in range(n)]
    return [
        asked_of(model, [*words(5), MARK, *words(20)], [1], 5),
        asked_of(model, words(33), [], 7),
        asked_of(model, [*words(17), MARK, *words(3), MARK, *words(9)], [2, 3], 9, n=2),
        asked_of(model, [MARK, *words(2)], [4], 4),
    ]


@pytest.mark.parametrize("budget", [5, 32, 200])
def test_whatever_happens_the_numbers_stay(model: Model, budget: int) -> None:
    """In chunks that cut pictures anywhere, mixed with others, again from the cache."""
    engine, rng = engine_of(model, max_tokens_per_step=budget), random.Random(budget)
    requests = requests_of(model, budget)
    for turn in range(2):
        handles = []
        for request in requests:
            handles.append(engine.submit(request))
            for _ in range(rng.randrange(3)):
                engine.step()
        for request, handle in zip(requests, handles, strict=True):
            for done in handle.result():
                assert furthest(model, request, done) <= TOLERANCE
                if turn:
                    assert done.usage.cached >= (len(request.prompt) - 1) // 16 * 16
        empty(engine)


def test_preempted_and_resumed(model: Model) -> None:
    store = engine_of(model).store
    engine = engine_of(model, memory_bytes=store.bytes // store.groups[0].pool.total * 8)
    requests = [replace(r, sampling=replace(r.sampling, max_tokens=40)) for r in requests_of(model, 0)]
    for request, choices in zip(requests, engine.generate(requests), strict=True):
        assert all(furthest(model, request, done) <= TOLERANCE for done in choices)
    assert engine.scheduler.preemptions
    empty(engine)


def test_another_picture_is_another_prefix(model: Model) -> None:
    """The same ids round another picture: what stands before it is known, the picture and what follows is not."""
    engine = engine_of(model)
    ids = [*range(40), MARK, *range(60, 90)]
    first, again, other = (asked_of(model, ids, [s]) for s in (1, 1, 2))
    marks_only = asked(first.prompt, 6)
    [[a]], [[b]], [[c]], [[d]] = (engine.generate([r]) for r in (first, again, other, marks_only))
    assert [x.usage.cached for x in (a, b, c, d)] == [0, 80, 32, 32]
    assert a.ids == b.ids != c.ids
    for request, done in ((first, a), (again, b), (other, c), (marks_only, d)):
        assert furthest(model, request, done) <= TOLERANCE


def test_vectors_need_no_eye() -> None:
    """Any rows may stand in a text, at any places, of any decoder that PyTorch runs."""
    model = tiny(context=128)
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)) * 0.3
    request = asked(range(30), 6, vectors=Vectors((0, 7, 29), rows))
    engine = engine_of(model, by="torch", max_tokens_per_step=9)
    [[done]], [[plain]] = engine.generate([request]), engine.generate([asked(range(30), 6)])
    assert furthest(model, request, done) <= TOLERANCE
    assert done.ids != plain.ids


def test_who_computes_is_said(model: Model) -> None:
    assert "pictures: enter as vectors, which PyTorch reads" in engine_of(model).describe()
    native = engine_of(model, by="native")
    assert native.generate([asked(range(9), 5)])[0][0].ids == engine_of(model).generate([asked(range(9), 5)])[0][0].ids
    with pytest.raises(TerakoyaError, match=r"request\.vectors.*PyTorch only.*native program"):
        native.submit(asked_of(model, [MARK], [1]))


def test_wrong_vectors_are_one_line(model: Model) -> None:
    for places, rows in (((1,), torch.zeros(2, 32)), ((2, 1), torch.zeros(2, 32)), ((0,), torch.zeros(1, 32).int())):
        with pytest.raises(TerakoyaError, match="vectors"):
            Vectors(places, rows)
    engine = engine_of(model)
    for places, rows in (((0,), torch.zeros(1, 31)), ((9,), torch.zeros(1, 32))):
        with pytest.raises(TerakoyaError, match=r"request\.vectors"):
            engine.submit(asked(range(9), 5, vectors=Vectors(places, rows)))
    with pytest.raises(TerakoyaError, match="places for pictures"):
        pictured(model, [1, 2, MARK], pixels(1, 2))
    with pytest.raises(TerakoyaError, match="cannot see"):
        pictured(tiny(), [1], pixels(1))
    bad = Vectors((1,), torch.full((1, 32), float("nan")))
    [[done]] = engine.generate([asked(range(9), 5, vectors=bad)])
    assert done.error is not None
    assert done.error.kind == "numbers"
    empty(engine)


def test_deterministic(model: Model) -> None:
    def engine() -> Engine:
        return Engine(Loaded(model, byte_tokenizer(), "test"), deterministic=True, threaded=False, memory_bytes=1 << 20)

    how = {"temperature": 0.8, "seed": 3}
    needle = asked_of(model, [*range(20), MARK, *range(7)], [5], 12, how=how)
    [[alone]] = engine().generate([needle])
    busy = engine().generate([*requests_of(model, 2), needle, Request((1, 2), Sampling(max_tokens=9))])[4][0]
    assert (busy.ids, busy.logprobs) == (alone.ids, alone.logprobs)
