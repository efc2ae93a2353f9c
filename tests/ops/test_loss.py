"""The fused loss against its definition: values, gradients, borders of chunks, extremes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from terakoya.ops import loss
from terakoya.ops.loss import linear_cross_entropy, naive

T, D, V = 23, 8, 19


def made(
    seed: int = 0, rows: int = T, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden vectors, head, targets, and weights of which some are zero and some are fractions."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, D, generator=g, dtype=torch.float64) * scale
    head = torch.randn(V, D, generator=g, dtype=torch.float64)
    targets = torch.randint(V, (rows,), generator=g)
    weights = torch.rand(rows, generator=g, dtype=torch.float64) * torch.randint(0, 2, (rows,), generator=g)
    return x.to(dtype), head.to(dtype), targets, weights.float()


def slopes(f: object, x: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients of 3 * f: the factor proves that the outer gradient is taken in."""
    assert callable(f)
    x, head = x.detach().requires_grad_(), head.detach().requires_grad_()
    value = f(x, head, targets, weights)
    (3 * value).backward()
    assert x.grad is not None
    assert head.grad is not None
    return value.detach(), x.grad, head.grad


def distance(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).item()


@pytest.mark.parametrize("rows", [1, 2, 3, 5, T])
def test_equals_the_definition_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(loss, "CHUNK", rows * V + 1)
    for seed in range(4):
        found, expected = slopes(linear_cross_entropy, *made(seed)), slopes(naive, *made(seed))
        assert max(map(distance, found, expected)) < 1e-12


def test_gradient_agrees_with_differences() -> None:
    x, head, targets, weights = made(1, rows=5)
    _, grad_x, grad_head = slopes(linear_cross_entropy, x, head, targets, weights)
    for leaf, grad in ((x, grad_x), (head, grad_head)):
        for at in torch.ones_like(leaf).nonzero().tolist():
            values = []
            for shift in (1e-5, -2e-5):
                leaf[tuple(at)] += shift
                values.append(linear_cross_entropy(x, head, targets, weights).item())
            leaf[tuple(at)] += 1e-5
            assert grad[tuple(at)].item() == pytest.approx(3 * (values[0] - values[1]) / 2e-5, abs=1e-8)


def test_single_precision_stays_near_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK", 4 * V)
    for seed in range(8):
        truth = slopes(naive, *made(seed))
        found = slopes(linear_cross_entropy, *made(seed, dtype=torch.float32))
        assert [t.dtype for t in found] == [torch.float32] * 3
        assert max(map(distance, found, truth)) < 1e-6


@pytest.mark.parametrize("learned", [(False, False), (True, False), (False, True)])
def test_only_the_gradients_asked_for(learned: tuple[bool, bool]) -> None:
    x, head, targets, weights = made()
    truth = slopes(naive, x, head, targets, weights)
    leaves = [t.requires_grad_(wanted) for t, wanted in zip((x, head), learned, strict=True)]
    value = linear_cross_entropy(x, head, targets, weights)
    assert distance(value.detach(), truth[0]) < 1e-12
    assert value.requires_grad == any(learned)
    if any(learned):
        (3 * value).backward()
    for leaf, wanted, expected in zip(leaves, learned, truth[1:], strict=True):
        assert (leaf.grad is not None) == wanted
        assert leaf.grad is None or distance(leaf.grad, expected) < 1e-12


@torch.no_grad()
def test_no_grad_gives_the_same_value() -> None:
    assert distance(linear_cross_entropy(*made()), naive(*made())) < 1e-12


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e18])
def test_extreme_logits_stay_finite(scale: float) -> None:
    x, head, targets, weights = made(2, scale=scale, dtype=torch.float32)
    weights = weights.clamp(min=0.1)
    found = slopes(linear_cross_entropy, x, head, targets, weights)
    truth = slopes(naive, x.double(), head.double(), targets, weights)
    assert all(t.isfinite().all() for t in found)
    assert max(map(distance, found, truth)) < 1e-5


def test_equal_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    value = linear_cross_entropy(torch.zeros(3, D), torch.zeros(V, D), torch.arange(3), torch.ones(3))
    assert value.item() == pytest.approx(3 * torch.tensor(float(V)).log().item(), rel=1e-6)


def test_no_rows_and_no_weights_give_zeros() -> None:
    x, head, targets, weights = made()
    for rows, w in ((0, weights[:0]), (T, torch.zeros(T))):
        value, grad_x, grad_head = slopes(linear_cross_entropy, x[:rows], head, targets[:rows], w)
        assert value.item() == 0
        assert grad_x.shape == (rows, D)
        assert not grad_x.any()
        assert not grad_head.any()


def test_a_weight_of_zero_hides_its_row_altogether() -> None:
    x, head, targets, weights = made()
    other = x.clone()
    other[weights == 0] = 1e4
    assert (weights == 0).sum() > 3
    found, expected = slopes(linear_cross_entropy, other, head, targets, weights), slopes(naive, *made())
    assert max(map(distance, found, expected)) < 1e-12


def test_a_second_backward_is_refused_rather_than_wrong() -> None:
    x, head, targets, weights = made()
    value = linear_cross_entropy(x.requires_grad_(), head, targets, weights)
    (3 * value).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
    value = linear_cross_entropy(x, head, targets, weights)
    (slope,) = torch.autograd.grad(value.square(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_half_precision_head_and_vectors() -> None:
    x, head, targets, weights = made(dtype=torch.bfloat16)
    found = slopes(linear_cross_entropy, x, head, targets, weights)
    truth = slopes(naive, x.double(), head.double(), targets, weights)
    assert [t.dtype for t in found] == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert max(map(distance, found, truth)) < 0.02
