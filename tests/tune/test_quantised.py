"""NF4: the published codebook, small errors, gradients of the dense weights, adapters on top."""

from __future__ import annotations

import copy

import pytest
import torch

from terakoya.model.context import Packed
from terakoya.tune import adapters
from terakoya.tune.merge import merged
from terakoya.tune.plans import Dora, Lora
from terakoya.tune.quantised import Kind, NF4Linear, codebook, held, pack, quantise, unpack
from tests.tune.tune_fakes import loud, small

PUBLISHED = (  # bitsandbytes' create_normal_map
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def test_the_codebook_is_the_published_one() -> None:
    assert (codebook() - torch.tensor(PUBLISHED)).abs().max() < 2e-6


def test_weights_come_back_within_the_step() -> None:
    w = torch.randn(96, 128, generator=torch.Generator().manual_seed(0)) * 0.02
    kept = pack(w)
    back = unpack(*kept, (96, 128))
    assert ((w - back).norm() / w.norm()).item() < 0.1
    bits = sum(t.numel() * t.element_size() for t in kept) * 8 / w.numel()
    assert bits < 4.2
    scale = w.view(-1, 64).abs().amax(1)
    gap = codebook().diff().max() / 2
    assert ((w - back).view(-1, 64).abs() <= scale[:, None] * (gap + 0.03)).all()
    zero = torch.zeros(2, 64)
    assert torch.equal(unpack(*pack(zero), (2, 64)), zero)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_training_on_few_bits_is_training_on_the_dense_copy(kind: Kind) -> None:
    packed = small(dim=64)
    quantise(packed, kind)
    dense = merged(packed)
    assert all(type(m) is not NF4Linear for m in dense.modules())
    assert held(packed) < (0.6 if kind == "nf4" else 0.75) * held(dense)
    ids = torch.arange(20)
    for plan in (Lora(4, 8.0), Dora(4, 8.0)):
        pair = [copy.deepcopy(packed), copy.deepcopy(dense)]
        for model in pair:
            adapters.add(model, plan)
            loud(model)
        outs = [m.head(m(ids, Packed([20]))) for m in pair]
        torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-5)
        for out in outs:
            out.square().mean().backward()
        for a, b in zip(adapters.trained(pair[0]).values(), adapters.trained(pair[1]).values(), strict=True):
            assert a.grad is not None
            assert b.grad is not None
            assert (a.grad - b.grad).abs().max() <= 1e-5 * max(1.0, b.grad.abs().max().item())
        torch.testing.assert_close(merged(pair[0])(ids, Packed([20])), pair[1](ids, Packed([20])), atol=1e-5, rtol=1e-5)
