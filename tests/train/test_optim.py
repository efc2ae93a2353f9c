"""Optimisers against torch's own and against singular values; their state goes out and in without a trace."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from terakoya.errors import TerakoyaError
from terakoya.model.build import roles
from terakoya.model.model import Model
from terakoya.train.objective import causal
from terakoya.train.optim import DECAYED, AdamW, Muon, Optim, Optimizer, orthogonalise
from terakoya.train.schedule import Constant, Cosine, Stable, factor
from terakoya.train.step import step
from terakoya.zoo import lineage
from tests.train.train_fakes import SPEC, VOCAB, batch_of, small

GPT = replace(lineage.rescale(lineage.base("gpt2"), 32, 2, 8), vocab=VOCAB, context=64)
EXACT = 1e-6


def taken(model: Model, optimizer: Optimizer, seed: int, rate: float = 1.0) -> None:
    step(model, [batch_of([[9, 3], [7]], seed, "ones")], causal, optimizer, factor=rate, clip=None)


def test_adamw_is_torch_adamw() -> None:
    """Decay on matrices and tables only; the factor scales every rate."""
    plan = AdamW(lr=0.01, betas=(0.8, 0.97), eps=1e-7, weight_decay=0.3)
    model, twin = small(s=GPT), small(s=GPT)
    kinds = roles(twin)
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in twin.named_parameters() if (kinds[n] in DECAYED) == decays], "weight_decay": decay}
        for decays, decay in ((True, 0.3), (False, 0.0))
    ]
    assert all(group["params"] for group in groups)
    optimizer, reference = Optimizer(model, plan), torch.optim.AdamW(groups, 0.01, (0.8, 0.97), 1e-7)
    for seed in range(6):
        rate = 1.0 / (seed + 1)
        taken(model, optimizer, seed, rate)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            q.grad = p.grad
        for group in reference.param_groups:
            group["lr"] = 0.01 * rate
        reference.step()
    for (n, p), (_, q) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=EXACT), n


def test_decay_alone_shrinks_matrices_and_nothing_else() -> None:
    for plan in (AdamW(lr=0.1, weight_decay=0.5), Muon(lr=0.1, weight_decay=0.5)):
        model = small(s=GPT)
        optimizer, kinds = Optimizer(model, plan), roles(model)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step(0.5)
        for n, p in model.named_parameters():
            decays = kinds[n] in (DECAYED if isinstance(plan, AdamW) else {"matrix", "out"})
            assert torch.allclose(p, before[n] * (1 - 0.1 * 0.5 * 0.5 if decays else 1), rtol=1e-6), n


def test_muon_moves_matrices_by_orthogonal_steps_and_the_rest_by_adam() -> None:
    plan = Muon(lr=0.05, weight_decay=0.0, momentum=0.9)
    model = small(s=GPT)
    optimizer, kinds = Optimizer(model, plan), roles(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    taken(model, optimizer, 0, 0.5)
    rates = {"embed": plan.embed_lr, "head": plan.head_lr}
    seen = set()
    for n, p in model.named_parameters():
        change, kind = before[n] - p.detach(), kinds[n]
        seen.add(kind)
        if kind in ("matrix", "out"):
            rows, columns = p.shape
            gain = 0.05 * 0.5 * math.sqrt(max(1.0, rows / columns))
            assert p.grad is not None
            values = torch.linalg.svdvals(change / gain)
            assert ((values[:8] > 0.7) & (values[:8] < 1.3)).all(), n  # of 19 tokens: the rank is low
            assert (change * p.grad).sum() > 0, n  # downhill
        elif p.grad is not None:  # the first step of Adam is the sign of the gradient
            rate, clear = rates.get(kind, plan.scalar_lr) * 0.5, p.grad.abs() > 1e-6
            assert torch.allclose(change[clear], rate * p.grad[clear].sign(), rtol=1e-3), n
    assert seen >= {"matrix", "out", "embed", "norm", "bias"}


def test_muon_momentum_is_nesterov_by_hand() -> None:
    plan = Muon(lr=0.1, weight_decay=0.2, momentum=0.9)
    model = small()
    optimizer = Optimizer(model, plan)
    p = model.layers[0].get_submodule("attn.q").get_parameter("weight")
    g = torch.Generator().manual_seed(0)
    momentum, expected = torch.zeros_like(p), p.detach().clone()
    for turn in range(3):
        optimizer.zero()
        grad = torch.randn(p.shape, generator=g)
        p.grad = grad
        optimizer.step(1.0 - 0.25 * turn)
        momentum = 0.9 * momentum + 0.1 * grad
        rate = 0.1 * (1.0 - 0.25 * turn)
        expected = expected * (1 - rate * 0.2) - rate * orthogonalise((0.1 * grad + 0.9 * momentum)[None])[0]
    assert torch.allclose(p, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32), (96, 24), (24, 96), (1, 40), (40, 1), (5, 64, 16)], ids=str)
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_orthogonalise_makes_singular_values_near_one(shape: tuple[int, ...], scale: float) -> None:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(scale)
    g = g if g.dim() == 3 else g[None]
    found = orthogonalise(g)
    assert found.shape == g.shape
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    values = torch.linalg.svdvals(found)
    clear = s > s.amax(-1, keepdim=True) * 0.02  # smaller ones grow, but five rounds do not bring them all the way
    assert clear.float().mean() > 0.9
    if scale > 1e-6:
        assert values[clear].min() > 0.75
    assert values.max() < 1.25
    nearest = u @ vh  # the polar factor: the closest orthogonal matrix
    alike = (found * nearest).sum() / (found.norm() * nearest.norm())
    assert alike > 0.97


def test_orthogonalise_of_low_rank_and_of_nothing() -> None:
    g = torch.Generator().manual_seed(1)
    low = torch.randn(2, 40, 3, generator=g) @ torch.randn(2, 3, 24, generator=g)
    values = torch.linalg.svdvals(orthogonalise(low))
    assert ((values[:, :3] > 0.75) & (values[:, :3] < 1.25)).all()
    assert values[:, 3:].max() < 0.1, "noise must not become a direction of its own"
    assert not orthogonalise(torch.zeros(2, 5, 7)).any()
    assert orthogonalise(torch.full((1, 4, 4), 1e-30)).isfinite().all()


def test_orthogonalise_treats_each_matrix_alone_and_transposes_alike() -> None:
    g = torch.randn(3, 12, 30, generator=torch.Generator().manual_seed(2))
    whole = orthogonalise(g)
    assert all(torch.allclose(whole[i], orthogonalise(g[i : i + 1])[0], atol=EXACT) for i in range(3))
    assert torch.allclose(orthogonalise(g.mT), whole.mT, atol=EXACT)
    assert torch.allclose(orthogonalise(g * 1000), whole, atol=1e-4)


PLANS: list[Optim] = [AdamW(lr=0.01), Muon()]
each_plan = pytest.mark.parametrize("plan", PLANS, ids=["adamw", "muon"])


@each_plan
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_state_out_and_in_goes_on_bit_for_bit(plan: Optim, stop: int) -> None:
    model = small()
    optimizer = Optimizer(model, plan)
    for seed in range(stop):
        taken(model, optimizer, seed)
    state = {n: t.clone() for n, t in optimizer.state().items()}
    twin = small(seed=9)
    twin.load_state_dict(model.state_dict())
    other = Optimizer(twin, plan)
    other.load(state)
    for seed in range(stop, stop + 3):
        taken(model, optimizer, seed)
        taken(twin, other, seed)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    assert same(optimizer.state(), other.state())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@each_plan
def test_state_is_whole_from_the_start_and_wrong_state_is_named(plan: Optim) -> None:
    model = small()
    optimizer = Optimizer(model, plan)
    before = {*optimizer.state()}
    taken(model, optimizer, 0)
    state = {n: t.clone() for n, t in optimizer.state().items()}
    assert {*state} == before
    for n in model.state_dict():
        if n != "head.weight":
            assert any(key.endswith(f"/{n}") for key in state), n
    twin = small()
    fresh = Optimizer(twin, plan)
    untouched = {n: t.clone() for n, t in fresh.state().items()}
    gone = next(n for n in state if n.startswith("exp_avg_sq/"))
    lacking = {n: t for n, t in state.items() if n != gone}
    with pytest.raises(TerakoyaError, match=f"lacks 1 tensors: {gone}"):
        fresh.load(lacking)
    with pytest.raises(TerakoyaError, match="no place for 1 tensors: momentum/nobody"):
        fresh.load(state | {"momentum/nobody": torch.zeros(1)})
    with pytest.raises(TerakoyaError, match="wrong shape"):
        fresh.load(state | {gone: torch.zeros(1)})
    assert same(untouched, fresh.state()), "a refused state must leave nothing behind"


def test_every_parameter_is_in_one_group() -> None:
    for s in (SPEC, GPT):
        for plan in PLANS:
            model = small(s=s)
            model.layers[0].get_parameter("attn_pre.weight").requires_grad_(False)
            optimizer = Optimizer(model, plan)
            assert optimizer.adam is not None
            held = [p for group in optimizer.adam.param_groups for p in group["params"]] + optimizer.matrices
            learned = [p for p in model.parameters() if p.requires_grad]
            assert sorted(map(id, held)) == sorted(map(id, learned))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: AdamW(lr=-1.0),
        lambda: AdamW(lr=math.nan),
        lambda: AdamW(betas=(0.9, 1.0)),
        lambda: AdamW(weight_decay=-0.1),
        lambda: Muon(momentum=1.0),
        lambda: Muon(embed_lr=math.inf),
        lambda: Stable(warmup=0.6, decay=0.5),
        lambda: Stable(final=-0.1),
        lambda: Cosine(warmup=1.5),
        lambda: Cosine(final=math.nan),
        lambda: Constant(warmup=-0.1),
    ],
)
def test_rates_out_of_bounds_are_one_line(wrong: Any) -> None:
    with pytest.raises(TerakoyaError) as caught:
        wrong()
    assert "\n" not in str(caught.value)
    assert "allowed" in str(caught.value) or "at most" in str(caught.value)


SCHEDULES: list[Stable | Cosine | Constant] = [
    Stable(), Stable(0.1, 0.9, 0.0), Stable(0.0, 0.0), Stable(0.0, 1.0, 0.3), Stable(1.0, 0.0),
    Cosine(), Cosine(0.0, 0.0), Cosine(0.5, 1.0), Constant(), Constant(0.3),
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 97, 1000])
def test_schedule_rises_then_falls_and_stays_in_bounds(schedule: Stable | Cosine | Constant, steps: int) -> None:
    factors = [factor(schedule, k, steps) for k in range(steps)]
    warm = schedule.warmup * steps
    first = math.ceil(warm)
    final = 1.0 if isinstance(schedule, Constant) else schedule.final
    assert all(0 <= f <= 1 for f in factors)
    assert all(f > 0 for f in factors[:-1])
    up, down = factors[:first], factors[first:]
    assert all(a < b for a, b in pairwise(up))
    assert all(f < 1 for f in up)
    assert all(a >= b for a, b in pairwise(down))
    assert all(f >= min(final, 1.0) - 1e-12 for f in down)


def test_schedule_at_its_corners() -> None:
    stable = [factor(Stable(0.1, 0.4, 0.05), k, 100) for k in range(100)]
    assert stable[0] == pytest.approx(1 / 11)
    assert stable[9] == pytest.approx(10 / 11)
    assert set(stable[10:60]) == {1.0}
    assert stable[61] < 1.0
    assert stable[-1] == pytest.approx(0.05)
    assert stable[79] == pytest.approx(0.05 + 0.95 * 20 / 40)
    assert [factor(Stable(0.0, 0.0, 0.05), k, 10) for k in range(10)] == [1.0] * 10, "no decay: no last step either"
    cosine = [factor(Cosine(0.1, 0.2), k, 100) for k in range(100)]
    assert cosine[-1] == pytest.approx(0.2)
    assert cosine[54] == pytest.approx(0.6)
    assert [factor(Constant(0.0), k, 5) for k in range(5)] == [1.0] * 5
