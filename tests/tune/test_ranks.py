"""AdaLoRA: the budget falls, what matters least goes, and all of it comes back from a checkpoint."""

from __future__ import annotations

import pytest
import torch

from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.train.objective import causal
from terakoya.train.optim import AdamW, Optimizer
from terakoya.train.step import step
from terakoya.tune import adapters
from terakoya.tune.merge import merged
from terakoya.tune.pack import laid
from terakoya.tune.parts import Triplets
from terakoya.tune.plans import AdaLora
from terakoya.tune.ranks import SKEW, Ranks, orthogonal
from terakoya.tune.samples import Sample
from tests.tune.tune_fakes import small

PLAN = AdaLora(rank=4, target=2, warmup=0.2, last=0.2, alpha=8.0)
BATCH = laid([Sample("x", tuple(range(1, 22)), (0.0,) * 9 + (1.0,) * 12)])


def test_it_starts_as_nothing_and_merges_away() -> None:
    model = small()
    tokens = torch.arange(20)
    before = model(tokens, Packed([20])).detach()
    adapters.add(model, PLAN)
    assert torch.equal(model(tokens, Packed([20])), before)
    for part in adapters.parts(model).values():
        assert isinstance(part, Triplets)
        part.e.data.normal_()
    after = model(tokens, Packed([20])).detach()
    assert (after - before).abs().max() > 1e-4
    torch.testing.assert_close(merged(model)(tokens, Packed([20])), after, atol=5e-6, rtol=1e-5)
    adapters.merge(model)
    torch.testing.assert_close(model(tokens, Packed([20])).detach(), after, atol=5e-6, rtol=1e-5)


def test_the_budget_falls_with_the_cube_of_what_is_left() -> None:
    model = small()
    adapters.add(model, PLAN)
    ranks = Ranks(model, PLAN, 10)
    count = len(ranks.parts)
    spent = [ranks.budget(s) / count for s in range(1, 11)]
    assert spent[:2] == [4, 4]
    assert spent == sorted(spent, reverse=True)
    assert spent[4] == pytest.approx(int((4 - 2) * count * 0.5**3 + 2 * count) / count)
    assert spent[7:] == [2, 2, 2]
    with pytest.raises(TerakoyaError, match="train longer"):
        Ranks(model, PLAN, 1)


def trained(steps: int, stop: int | None = None) -> tuple[dict[str, torch.Tensor], Ranks, list[float]]:
    """Train; where `stop` is given, everything is thrown away there and read back."""
    model = small()
    adapters.add(model, PLAN)
    objective = orthogonal(causal, PLAN)
    optimizer, ranks = Optimizer(model, AdamW(lr=1e-2, weight_decay=0.0)), Ranks(model, PLAN, steps)
    skews = []
    for done in range(1, steps + 1):
        skews.append(step(model, [BATCH], objective, optimizer, factor=1.0).metrics[SKEW] / BATCH.weight)
        ranks.update(done)
        if done == stop:
            kept = {n: p.detach().clone() for n, p in adapters.trained(model).items()}
            state, moments = {n: t.clone() for n, t in ranks.state().items()}, optimizer.state()
            model = small()
            adapters.add(model, PLAN)
            adapters.put(model, kept, "here")
            optimizer, ranks = Optimizer(model, AdamW(lr=1e-2, weight_decay=0.0)), Ranks(model, PLAN, steps)
            optimizer.load({n: t.clone() for n, t in moments.items()})
            ranks.restore(state)
    return {n: p.detach() for n, p in adapters.trained(model).items()}, ranks, skews


def test_what_matters_stays_and_a_stop_changes_no_bit() -> None:
    whole, ranks, skews = trained(10)
    part, again, _ = trained(10, stop=5)
    assert all(torch.equal(whole[n], part[n]) for n in whole)
    left = ranks.ranks()
    assert left == again.ranks()
    assert sum(left.values()) == 2 * len(left)
    assert len(set(left.values())) > 1  # not the same everywhere
    for path, layer in ranks.parts.items():
        assert torch.equal(layer.e != 0, ranks.kept[path])
    assert skews[-1] < skews[0]  # P and Q get nearer to orthogonal
