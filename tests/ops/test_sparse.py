"""Attention by patterns and by hashing equals masked dense attention; reversible layers equal ordinary ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from terakoya.ops import lsh, sparse
from terakoya.ops.attend import Look, attend, naive

PATTERNS = {
    "strided": Look(0.3, stride=8),
    "fixed": Look(0.3, fixed=(8, 3)),
    "banded": Look(0.3, window=8),
    "near": Look(0.3, near=8),
}


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("length", [600, 597, 1])
def test_a_pattern_is_a_mask(name: str, length: int) -> None:
    look = PATTERNS[name]
    q, k, v = some(2, length, 4, 6), some(2, length, 2, 6, seed=1), some(2, length, 2, 6, seed=2)
    slope = some(2, length, 4, 6, seed=3)
    got, want = attend(q, k, v, look), naive(q, k, v, look)
    assert torch.allclose(got, want, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad(got, (q, k, v), slope), torch.autograd.grad(want, (q, k, v), slope), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("name", PATTERNS)
def test_long_texts_are_not_masked_squares(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terakoya.ops.attend._mask", None)
    q, k, v = some(1, 600, 2, 4), some(1, 600, 2, 4, seed=1), some(1, 600, 2, 4, seed=2)
    assert attend(q, k, v, PATTERNS[name]).shape == q.shape


@pytest.mark.parametrize("name", PATTERNS)
def test_a_step_of_generation_sees_what_the_pattern_shows(name: str) -> None:
    look = PATTERNS[name]
    q, k, v = some(1, 40, 2, 4), some(1, 40, 2, 4, seed=1), some(1, 40, 2, 4, seed=2)
    whole = naive(q, k, v, look)
    for t in (0, 7, 8, 31, 39):
        one = attend(q[:, t : t + 1], k[:, : t + 1], v[:, : t + 1], look, start=t)
        assert torch.allclose(one[:, 0], whole[:, t], atol=1e-10)


def test_hashing_sees_everything_when_its_chunks_cover_everything() -> None:
    """Two chunks reach all of the order, whatever the buckets: any text of two chunks is full attention."""
    qk, v = some(60, 3, 8), some(60, 3, 5, seed=1)
    want = lsh.full(qk, qk, v, 0)
    one = torch.zeros(2, 3, 8, 1, dtype=torch.float64)  # every vector in one bucket: the order of the text
    assert torch.allclose(lsh.attend(qk, v, one, chunk=64), want, atol=1e-10)
    turns = torch.randn(1, 3, 8, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    got = lsh.attend(qk, v, turns, chunk=30)  # of a ring of two, each is before the other
    assert torch.allclose(got, want, atol=1e-10)
    slope = some(60, 3, 5, seed=2)
    for a, b in zip(torch.autograd.grad(got, (qk, v), slope), torch.autograd.grad(want, (qk, v), slope), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_hashing_finds_what_is_alike() -> None:
    """Among two far clusters a token attends to its own."""
    rng = torch.Generator().manual_seed(3)
    sides = torch.where(torch.rand(200, generator=rng) < 0.5, 1.0, -1.0).double()
    qk = sides[:, None, None] * 4 + 0.1 * torch.randn(200, 1, 8, generator=rng, dtype=torch.float64)
    v = sides[:, None, None].clone()
    turns = torch.randn(4, 1, 8, 8, generator=rng, dtype=torch.float64)
    y = lsh.attend(qk, v, turns, chunk=16)
    assert (torch.sign(y[8:, 0, 0]) == sides[8:]).double().mean() > 0.95


def test_strides_and_blocks_must_fit() -> None:
    q = some(1, 10, 1, 4)
    assert torch.allclose(sparse.strided(q, q, q, 0.5, 3), naive(q, q, q, Look(0.5, stride=3)), atol=1e-12)
