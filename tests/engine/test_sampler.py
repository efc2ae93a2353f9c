"""The sampler of a step: row by row the numbers of `process` and `draw`, whatever stands beside a row."""

from __future__ import annotations

import random

import pytest
import torch

from terakoya.engine.request import EngineError, Request
from terakoya.engine.sampler import Row, sample, unlucky
from terakoya.engine.sampling import History, Sampling, draw, process

HOWS = [
    Sampling(temperature=0),
    Sampling(),
    Sampling(temperature=0.3, top_k=7),
    Sampling(top_p=0.7, min_p=0.02),
    Sampling(typical=0.5, repetition=1.4, presence=0.3, frequency=0.2),
    Sampling(temperature=0, repetition=3.0, logit_bias=((3, 4.0), (5, -100.0))),
    Sampling(temperature=2.0, top_k=50, top_p=0.9, min_p=0.01, typical=0.9),
]


def rows(rng: random.Random, count: int, vocab: int) -> list[Row]:
    found = []
    for i in range(count):
        history = History([rng.randrange(vocab) for _ in range(9)], [rng.randrange(vocab) for _ in range(5)])
        banned = {rng.randrange(vocab)} if i % 3 == 0 else ()
        request = Request((1,), HOWS[i % len(HOWS)], logprobs=3, logprobs_of="processed")
        found.append(Row(request, history, rng.getrandbits(64), i % 4, i, banned))
    return found


@pytest.mark.parametrize("vocab", [50, 3000])
def test_rows_are_as_alone(vocab: int) -> None:
    rng, torch_rng = random.Random(vocab), torch.Generator().manual_seed(0)
    for _ in range(4):
        logits = torch.randn(21, vocab, generator=torch_rng) * 3
        turns = rows(rng, 21, vocab)
        for x, row, found in zip(logits, turns, sample(logits, turns), strict=True):
            wanted = process(x, row.history, row.request.sampling, banned=row.banned)
            assert found.id == draw(wanted, row.seed, row.position, row.choice)
            assert found.logprob is not None
            assert found.logprob.logprob == float(wanted[found.id])
            again = sample(x[None], [row])[0]
            assert again == found, "its neighbours matter"


def test_what_cannot_be_drawn_from() -> None:
    row = rows(random.Random(0), 2, 10)[1]
    for bad in (float("nan"), float("inf")):
        logits = torch.zeros(1, 10)
        logits[0, 4] = bad
        with pytest.raises(EngineError) as error:
            sample(logits, [row])
        assert error.value.kind == "numbers"
    nothing = Row(row.request, row.history, 0, 0, 0, allowed=torch.zeros(10, dtype=torch.bool))
    with pytest.raises(EngineError) as error:
        sample(torch.zeros(1, 10), [nothing])
    assert error.value.kind == "grammar"
    only = Row(row.request, row.history, 0, 0, 0, allowed=torch.arange(10) == 6)
    assert sample(torch.zeros(1, 10), [only])[0].id == 6


def test_bad_words() -> None:
    words = ((5,), (1, 2), (3, 3, 4))
    assert unlucky(words, [9]) == [5]
    assert unlucky(words, [0, 1]) == [5, 2]
    assert unlucky(words, [3, 3]) == [5, 4]
    assert unlucky(words, [3]) == [5]
