"""A smaller model that guesses ahead: the answers are those without it, and what it is worth is told."""

from __future__ import annotations

import pytest
import torch

from terakoya.engine.drafting import AHEAD
from terakoya.engine.engine import Engine
from terakoya.engine.request import Request
from terakoya.engine.sampling import Sampling
from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.tokenizer import train
from terakoya.zoo.convert import Loaded
from tests.engine.engine_fakes import byte_tokenizer, tiny
from tests.engine.engine_laws import TOLERANCE, asked, empty, engine_of, furthest

pytestmark = pytest.mark.usefixtures("by")
PROMPTS = ((100, 7, 200, 33, 65), (1,), tuple(range(40, 90)), (5, 6) * 12)
HOWS = (
    Sampling(temperature=0, max_tokens=24),
    Sampling(seed=3, temperature=0.7, max_tokens=20),
    Sampling(seed=1, top_p=0.8, repetition=1.3, presence=0.4, min_tokens=5, max_tokens=20),
    Sampling(temperature=0, repetition=1.5, max_tokens=9),
)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny(context=256)


def alike(model: Model, noise: float) -> Model:
    """A model that says nearly the same."""
    other = tiny(context=model.spec.context)
    with torch.no_grad():
        for i, p in enumerate(other.parameters()):
            p += noise * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return other


def of(model: Model, tokenizer=None) -> Loaded:
    return Loaded(model, tokenizer or byte_tokenizer(), "test")


def drawn(engine: Engine, **more) -> list[list[int]]:
    requests = [Request(p, how, ignore_end=True, **more) for p in PROMPTS for how in HOWS]
    found = [done.ids for [done] in engine.generate(requests)]
    empty(engine)
    return found


DRAFTS = {"perfect": 0.0, "good": 0.001, "bad": None}


@pytest.mark.parametrize("name", DRAFTS)
def test_answers_are_the_same_and_acceptance_is_told(model: Model, name: str) -> None:
    """Whoever guesses, greedy or drawn, with penalties or without; all in one engine."""
    noise = DRAFTS[name]
    draft = tiny(context=256, seed=9) if noise is None else alike(model, noise)
    engine = engine_of(model, draft=of(draft), max_tokens_per_step=200)
    assert drawn(engine) == drawn(engine_of(model))
    drafter = engine.scheduler.drafter
    assert drafter is not None
    assert not drafter.broken
    assert not drafter.tracks
    rate = engine.counts.accepted / engine.counts.proposed
    if name == "perfect":
        assert rate == 1
        assert engine.counts.steps < 24 / (AHEAD + 1) + 14
    else:
        assert rate > 0.5 if name == "good" else rate < 0.2
    for free, _, live in [g.pool.counts() for g in drafter.store.groups]:
        assert live == 0
        assert free


def test_a_perfect_draft_is_told_in_the_usage(model: Model) -> None:
    engine = engine_of(model, draft=of(model))
    [[done]] = engine.generate([asked(PROMPTS[0], 21)])
    assert done.usage.proposed == done.usage.accepted > 10
    assert furthest(model, PROMPTS[0], done) <= TOLERANCE
    assert f"draft up to {AHEAD} ahead (float32, model by" in engine.describe()


def test_looking_up_comes_first_where_it_is_asked_for(model: Model) -> None:
    engine = engine_of(model, draft=of(tiny(context=256, seed=9)))
    assert drawn(engine, draft=6) == drawn(engine_of(model))
    drafter = engine.scheduler.drafter
    assert drafter is not None
    asks: list[int] = []
    whole = drafter.guess
    drafter.guess = lambda a: asks.append(len(a)) or whole(a)
    engine.generate([asked([5] * 40, 4, draft=6)])
    assert 0 in asks, "the small model was asked for what the text says already"


def test_preempted_chunked_and_out_of_room(model: Model) -> None:
    """Small steps, long prompts, memory for two of six: the guesses may fail, the answers may not."""
    requests = [asked([i, *range(40)], 40) for i in range(6)]
    wanted = [c.ids for [c] in engine_of(model).generate(requests)]
    page = engine_of(model).store
    budget = 16 * page.bytes // page.groups[0].pool.total
    engine = engine_of(model, draft=of(model), memory_bytes=budget, max_tokens_per_step=12)
    assert [c.ids for [c] in engine.generate(requests)] == wanted
    assert engine.scheduler.preemptions
    empty(engine)


def test_a_draft_of_less_context_stops_guessing(model: Model) -> None:
    engine = engine_of(model, draft=of(tiny(context=32)))
    assert [c.ids for [c] in engine.generate([asked(PROMPTS[0], 60)])] == [
        c.ids for [c] in engine_of(model).generate([asked(PROMPTS[0], 60)])
    ]
    assert 0 < engine.counts.proposed <= 32


def test_a_draft_that_fails_fails_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(model, draft=of(model))
    drafter = engine.scheduler.drafter
    assert drafter is not None
    monkeypatch.setattr(drafter.runner, "compute", lambda *_: 1 / 0)
    assert drawn(engine) == drawn(engine_of(model))
    assert drafter.broken
    assert not engine.counts.failures
    assert engine.counts.proposed == 0


def test_a_draft_that_gives_no_numbers_fails_alone(model: Model) -> None:
    bad = tiny(context=256)
    with torch.no_grad():
        bad.embed.token.weight.fill_(float("nan"))
    engine = engine_of(model, draft=of(bad))
    assert drawn(engine) == drawn(engine_of(model))


def test_drafts_that_cannot_be_are_one_line(model: Model) -> None:
    for draft, words in (
        (Loaded(tiny(), train([], "bytes", 259).with_template("chatml"), "test"), None),
        (Loaded(tiny(), None, "test"), "no tokenizer to compare"),
        (Loaded(tiny(), other_words(), "test"), "another vocabulary"),
    ):
        if words is None:  # another template is no other word
            assert engine_of(model, draft=draft).generate([asked(PROMPTS[0], 5)])[0][0].finish == "length"
            continue
        with pytest.raises(TerakoyaError, match=words) as error:
            engine_of(model, draft=draft)
        assert "\n" not in str(error.value)
    with pytest.raises(TerakoyaError, match="deterministic"):
        engine_of(model, draft=of(tiny()), deterministic=True)


def other_words():
    """As many tokens, two of them swapped for merges."""
    return train(["ab" * 50, "ab cd " * 40], "bpe", 260)
