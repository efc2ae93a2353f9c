"""Attention by torch's kernels against attention by the book, over random layouts; and the book against the formula."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from terakoya.ops.attend import Bias, Look, attend, naive, visible


@dataclass(frozen=True)
class Case:
    """One random way to attend."""

    batch: int
    new: int
    start: int
    heads: int
    groups: int
    look: Look
    bias: str
    sinks: bool


def case(rng: random.Random) -> Case:
    groups = rng.choice([1, 2, 3])
    new, start = rng.choice([1, 1, 2, 5, 9]), rng.choice([0, 0, 1, 6])
    look = Look(
        scale=rng.choice([0.3, 1.0]),
        causal=rng.random() < 0.8,
        window=rng.choice([None, None, 1, 3, 50]),
        chunk=rng.choice([None, None, 1, 4, 50]),
        softcap=rng.choice([None, None, None, 2.0]),
    )
    bias = rng.choice(["", "", "", "plain", "batched"])
    return Case(rng.choice([1, 3]), new, start, groups * rng.choice([1, 2, 4]), groups, look, bias, rng.random() < 0.2)


def bias_of(c: Case) -> Bias | None:
    def plain(q: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        slopes = torch.linspace(0.1, 1, c.heads, dtype=q.dtype)[:, None, None]
        return -slopes * (q_pos[:, None] - k_pos[None, :]).abs()

    def batched(q: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return q.sum(-1).transpose(1, 2)[..., None] * torch.cos(k_pos.to(q.dtype))

    return {"": None, "plain": plain, "batched": batched}[c.bias]


def tensors(c: Case, seed: int, dtype: torch.dtype) -> list[Tensor]:
    g, total = torch.Generator().manual_seed(seed), c.start + c.new
    shapes = [(c.batch, c.new, c.heads, 4), (c.batch, total, c.groups, 4), (c.batch, total, c.groups, 6), (c.heads,)]
    made = [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]
    return [t.requires_grad_() for t in made]


def slopes(f: object, c: Case, seed: int, dtype: torch.dtype) -> list[Tensor]:
    """The result, and the gradient of a random sum of it in q, k, v and the sinks."""
    assert callable(f)
    q, k, v, sinks = tensors(c, seed, dtype)
    y = f(q, k, v, c.look, c.start, bias_of(c), sinks if c.sinks else None)
    mark = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64).to(dtype)
    (y * mark).sum().backward()
    wanted = [q, k, v, sinks] if c.sinks else [q, k, v]
    return [y.detach(), *(t.grad for t in wanted if t.grad is not None)]


def furthest(a: list[Tensor], b: list[Tensor]) -> float:
    assert [t.shape for t in a] == [t.shape for t in b]
    return max((x.double() - y.double()).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_kernels_equal_the_definition(seed: int) -> None:
    rng = random.Random(seed)
    for turn in range(30):
        c = case(rng)
        truth = slopes(naive, c, turn, torch.float64)
        assert furthest(slopes(attend, c, turn, torch.float64), truth) < 1e-10, c
        assert furthest(slopes(attend, c, turn, torch.float32), truth) < 2e-5, c


def loops(q: Tensor, k: Tensor, v: Tensor, look: Look, start: int, sinks: list[float] | None) -> Tensor:
    """Attention one number at a time: q (T, H, K), k (S, G, K), v (S, G, V) -> (T, H, V)."""
    out = torch.zeros(q.shape[0], q.shape[1], v.shape[-1], dtype=q.dtype)
    for t in range(q.shape[0]):
        for h in range(q.shape[1]):
            g, at = h * k.shape[1] // q.shape[1], start + t
            scores = {}
            for s in range(k.shape[0]):
                seen = s <= at or not look.causal
                seen = seen and (look.window is None or abs(at - s) < look.window)
                seen = seen and (look.chunk is None or at // look.chunk == s // look.chunk)
                if seen:
                    score = look.scale * float(q[t, h] @ k[s, g])
                    scores[s] = score if look.softcap is None else look.softcap * math.tanh(score / look.softcap)
            total = sum(map(math.exp, scores.values())) + (math.exp(sinks[h]) if sinks else 0.0)
            for s, score in scores.items():
                out[t, h] += math.exp(score) / total * v[s, g]
    return out


def test_the_definition_is_the_formula() -> None:
    rng = random.Random(7)
    for turn in range(40):
        c = case(rng)
        q, k, v, sinks = (t.detach() for t in tensors(c, turn, torch.float64))
        y = naive(q, k, v, c.look, c.start, None, sinks if c.sinks else None)
        for b in range(c.batch):
            expected = loops(q[b], k[b], v[b], c.look, c.start, sinks.tolist() if c.sinks else None)
            assert (y[b] - expected).abs().max() < 1e-12, c


def test_visible_by_hand() -> None:
    pos = torch.arange(5)
    assert visible(pos[2:], pos, Look(1.0)).int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert visible(pos[3:4], pos, Look(1.0, window=2)).int().tolist() == [[0, 0, 1, 1, 0]]
    assert visible(pos[3:4], pos, Look(1.0, causal=False, window=2)).int().tolist() == [[0, 0, 1, 1, 1]]
    assert visible(pos[3:4], pos, Look(1.0, chunk=3)).int().tolist() == [[0, 0, 0, 1, 0]]


def test_no_look_at_the_future_at_all() -> None:
    """Not a small leak, none: what comes later may be infinite."""
    rng = random.Random(3)
    for turn in range(30):
        c = case(rng)
        if not c.look.causal:
            continue
        q, k, v, sinks = (t.detach() for t in tensors(c, turn, torch.float32))
        before = attend(q, k, v, c.look, c.start, None, sinks if c.sinks else None)
        k[:, c.start + 1 :], v[:, c.start + 1 :] = 1e30, 1e30
        after = attend(q, k, v, c.look, c.start, None, sinks if c.sinks else None)
        assert torch.equal(before[:, :1], after[:, :1]), c
