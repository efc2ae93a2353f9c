"""The recurrences in C against their definitions in double precision: values, states and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from terakoya.model import naive
from terakoya.ops import convolve, invariant, linear, recur, selective, wkv
from terakoya.ops.sequences import Sequences

LENGTHS = [37, 1, 16, 70, 2]
N, T = len(LENGTHS), sum(LENGTHS)
pytestmark = pytest.mark.skipif(not recur.able(1), reason="no C compiler here")


def order() -> Sequences:
    cu = [0]
    for n in LENGTHS:
        cu.append(cu[-1] + n)
    return Sequences(cu, "cpu")


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def given(name: str, d: int, s: int) -> list[Tensor]:
    """Return what a recurrence of d channels is called with, its state last."""
    if name == "selective":
        dt, a = noise(T, d, seed=1).abs() * 0.5, -noise(d, s, seed=2).abs() - 0.01
        return [noise(T, d, seed=0), dt, a, *(noise(T, s, seed=i) for i in (3, 4)), noise(N, d, s, seed=5)]
    if name == "diagonal":
        a = torch.polar(0.7 + 0.3 * torch.rand(d, s, dtype=torch.float64), noise(d, s, seed=1))
        b, c = (torch.view_as_complex(noise(d, s, 2, seed=i)) for i in (2, 3))
        return [noise(T, d, seed=0), a, b, c, torch.view_as_complex(noise(N, d, s, 2, seed=4))]
    if name == "wkv":
        w, u = -noise(d, seed=2).exp(), noise(d, seed=3)
        total = noise(N, 2, d, seed=4).abs()
        most = noise(N, d, seed=5)
        total[0], most[0] = 0, float("-inf")  # a sequence that begins
        return [4 * noise(T, d, seed=0), noise(T, d, seed=1), w, u, total, most]
    if name in ("decayed", "delta", "general"):  # d: columns of a head, s: rows
        H, K, V = 3, s, d
        q, k = (noise(T, H, K, seed=i) * K**-0.5 for i in (0, 1))
        v, start, g = noise(T, H, V, seed=2), noise(N, H, K, V, seed=3), -noise(T, H, seed=4).abs()
        if name == "decayed":
            return [q, k, v, g, start]
        if name == "delta":
            return [q, k / k.norm(dim=-1, keepdim=True), v, g, noise(T, H, seed=5).sigmoid(), start]
        a = noise(T, H, K, seed=6)
        a = a / a.norm(dim=-1, keepdim=True)
        return [q, -0.6 * noise(T, H, K, seed=5).sigmoid(), k, v, -a, a * noise(T, H, K, seed=7).sigmoid(), start]
    return [noise(T, d, seed=0), noise(d, s, seed=1), noise(d, seed=2), noise(N, s - 1, d, seed=3)]


def run(name: str, by: str, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    *rest, start = tensors
    if name == "wkv":
        k, v, w, u, total = rest
        return {"fast": wkv.wkv, "naive": naive.wkv}[by](k, v, w, u, order(), total, start)
    functions: dict[str, dict[str, Callable[..., Any]]] = {
        "selective": {"fast": selective.selective, "naive": naive.selective},
        "diagonal": {"fast": invariant.invariant, "naive": naive.invariant},
        "decayed": {"fast": linear.decayed, "naive": naive.decayed},
        "delta": {"fast": linear.delta, "naive": naive.delta},
        "general": {"fast": linear.general, "naive": naive.general},
        "short": {"fast": convolve.short, "naive": naive.short},
    }
    return functions[name][by](*rest, order(), start)


def slopes(name: str, by: str, tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return outputs and the gradients of a fixed mixture of them."""
    own = [t.clone().requires_grad_(not (name == "wkv" and i == 5)) for i, t in enumerate(tensors)]
    out = [y for y in run(name, by, own) if y.requires_grad]
    total = torch.zeros(())
    for i, y in enumerate(out):
        real = torch.view_as_real(y) if y.is_complex() else y
        total = total + (real * noise(*real.shape, seed=10 + i).to(real.dtype)).sum()
    return [y.detach() for y in out], list(torch.autograd.grad(total, [t for t in own if t.requires_grad]))


def narrow(t: Tensor) -> Tensor:
    return t.to(torch.complex64 if t.is_complex() else torch.float32)


SIZES = [(16, 16), (24, 5), (72, 16), (3, 1)]


NAMES = ["selective", "diagonal", "decayed", "delta", "general", "wkv", "short"]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_it_equals_the_definition_forward_and_backward(name: str, size: tuple[int, int], threads: int) -> None:
    d, s = size
    if name == "short":
        s += 1
    tensors = given(name, d, s)
    had = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out, grads = slopes(name, "fast", [narrow(t) for t in tensors])
    finally:
        torch.set_num_threads(had)
    want, wanted = slopes(name, "naive", tensors)
    assert len(out) == len(want) and len(grads) == len(wanted)
    for a, b in zip(out + grads, want + wanted, strict=True):
        assert a.dtype in (torch.float32, torch.complex64) and a.shape == b.shape
        far = (a.to(b.dtype) - b).abs().max() / b.abs().max().clamp(min=1)
        assert far < 5e-6, far


@pytest.mark.parametrize("name", NAMES)
def test_pytorch_does_the_same_where_there_is_no_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [narrow(t) for t in given(name, 24, 5)]
    out, grads = slopes(name, "fast", tensors)
    asked: list[int] = []

    def never(states: int, *rest: Tensor | None) -> bool:
        asked.append(states)
        return False

    monkeypatch.setattr(recur, "able", never)
    want, wanted = slopes(name, "fast", tensors)
    assert asked
    for a, b in zip(out + grads, want + wanted, strict=True):
        assert (a - b).abs().max() / b.abs().max().clamp(min=1) < 3e-5


def test_what_it_cannot_take_goes_to_pytorch() -> None:
    x = torch.zeros(2)
    assert recur.able(16, x, None)
    assert not recur.able(16, x.double())
    assert not recur.able(16, x.bfloat16())
    assert not recur.able(recur.MOST + 1, x)


def test_large_keys_overflow_nothing() -> None:
    """Exponents of 200 are beyond single precision; the mean is not."""
    tensors = given("wkv", 16, 1)
    tensors[0] = 200 * noise(T, 16, seed=0)
    out, grads = slopes("wkv", "fast", [narrow(t) for t in tensors])
    want, _ = slopes("wkv", "naive", tensors)
    assert (out[0] - want[0]).abs().max() < 1e-3
    assert all(g.isfinite().all() for g in grads)
