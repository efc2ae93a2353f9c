"""ULMFiT's classifier against its formula, and layers that wake one after another on any model."""

from __future__ import annotations

import pytest
import torch

from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.model.noise import Noise
from terakoya.tune.heads.deep import Deep
from terakoya.tune.heads.head import vectors
from terakoya.tune.heads.kinds import Classify


def test_it_sees_last_greatest_and_mean() -> None:
    x, ctx = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), Packed([2, 3])
    found = vectors(Model.__new__(Model), x, ctx, "concat")
    torch.testing.assert_close(
        found, torch.stack([torch.cat([p[-1], p.max(0).values, p.mean(0)]) for p in (x[:2], x[2:])])
    )


def test_two_layers_between_norms() -> None:
    noise = Noise()
    deep = Deep((9, 4, 2), 0.0, noise).double()
    deep.start(0)
    g = torch.Generator().manual_seed(1)
    rows = torch.randn(6, 9, generator=g, dtype=torch.float64) * 3 + 1
    noise.begin(0, 0)
    seen, means = rows, list[torch.Tensor]()
    for layer, last in zip(deep.layers, (False, True), strict=True):
        means.append(seen.mean(0))
        seen = (seen - seen.mean(0)) / torch.sqrt(seen.var(0, correction=0) + 1e-5)
        seen = seen @ layer.weight.T + layer.bias  # type: ignore[operator, union-attr]
        seen = seen if last else seen.clamp(min=0)
    torch.testing.assert_close(deep(rows), seen)
    for norm, batch in zip(deep.norms, means, strict=True):
        torch.testing.assert_close(norm.running_mean, batch)  # nothing is left of the zero it began with,
    noise.begin(0, 1)
    deep(rows + 1)
    torch.testing.assert_close(deep.norms[0].running_mean, means[0] + 0.5)  # then it is the mean of both
    noise.end()
    torch.testing.assert_close(deep(rows)[:2], deep(rows[:2]))  # a row does not depend on those beside it


def test_noise_drops_and_the_seed_decides() -> None:
    noise = Noise()
    one, other = (Deep((9, 4, 2), 0.5, noise) for _ in range(2))
    one.start(3)
    other.start(3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(2))
    found = list[torch.Tensor]()
    for step in (0, 0, 1):
        noise.begin(0, step)
        found.append(one(x))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("wrong", [lambda: Classify(hidden=-1), lambda: Classify(drop=1.0)])
def test_sizes_out_of_bounds_are_told(wrong) -> None:
    with pytest.raises(TerakoyaError, match=r"head\."):
        wrong()
