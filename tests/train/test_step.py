"""One step: any split gives the same gradient; what is not finite or not wanted moves nothing."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from terakoya.data.batch import Batch
from terakoya.model import spec
from terakoya.model.model import Model
from terakoya.train.objective import Outcome, causal, log_probabilities
from terakoya.train.optim import AdamW, Muon, Optim, Optimizer
from terakoya.train.step import Stepped, gradients, step
from terakoya.zoo import lineage
from tests.train.train_fakes import SPEC, VOCAB, batch_of, small, some_rows

OPTIMS: list[Optim] = [AdamW(lr=0.01), Muon()]
each_optim = pytest.mark.parametrize("plan", OPTIMS, ids=["adamw", "muon"])


def slope(model: Model, micros: list[Batch]) -> tuple[Tensor, float]:
    """The whole gradient as one vector in double precision, and the loss."""
    model.zero_grad()
    loss, _, _ = gradients(model, micros, causal)
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None]), loss


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("head", [spec.Head(), spec.Head(tied=False, bias=True, softcap=3.0)], ids=["fused", "plain"])
def test_split(head: spec.Head) -> None:
    """Gradients for any split into micro-batches equal those of the full batch."""
    model, rng = small(s=replace(SPEC, head=head)), random.Random(0)
    for seed in range(6):
        rows = some_rows(rng, 7)
        whole = batch_of(rows, seed, "random")
        expected, loss = slope(model, [whole])
        assert expected.norm() > 1e-2
        for parts in (1, 2, 3, 5, 7):
            micros = whole.split(parts)
            found, again = slope(model, micros)
            assert distance(found, expected) <= 1e-6, (seed, parts)
            assert again == pytest.approx(loss, rel=1e-6)
            rng.shuffle(micros)
            assert distance(slope(model, micros)[0], expected) <= 1e-6


def test_split_of_rows_that_count_for_nothing() -> None:
    model, whole = small(), batch_of([[5, 3], [9], [2, 2, 2], [8]], 1, "ones")
    weights = whole.weights.clone()
    weights[:17] = 0  # the first two rows
    whole = replace(whole, weights=weights)
    expected, _ = slope(model, [whole])
    assert distance(slope(model, whole.split(4))[0], expected) <= 1e-6
    assert distance(slope(model, whole.split(4)[2:])[0], expected) <= 1e-6, "silent rows must not dilute the others"


def test_loss_is_the_weighted_mean_however_small_the_weights() -> None:
    model, ones = small(), batch_of([[6, 4], [9]], 2, "ones")
    expected, loss = slope(model, [ones])
    found, again = slope(model, [batch_of([[6, 4], [9]], 2, "tiny")])
    assert again == pytest.approx(loss, rel=1e-5)
    assert distance(found, expected) <= 1e-5


def test_log_probabilities_agree_with_the_loss() -> None:
    rng = random.Random(4)
    for head in (spec.Head(), spec.Head(tied=False, scale=0.5, softcap=3.0)):
        model = small(s=replace(SPEC, head=head))
        batch = batch_of(some_rows(rng, 5), 3)
        with torch.no_grad():
            found = log_probabilities(model, batch)
            expected = causal(model, batch).loss
        assert found.shape == batch.targets.shape
        assert (found < 0).all()
        assert -(found * batch.weights).sum().item() == pytest.approx(expected.item(), rel=1e-6)


def test_loss_by_hand() -> None:
    """Untrained and all alike, every token costs the logarithm of the vocabulary."""
    model = small()
    with torch.no_grad():
        model.embed.token.weight.fill_(0.1)
    _, loss = slope(model, [batch_of([[6, 4], [9]])])
    assert loss == pytest.approx(math.log(VOCAB), rel=1e-6)


def snapshot(model: Model, optimizer: Optimizer) -> dict[str, Tensor]:
    tensors = {**dict(model.named_parameters()), **optimizer.state()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def moved(model: Model, optimizer: Optimizer, micros: list[Batch], objective: object = causal) -> Stepped:
    assert callable(objective)
    return step(model, micros, objective, optimizer, factor=1.0)


@each_optim
def test_no_weight_gives_no_gradient_and_no_move(plan: Optim) -> None:
    """Not even by weight decay or momentum: nothing was learned, so nothing changes."""
    model = small()
    optimizer = Optimizer(model, plan)
    assert moved(model, optimizer, batch_of([[6], [4]], 0, "ones").split(2)).moved
    before = snapshot(model, optimizer)
    result = moved(model, optimizer, batch_of([[6], [4]], 1, "zero").split(2))
    assert (result.moved, result.loss, result.weight, result.norm) == (False, 0.0, 0.0, 0.0)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert same(before, snapshot(model, optimizer))


def poison(where: str, value: float) -> object:
    """The causal objective, with a loss or one gradient that is not finite, in the second micro-batch."""
    calls = 0

    def objective(model: Model, batch: Batch) -> Outcome:
        nonlocal calls
        calls += 1
        outcome = causal(model, batch)
        if calls % 2:
            return outcome
        if where == "loss":
            return Outcome(outcome.loss * value)
        if where == "loss alone":  # its gradient is finite all the same
            return Outcome(outcome.loss + value)
        p = next(p for n, p in model.named_parameters() if n == where)
        hook = p.register_hook(lambda grad: (hook.remove(), grad.index_fill(0, torch.tensor([0]), value))[1])
        return outcome

    return objective


@each_optim
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "where", ["loss", "loss alone", "embed.token.weight", "layers.1.mlp.down.weight", "norm.weight"]
)
def test_what_is_not_finite_moves_nothing(plan: Optim, where: str, value: float) -> None:
    model, twin = small(), small()
    optimizer, other = Optimizer(model, plan), Optimizer(twin, plan)
    good = [batch_of([[6, 3], [4]], seed).split(2) for seed in range(3)]
    assert moved(model, optimizer, good[0]).moved
    before = snapshot(model, optimizer)
    result = moved(model, optimizer, good[1], poison(where, value))
    assert not result.moved
    assert not (math.isfinite(result.loss) and math.isfinite(result.norm))
    assert same(before, snapshot(model, optimizer))
    assert moved(model, optimizer, good[2]).moved  # the next one is taken as if nothing had been
    for micros in (good[0], good[2]):
        moved(twin, other, micros)
    assert same(snapshot(model, optimizer), snapshot(twin, other))


@each_optim
def test_clip(plan: Optim) -> None:
    """The norm reported is the one before; the gradients handed on have the norm asked for, and their direction."""
    model = small()
    optimizer, whole = Optimizer(model, plan), batch_of([[6, 3], [4]])
    expected, _ = slope(model, [whole])
    norm = expected.norm().item()
    for clip, length in ((norm / 3, norm / 3), (norm * 2, norm), (None, norm)):
        model = small()
        optimizer = Optimizer(model, plan)
        result = step(model, [whole], causal, optimizer, factor=1.0, clip=clip)
        found = torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
        assert result.norm == pytest.approx(norm, rel=1e-5)
        assert found.norm().item() == pytest.approx(length, rel=1e-5)
        assert distance(found / found.norm(), expected / norm) < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama2", "smollm2"])
def test_every_parameter_learns(name: str) -> None:
    """No tensor is left without a gradient, or unmoved by a step."""
    s = replace(lineage.rescale(lineage.base(name), 32, 2, 8), vocab=VOCAB, context=64)
    for plan in OPTIMS:
        model = small(s=s)
        optimizer = Optimizer(model, plan)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        assert moved(model, optimizer, [batch_of([[20, 9], [30]], 0, "ones")]).moved
        for n, p in model.named_parameters():
            assert p.grad is not None, n
            if not n.endswith("k.bias"):  # the same for all keys of a query: softmax does not see it
                assert p.grad.abs().max() > 1e-9, n
                assert not torch.equal(p, before[n]), n


@each_optim
def test_a_tiny_model_learns_its_batch_by_heart(plan: Optim) -> None:
    model, whole = small(), batch_of([[12, 9], [20]], 5, "ones")
    optimizer = Optimizer(model, plan)
    losses = [moved(model, optimizer, whole.split(2)).loss for _ in range(60)]
    assert losses[0] > 3.5
    assert losses[-1] < 0.2


def test_metrics_of_micro_batches_are_summed() -> None:
    def counting(model: Model, batch: Batch) -> Outcome:
        return Outcome(causal(model, batch).loss, {"rows": float(len(batch.row_ends))})

    model = small()
    result = moved(model, Optimizer(model, AdamW()), batch_of([[3], [4], [5]]).split(3), counting)
    assert result.metrics == {"rows": 3.0}
