"""Beam search against every possible answer; contrastive search against reading everything anew."""

from __future__ import annotations

import itertools

import pytest
import torch

from terakoya.engine.search import beam, contrastive
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.model.model import Model
from tests.model import small

PROMPT = [3, 1, 4]


@pytest.fixture(scope="module")
def model() -> Model:
    return small.made(small.SPECS["grouped"])


@torch.no_grad()
def read(model: Model, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = model(torch.tensor(ids), Packed([len(ids)]))
    return hidden, model.head(hidden)


def chance(model: Model, answer: list[int]) -> float:
    logprobs = read(model, PROMPT + answer)[1].log_softmax(-1)
    return sum(float(logprobs[len(PROMPT) - 1 + i, id]) for i, id in enumerate(answer))


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_a_wide_beam_finds_the_best_of_all(model: Model, penalty: float) -> None:
    """Two tokens of 61, every one kept: nothing can be missed."""
    end = int(read(model, PROMPT)[1][-1].topk(3).indices[2])
    answers = [[a, b] for a, b in itertools.product(range(61), repeat=2) if a != end] + [[end]]
    logprobs = read(model, PROMPT)[1][-1].log_softmax(-1)
    seconds = torch.stack([read(model, [*PROMPT, a])[1][-1].log_softmax(-1) for a in range(61)])
    totals = [float(logprobs[a[0]]) + (float(seconds[a[0], a[1]]) if len(a) > 1 else 0.0) for a in answers]
    scores = {tuple(a): t / len(a) ** penalty for a, t in zip(answers, totals, strict=True)}
    wanted = sorted(scores, key=scores.__getitem__, reverse=True)[:5]
    found = beam(model, PROMPT, width=61, tokens=2, ends={end}, penalty=penalty)
    assert [tuple(f.ids) for f in found[:5]] == wanted
    for f in found[:5]:
        assert f.logprob == pytest.approx(chance(model, f.ids), abs=1e-4)


def test_a_narrow_beam(model: Model) -> None:
    [greedy, *_] = beam(model, PROMPT, width=1, tokens=10)
    ids = list(PROMPT)
    for _ in range(10):
        ids.append(int(read(model, ids)[1][-1].argmax()))
    assert greedy.ids == ids[3:]
    wide = beam(model, PROMPT, width=8, tokens=10)
    assert wide[0].logprob >= greedy.logprob
    assert [f.score for f in wide] == sorted((f.score for f in wide), reverse=True)
    assert all(f.logprob == pytest.approx(chance(model, f.ids), abs=1e-3) for f in wide)
    with pytest.raises(TerakoyaError):
        beam(model, PROMPT, tokens=100)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_contrastive(model: Model, alpha: float) -> None:
    ids = list(PROMPT)
    for _ in range(8):
        best = read(model, ids)[1][-1].softmax(-1).topk(4)
        scores = []
        for p, id in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            hidden = torch.nn.functional.normalize(read(model, [*ids, id])[0], dim=-1)
            scores.append((1 - alpha) * p - alpha * float((hidden[:-1] @ hidden[-1]).max()))
        ids.append(int(best.indices[max(range(4), key=scores.__getitem__)]))
    found = contrastive(model, PROMPT, alpha=alpha, tokens=8)
    assert found == ids[3:]
    assert contrastive(model, PROMPT, alpha=alpha, tokens=8, ends={found[2]}) == found[: found.index(found[2]) + 1]
