"""Gates, norms and products over pieces against the definitions in double precision, every gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from terakoya.model import naive
from terakoya.ops import gated, linear, recur
from terakoya.ops.fading import fading
from terakoya.ops.sequences import Sequences

compiled = pytest.mark.skipif(not recur.able(1), reason="no C compiler here")


def order(lengths: list[int]) -> Sequences:
    cu = [0]
    for n in lengths:
        cu.append(cu[-1] + n)
    return Sequences(cu, "cpu")


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slopes(run: Callable[..., tuple[Tensor, ...]], tensors: list[Tensor]) -> list[Tensor]:
    """Return outputs, and the gradients of a fixed mixture of them."""
    own = [t.clone().requires_grad_() for t in tensors]
    out = run(*own)
    mixed = [(y * noise(*y.shape, seed=90 + i).to(y.dtype)).sum() for i, y in enumerate(out)]
    return [*out, *torch.autograd.grad(torch.stack(mixed).sum(), own)]


def far(got: list[Tensor], want: list[Tensor]) -> float:
    pairs = list(zip(got, want, strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1)).item() for a, b in pairs)


@compiled
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("width", [3, 16, 72])
def test_griffin_in_one_pass_is_the_definition(width: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    where = order([37, 1, 16, 70, 2])
    fresh = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    rows = [noise(sum(where.lengths), width, seed=i) for i in range(4)]
    tensors = [*rows, -8 * F.softplus(3 * noise(width, seed=5)), noise(5, width, seed=6)]

    def run(by: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
        return lambda *t: by(*t[:5], fresh.to(t[0].dtype), where, t[5])

    want, had = slopes(run(naive.rglru), tensors), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = slopes(run(gated.rglru), [t.float() for t in tensors])
    finally:
        torch.set_num_threads(had)
    assert all(x.dtype == torch.float32 for x in got)
    assert far(got, want) < 5e-6
    assert far(slopes(run(gated.rglru), tensors), want) < 1e-10
    monkeypatch.setattr(recur, "able", lambda *_: False)
    assert far(slopes(run(gated.rglru), [t.float() for t in tensors]), want) < 3e-5


@compiled
def test_gates_that_are_shut_give_finite_slopes() -> None:
    """Nothing forgotten: a is 1, and the root of 1 - a^2 has no slope there."""
    where, T = order([20]), 20
    u, take, gate = (noise(T, 16, seed=i).float() for i in range(3))
    for keep in (-200.0, 200.0):
        tensors = [u, take, torch.full((T, 16), keep), gate, torch.full((16,), -1.0), torch.zeros(1, 16)]
        got = slopes(lambda *t: gated.rglru(*t[:5], torch.ones(1), where, t[5]), tensors)
        assert all(x.isfinite().all() for x in got)


@compiled
@pytest.mark.parametrize("shape", [(5, 2, 37), (70, 4, 128), (1, 1, 3)])
def test_normed_and_gated_heads(shape: tuple[int, int, int]) -> None:
    def book(x: Tensor, gate: Tensor) -> tuple[Tensor]:
        return (x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * gate * torch.sigmoid(gate),)

    tensors = [noise(*shape, seed=1), 4 * noise(*shape, seed=2)]
    got = slopes(lambda *t: (gated.normed(*t, 1e-3),), [t.float() for t in tensors])
    assert far(got, slopes(book, tensors)) < 3e-6
    assert far(slopes(lambda *t: (gated.normed(*t, 1e-3),), tensors), slopes(book, tensors)) < 1e-12


@pytest.mark.parametrize("decays", ["none", "steady", "free"])
@pytest.mark.parametrize("lengths", [[37, 1, 16, 70, 2, 150], [128, 64], [100]], ids=str)
def test_products_over_pieces_are_the_loop(lengths: list[int], decays: str) -> None:
    where, H, K, V = order(lengths), 3, 8, 10
    T, N = sum(lengths), len(lengths)
    tensors = [noise(T, H, K, seed=1), noise(T, H, K, seed=2), noise(T, H, V, seed=3), noise(N, H, K, V, seed=4)]
    tensors += [-noise(T, H, seed=5).abs()] if decays == "free" else []
    steady = -noise(1, H, seed=6).abs().expand(T, H) if decays == "steady" else None

    def run(by: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
        return lambda *t: by(*t[:3], t[4] if decays == "free" else steady, t[3])

    want = slopes(run(lambda q, k, v, g, s: naive.decayed(q, k, v, g, where, s)), tensors)
    assert far(slopes(run(lambda q, k, v, g, s: fading(q, k, v, g, s, where)), tensors), want) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_states_go_by_products(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = linear.fading
    monkeypatch.setattr(linear, "fading", lambda *given: asked.append(1) or real(*given))
    where, K, V = order([70, 30]), 64, linear.WIDE // 64 + 1
    q, k, v = (noise(100, 2, width, seed=width + i) for i, width in enumerate((K, K, V)))
    g = -noise(100, 2, seed=4).abs()
    got = linear.decayed(*(t.to(dtype) for t in (q, k, v, g)), where)
    want = naive.decayed(q, k, v, g, where)
    assert asked
    assert far(list(got), list(want)) < (1e-5 if dtype == torch.float32 else 1e-12)
