"""Sampling: distributions equal to transformers', draws that follow them, and depend on their place alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terakoya.engine.sampling import History, Sampling, draw, process, uniform
from terakoya.errors import TerakoyaError

INF = math.inf


def random_logits(seed: int, size: int = 1000, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def theirs(logits: torch.Tensor, ids: list[int], processors: list[Any]) -> torch.Tensor:
    scores, seen = logits[None].clone(), torch.tensor([ids])
    for processor in processors:
        scores = processor(seen, scores)
    return scores[0].log_softmax(0)


CASES = [
    {"temperature": 0.7},
    {"temperature": 1.6},
    {"top_k": 1},
    {"top_k": 40},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"typical": 0.2},
    {"typical": 0.95},
    {"repetition": 1.3},
    {"repetition": 0.8},
    {"repetition": 1.2, "temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "typical": 0.9},
    {"temperature": 1.4, "top_p": 0.95, "min_p": 0.001, "typical": 0.97},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("spread", [0.3, 3.0])  # flat: the nucleus is larger than the first candidates
def test_distribution_is_that_of_transformers(case: dict[str, Any], spread: float) -> None:
    hf = pytest.importorskip("transformers.generation.logits_process", reason="needs transformers")
    makers = {
        "repetition": hf.RepetitionPenaltyLogitsProcessor,
        "temperature": hf.TemperatureLogitsWarper,
        "top_k": hf.TopKLogitsWarper,
        "top_p": hf.TopPLogitsWarper,
        "min_p": hf.MinPLogitsWarper,
        "typical": hf.TypicalLogitsWarper,
    }
    processors = [make(case[name]) for name, make in makers.items() if name in case]
    for seed in range(8):
        logits = random_logits(seed, spread=spread)
        prompt, answer = [3, 5, 5, 7], [11, 3, 900]
        ours = process(logits, History(prompt, answer), Sampling(**case))
        wanted = theirs(logits, prompt + answer, processors)
        assert torch.equal(ours > -INF, wanted > -INF)
        torch.testing.assert_close(ours.exp(), wanted.exp(), atol=1e-6, rtol=1e-5)


CHOICES = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.01, 0.5, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 3, 10**6]),
    top_p=st.sampled_from([1e-6, 0.4, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.2, 1.0]),
    typical=st.sampled_from([0.1, 0.9, 1.0]),
    repetition=st.sampled_from([0.5, 1.0, 1.5]),
    presence=st.sampled_from([-1.0, 0.0, 2.0]),
    frequency=st.sampled_from([0.0, 0.7]),
    logit_bias=st.sampled_from([(), ((2, -100.0), (5, 4.5))]),
)
LOGITS = st.lists(st.sampled_from([-INF, -30.0, -1.0, 0.0, 0.0, 1.0, 20.0]), min_size=8, max_size=12).filter(
    lambda x: max(x[:4]) > -INF
)


@settings(max_examples=200)
@given(LOGITS, CHOICES, st.integers(0, 2**64 - 1))
def test_result_is_always_a_distribution(logits: list[float], sampling: Sampling, seed: int) -> None:
    x = torch.tensor(logits)
    before = x.clone()
    out = process(x, History([1, 2], [3, 3, 2]), sampling, banned={6})
    assert torch.equal(x, before)
    assert abs(float(out.exp().sum()) - 1) < 1e-5
    assert not out.isnan().any()
    assert (out[x == -INF] == -INF).all()
    assert out[6] == -INF
    assert out[draw(out, seed, 0)] > -INF


def test_presence_and_frequency_act_on_the_answer_alone() -> None:
    logits = torch.zeros(5)
    out = process(logits, History([0, 1, 1], [1, 2, 2, 2]), Sampling(presence=0.5, frequency=0.25))
    lowered = torch.tensor([0, -0.75, -1.25, 0, 0])
    torch.testing.assert_close(out, lowered.log_softmax(0))


def test_bias_comes_before_penalties_and_bans_win() -> None:
    out = process(
        torch.tensor([1.0, 1.0, 0.0]),
        History([0]),
        Sampling(repetition=2.0, logit_bias=((0, 3.0), (2, 100.0))),
        banned=[2],
    )
    torch.testing.assert_close(out, torch.tensor([2.0, 1.0, -INF]).log_softmax(0))


def test_nucleus_with_ties_takes_the_fewest_and_the_lowest() -> None:
    out = process(torch.zeros(8), History(), Sampling(top_p=0.5))
    assert (out > -INF).tolist() == [True] * 4 + [False] * 4


def test_greedy_takes_the_lowest_of_the_best() -> None:
    out = process(torch.tensor([1.0, 4.0, 4.0]), History(), Sampling(temperature=0, top_p=0.1))
    assert out.tolist() == [-INF, 0.0, -INF]


def test_rows_of_a_batch_are_what_they_are_alone() -> None:
    rows = torch.stack([random_logits(i) for i in range(3)])
    histories = [History([i], [i + 1]) for i in range(3)]
    s = Sampling(top_p=0.8, repetition=1.2, presence=1.0)
    assert torch.equal(
        process(rows, histories, s), torch.stack([process(r, h, s) for r, h in zip(rows, histories, strict=True)])
    )


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_draws_follow_the_distribution(seed: int) -> None:
    logprobs = torch.tensor([0.5, 0.0, 0.25, 0.125, 0.0, 0.125]).log()
    n = 4000
    counts = [0] * 6
    for position in range(n):
        counts[draw(logprobs, seed, position)] += 1
    assert counts[1] == counts[4] == 0
    p = logprobs.exp().tolist()
    chi = sum((c - n * q) ** 2 / (n * q) for c, q in zip(counts, p, strict=True) if q)
    assert chi < 16.3  # 3 degrees of freedom, one in a thousand


def test_a_draw_belongs_to_seed_choice_and_position() -> None:
    logprobs = random_logits(0).log_softmax(0)
    places = [(s, p, c) for s in (0, 1) for p in range(20) for c in (0, 1)]
    forward = [draw(logprobs, *place) for place in places]
    assert forward == [draw(logprobs, *place) for place in reversed(places)][::-1]
    assert len({uniform(*place) for place in places}) == len(places)


def test_uniform_is_even_and_independent_of_its_neighbour() -> None:
    u = torch.tensor([uniform(7, i) for i in range(4000)], dtype=torch.float64)
    assert 0 <= u.min() < u.max() < 1
    assert abs(u.mean() - 0.5) < 0.02
    assert abs(torch.corrcoef(torch.stack([u[:-1], u[1:]]))[0, 1]) < 0.05


@pytest.mark.parametrize("top", [False, True])
def test_the_ends_of_the_unit_interval_meet_ids_of_some_probability(top: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    end = 1 - 2**-52 if top else 0.0
    monkeypatch.setattr("terakoya.engine.sampling.uniform", lambda *_: end)
    for seed in range(50):
        logprobs = random_logits(seed, 300).log_softmax(0)
        logprobs[[0, 1, -1]] = -INF
        assert draw(logprobs, 0, 0) in range(2, 299)


WRONG = [
    ("temperature", -1.0),
    ("temperature", float("nan")),
    ("temperature", 1e-9),
    ("top_k", -1),
    ("top_k", 2.5),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("min_p", -0.1),
    ("typical", 0.0),
    ("repetition", 0.0),
    ("presence", INF),
    ("frequency", "much"),
    ("max_tokens", 0),
    ("max_tokens", True),
    ("min_tokens", 257),
    ("seed", -1),
    ("seed", 2**64),
    ("stop", "text"),
    ("stop", ("",)),
    ("logit_bias", ((-1, 1.0),)),
    ("logit_bias", ((1, INF),)),
    ("logit_bias", ((1, 2, 3),)),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_values_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(TerakoyaError, match=f"sampling.{name}"):
        Sampling(**{name: value})  # pyright: ignore[reportArgumentType]
