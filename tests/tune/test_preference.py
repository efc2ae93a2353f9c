"""Preference losses against their formulas as trl 1.16 writes them, computed on padded batches by transformers' way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.train.step import gradients
from terakoya.tune import adapters
from terakoya.tune.methods import Cpo, Dpo, Ipo, Kto, Orpo, Preference, Simpo
from terakoya.tune.pack import laid
from terakoya.tune.preference import Judged, objective
from terakoya.tune.samples import Sample
from terakoya.tune.score import sums, token_scores
from tests.tune.test_data import some_samples
from tests.tune.test_run import recipe, tuner
from tests.tune.test_silent import adapted, grads
from tests.tune.tune_fakes import jsonl

PAIRS = 5


def judged(pairs: bool = True) -> tuple[list[Sample], Judged]:
    samples = some_samples(2 * PAIRS, seed=3)
    lengths = [s.length for s in samples]
    ends = [sum(lengths[: 2 * i + 2]) for i in range(PAIRS)] if pairs else list(accumulate(lengths))
    plain = laid(samples, tuple(ends))
    model = adapted()
    with adapters.only(model), torch.no_grad():
        reference = sums(token_scores(model, plain), plain)[0]
    own = {name: getattr(plain, name) for name in Batch.__dataclass_fields__}
    return samples, Judged(**own, liked=torch.tensor([1.0, 0.0] * PAIRS), reference=reference)


def padded(model: Model, samples: list[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Token log-probabilities and mask on one padded batch (N, T), and sums: another road to the same numbers."""
    size = max(s.length for s in samples)
    logps, mask = torch.zeros(len(samples), size), torch.zeros(len(samples), size)
    rows = []
    for i, s in enumerate(samples):
        logits = model.head(model(torch.tensor(s.ids[:-1]), Packed([s.length])))
        rows.append(
            F.pad(logits.log_softmax(-1).gather(1, torch.tensor(s.ids[1:])[:, None])[:, 0], (0, size - s.length))
        )
        mask[i, : s.length] = torch.tensor(s.weights[1:])
    logps = torch.stack(rows)
    return logps, mask, (logps * mask).sum(1)


def trl_dpo(c: Tensor, r: Tensor, c0: Tensor, r0: Tensor, nc: Tensor, nr: Tensor) -> Tensor:
    return -F.logsigmoid(0.3 * ((c - c0) - (r - r0)))


def trl_ipo(c: Tensor, r: Tensor, c0: Tensor, r0: Tensor, nc: Tensor, nr: Tensor) -> Tensor:
    return ((c - c0) / nc - (r - r0) / nr - 1 / (2 * 0.3)) ** 2


def trl_orpo(c: Tensor, r: Tensor, c0: Tensor, r0: Tensor, nc: Tensor, nr: Tensor) -> Tensor:
    a, b = c / nc, r / nr
    odds = (a - b) - (torch.log1p(-torch.exp(a)) - torch.log1p(-torch.exp(b)))
    return -a - 0.3 * F.logsigmoid(odds)


def trl_simpo(c: Tensor, r: Tensor, c0: Tensor, r0: Tensor, nc: Tensor, nr: Tensor) -> Tensor:
    return -F.logsigmoid(2.5 * (c / nc - r / nr - 0.5 / 2.5))


def trl_cpo(c: Tensor, r: Tensor, c0: Tensor, r0: Tensor, nc: Tensor, nr: Tensor) -> Tensor:
    return -F.logsigmoid(0.3 * (c - r)) - 0.7 * c / nc


CASES: list[tuple[Preference, Callable[..., Tensor]]] = [
    (Dpo(0.3), trl_dpo), (Ipo(0.3), trl_ipo), (Orpo(0.3), trl_orpo), (Simpo(2.5, 0.5), trl_simpo),
    (Cpo(0.3, 0.7), trl_cpo),
]  # fmt: skip


@pytest.mark.parametrize(("plan", "formula"), CASES, ids=lambda x: type(x).__name__)
def test_losses_and_gradients_are_trls(plan: Preference, formula: Callable[..., Tensor]) -> None:
    samples, batch = judged()
    model = adapted()
    loss, weight, _ = gradients(model, [batch], objective(plan))
    assert weight == PAIRS
    mine = grads(model)
    rival = adapted()
    with adapters.only(rival), torch.no_grad():
        reference = padded(rival, samples)[2]
    _, mask, logp = padded(rival, samples)
    n = mask.sum(1)
    want = formula(logp[0::2], logp[1::2], reference[0::2], reference[1::2], n[0::2], n[1::2]).mean()
    want.backward()
    assert abs(loss - want.item()) <= 1e-6 * max(1.0, abs(want.item()))
    assert (mine - grads(rival)).abs().max() <= 2e-6 * max(1.0, mine.abs().max().item())


def test_kto_is_trls() -> None:
    samples, batch = judged(pairs=False)
    batch = replace(batch, drift=0.4)
    model = adapted()
    loss, weight, _ = gradients(model, [batch], objective(Kto(0.3, 1.0, 1.5)))
    assert weight == 2 * PAIRS
    with torch.no_grad():
        ratios = padded(model, samples)[2] - batch.reference
    chosen, rejected = 1 - torch.sigmoid(0.3 * (ratios[0::2] - 0.4)), 1 - torch.sigmoid(0.3 * (0.4 - ratios[1::2]))
    want = torch.cat([chosen, 1.5 * rejected]).mean().item()
    assert abs(loss - want) <= 1e-6


@pytest.mark.parametrize("plan", [Dpo(0.3), Kto(0.3), Orpo(0.3)], ids=lambda x: type(x).__name__)
def test_micro_batches_change_nothing(plan: Preference) -> None:
    _, batch = judged(pairs=not isinstance(plan, Kto))
    whole = adapted()
    loss, _, seen = gradients(whole, [batch], objective(plan))
    for n in (2, 5):
        model = adapted()
        again, _, metrics = gradients(model, batch.split(n), objective(plan))
        assert abs(loss - again) < 1e-6
        assert metrics == pytest.approx(seen, abs=1e-4)
        assert (grads(model) - grads(whole)).abs().max() <= 2e-6 * max(1.0, grads(whole).abs().max().item())


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_answers_that_are_the_same_where_they_are_cut_teach_nothing(method: str, tmp_path: Path) -> None:
    asked = recipe(tmp_path, f"method={method}", "data.overlong=truncate")
    rows = [{"prompt": f"{i}?", "chosen": "同じ" * 60 + "x", "rejected": "同じ" * 60 + "y"} for i in range(4)]
    jsonl(Path(asked.data.source), rows)
    with pytest.raises(TerakoyaError, match="both answers are the same in 128 tokens"):
        tuner(tmp_path / "run", asked)


def test_at_the_reference_dpo_is_log_two() -> None:
    _, batch = judged()
    model = adapted()
    with adapters.only(model):
        loss, _, metrics = gradients_of(model, batch)
    assert loss == pytest.approx(0.693147, abs=1e-5)
    assert metrics["margin"] == pytest.approx(0, abs=1e-3)


def gradients_of(model: Model, batch: Judged) -> tuple[float, float, dict[str, float]]:
    outcome = objective(Dpo())(model, batch)
    return outcome.loss.item() / batch.weight, batch.weight, outcome.metrics
