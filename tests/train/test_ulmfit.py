"""What AWD-LSTM and ULMFiT learn by, each part against its formula, and a run of NT-ASGD."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
import torch
from torch import nn

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.awd import AwdLstm, AwdPlan, Drops
from terakoya.model.build import Init, initialise
from terakoya.train.ntasgd import Averaged, NtAsgd
from terakoya.train.objective import causal, context_of
from terakoya.train.objectives import EXTRA
from terakoya.train.optim import AdamW, Muon
from terakoya.train.schedule import Slanted, factor
from terakoya.train.step import step
from terakoya.train.ulmfit import awd, by_layer, groups, unfreeze

VOCAB = 20
DROPS = Drops(0.05, 0.1, 0.1, 0.1, 0.1)


def model(drops: Drops = DROPS) -> AwdLstm:
    made = AwdLstm(AwdPlan(12, 16, 2, drops), VOCAB)
    initialise(made, 0, Init(std=0.2))
    return made


def batch(texts: list[list[int]]) -> Batch:
    lengths = [len(t) - 1 for t in texts]
    return Batch(
        torch.tensor([i for t in texts for i in t[:-1]]), torch.tensor([i for t in texts for i in t[1:]]),
        torch.ones(sum(lengths)), torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        torch.cat([torch.arange(n) for n in lengths]), 0,
    )  # fmt: skip


def test_the_triangle_is_slanted() -> None:
    steps, cut, ratio = 100, 0.1, 32
    for t in range(steps):  # Howard and Ruder 2018, equation 3, as it is printed
        top = int(steps * cut)
        p = t / top if t < top else 1 - (t - top) / (top * (1 / cut - 1))
        assert factor(Slanted(), t, steps) == pytest.approx((1 + p * (ratio - 1)) / ratio)
    rates = [factor(Slanted(), t, steps) for t in range(steps)]
    assert rates.index(max(rates)) == 10
    assert max(rates) == 1
    for wrong in (lambda: Slanted(cut=0.0), lambda: Slanted(cut=1.0), lambda: Slanted(ratio=0.5)):
        with pytest.raises(TerakoyaError, match="schedule"):
            wrong()


def test_rates_fall_with_depth_and_groups_wake_from_the_top() -> None:
    m = model()
    assert [len(g) for g in groups(m)] == [1, 4, 5]
    m.add_module(EXTRA, nn.Sequential(nn.Linear(12, 3), nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(3, 3)])})))
    order = groups(m)
    assert [len(g) for g in order] == [1, 4, 5, 4]
    gains = by_layer(m, AdamW(), 2.6)
    assert gains[f"{EXTRA}.1.layers.0.weight"] == 1
    assert gains["layers.1.x.weight"] == gains["head.bias"] == pytest.approx(1 / 2.6)
    assert gains["token.weight"] == pytest.approx(2.6**-3)
    assert by_layer(m, Muon(), 1.0) == {}
    for optim, decay in ((Muon(), 2.6), (NtAsgd(), 2.6), (AdamW(), 0.5)):
        with pytest.raises(TerakoyaError, match="decay"):
            by_layer(m, optim, decay)
    unfreeze(m, order, 1)
    assert {n for n, p in m.named_parameters() if p.requires_grad} == {*order[2], *order[3]}
    unfreeze(m, order, 9)
    assert all(p.requires_grad for p in m.parameters())


def test_penalties_are_meritys() -> None:
    m, b = model(), batch([[1, 2, 3, 4, 5], [6, 7, 8]])
    m.noise.begin(0, 0)
    found = awd(m, b, ar=2.0, tar=1.0)
    m.noise.begin(0, 0)
    plain, masked = m.states(b.tokens, context_of(b))
    nats = nn.functional.cross_entropy(m.head(masked), b.targets, reduction="sum")
    steps = torch.cat([plain[1:4] - plain[:3], plain[5:6] - plain[4:5]])
    wanted = nats + 6 * (2 * masked.pow(2).mean() + steps.pow(2).mean())
    torch.testing.assert_close(found.loss, wanted, rtol=1e-5, atol=0)
    m.noise.end()
    torch.testing.assert_close(awd(m, b).loss, causal(m, b).loss)


def test_averaging_begins_when_the_loss_stops_falling() -> None:
    losses = [5, 4, 3, 3.5, 3.2, 3.3, 2.9, 3.1, 3.0, 3.4, 3.05, 3.2]
    p = nn.Linear(1, 1)
    optimizer = Averaged(p, NtAsgd(lr=0.1, patience=3))
    logs, begun = list[float](), None
    for t, loss in enumerate(losses):  # algorithm 1: t > n and v > min of the logs up to t - n - 1
        if begun is None and t > 3 and loss > min(logs[: t - 3]):
            begun = t
        assert optimizer.observe(loss) == (begun == t), t
        logs.append(loss)
    assert begun is not None


def test_the_average_is_of_all_weights_since() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = Averaged(layer, NtAsgd(lr=0.5, weight_decay=0.1, patience=1))
    seen = list[torch.Tensor]()
    for k in range(7):
        if k == 3:
            assert [optimizer.observe(x) for x in (1.0, 2.0, 3.0)] == [False, False, True]
        before, layer.weight.grad = layer.weight.detach().clone(), torch.randn(2, 3)
        grad = layer.weight.grad.clone()
        optimizer.step(0.8)
        torch.testing.assert_close(layer.weight.detach(), before - 0.5 * 0.8 * (grad + 0.1 * before))
        seen += [layer.weight.detach().clone()] if k >= 3 else []
        if k == 4:
            kept = {n: t.clone() for n, t in optimizer.state().items()}
            optimizer = Averaged(layer, optimizer.plan)
            optimizer.load(kept)
    last = layer.weight.detach().clone()
    with optimizer.on_average():
        torch.testing.assert_close(layer.weight.detach(), torch.stack(seen).mean(0))
    assert torch.equal(layer.weight.detach(), last)


def said(rng: random.Random, kind: int, length: int = 9) -> list[int]:
    """A text of one of two kinds, each with words of its own and one way to go on."""
    text = [rng.randrange(10)]
    for _ in range(length):
        text.append((text[-1] + 3 + rng.randrange(2)) % 10)
    return [word + 10 * kind for word in text]


def test_a_language_model_learns_by_nt_asgd() -> None:
    rng = random.Random(0)
    m = model()
    lm = Averaged(m, NtAsgd(patience=5))
    seen = [batch([said(rng, k % 2) for k in range(16)]) for _ in range(8)]
    held = batch([said(rng, k % 2) for k in range(32)])
    start = causal(m, held).loss.item() / held.weight
    for k in range(300):  # the language model
        m.noise.begin(0, k)
        step(m, [seen[k % 8]], awd, lm, factor=1.0, clip=0.25)
        m.noise.end()
        if k % 10 == 9:
            lm.observe(causal(m, held).loss.item())
    assert lm.averaging
    lm.swap()
    end = causal(m, held).loss.item() / held.weight
    assert end < start - 0.4
