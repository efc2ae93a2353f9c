"""Meena's layers written out in NumPy from the paper's figure, since no library has a class for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from terakoya.config import override
from terakoya.model.build import build
from terakoya.model.context import Memory, Packed
from terakoya.model.model import Model
from terakoya.zoo import lineage

DIM, HEADS = 32, 2  # the first attention of a decoder layer has sixteen heads at least
Weights = dict[str, Any]


def model() -> Model:
    s = override(
        lineage.base("meena"),
        {"dim": DIM, "encoder.dim": DIM, "vocab": 50, "encoder.vocab": 50, "depth": 4, "mlp.hidden": 4 * DIM},
    )
    s = override(s, {"encoder.blocks.attention.heads": HEADS, "cross.heads": HEADS})
    first, second = s.blocks
    s = override(
        s, {"blocks": (override(first, {"attention.heads": 16}), override(second, {"attention.heads": HEADS}))}
    )
    made = build(s, dtype=torch.float64)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=rng, dtype=torch.float64) * 0.3 + (p.dim() == 1))
    return made


def norm(x, w: Weights, name: str):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w[name + ".weight"] + w[name + ".bias"]


def dense(x, w: Weights, name: str):
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)


def attention(x, source, w: Weights, name: str, heads: int, causal: bool):
    q, k, v = dense(x, w, name + ".q"), dense(source, w, name + ".k"), dense(source, w, name + ".v")
    out, width = np.zeros_like(q), q.shape[1] // heads
    for h in range(heads):
        at = slice(h * width, (h + 1) * width)
        for t in range(len(x)):
            seen = t + 1 if causal else len(source)
            scores = k[:seen, at] @ q[t, at] / np.sqrt(width)
            p = np.exp(scores - scores.max())
            out[t, at] = p / p.sum() @ v[:seen, at]
    return dense(out, w, name + ".o")


def filtered(x, weight, before: int, after: int):
    """One filter per channel, zeros around: x (T, D), weight (D, 1, taps)."""
    padded = np.pad(x, ((before, after), (0, 0)))
    return np.stack([(padded[t : t + before + after + 1] * weight[:, 0].T).sum(0) for t in range(len(x))])


def separable(x, w: Weights, name: str):
    taps = w[name + ".deep.weight"].shape[-1]
    return dense(filtered(x, w[name + ".deep.weight"], taps - 1, 0), w, name + ".point")


def widened(x, width: int):
    return np.pad(x, ((0, 0), (0, width - x.shape[1])))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def encoded(x, w: Weights):
    n = norm(x, w, "glu_pre")
    x = x + dense(n, w, "glu.up") * sigmoid(dense(n, w, "glu.gate"))
    n = norm(x, w, "conv_pre")
    padded, weight = np.pad(n, ((1, 1), (0, 0))), w["conv.right.weight"]
    near = np.stack([np.einsum("ocj,jc->o", weight, padded[t : t + 3]) for t in range(len(n))]) + w["conv.right.bias"]
    h = np.maximum(dense(n, w, "conv.left"), 0) + widened(np.maximum(near, 0), 4 * DIM)
    h = filtered(norm(h, w, "conv.norm"), w["conv.deep.weight"], 4, 4)
    x = x + widened(dense(h, w, "conv.point"), DIM)
    n = norm(x, w, "attn_pre")
    x = x + attention(n, n, w, "attn", HEADS, causal=False)
    n = norm(x, w, "mlp_pre")
    return x + dense(np.maximum(dense(n, w, "mlp.up"), 0), w, "mlp.down")


def decoded(x, source, w: tuple[Weights, Weights]):
    a, b = w
    n = norm(x, a, "attn_pre")
    x = x + attention(n, n, a, "attn", 16, causal=True) + attention(n, source, a, "cross", HEADS, causal=False)
    n = norm(x, a, "conv_pre")
    h = np.maximum(separable(n, a, "conv.left"), 0) + widened(separable(n, a, "conv.right"), 2 * DIM)
    x = x + separable(norm(h, a, "conv.norm"), a, "conv.fold")
    n = norm(x, b, "attn_pre")
    x = x + attention(n, n, b, "attn", HEADS, causal=True)
    x = x + attention(norm(x, b, "cross_pre"), source, b, "cross", HEADS, causal=False)
    h = dense(norm(x, b, "mlp_pre"), b, "mlp.up")
    return x + dense(norm(h * sigmoid(h), b, "mlp.norm"), b, "mlp.down")


def placed(tokens, table):
    """Tokens times sqrt(D), plus sines and then cosines."""
    turns = 10_000.0 ** -(np.arange(DIM // 2) / (DIM // 2))
    angles = np.arange(len(tokens))[:, None] * turns
    return table[tokens] * np.sqrt(DIM) + np.concatenate([np.sin(angles), np.cos(angles)], 1)


def test_meena_is_its_layers_written_out() -> None:
    ours = model()
    w = {k: v.detach().numpy() for k, v in ours.named_parameters()}

    def under(prefix: str) -> Weights:
        return {k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)}

    source, target = torch.arange(13) * 7 % 50, torch.arange(9) * 3 % 50
    x = encoded(placed(source.numpy(), w["embed.token.weight"]), under("encoder.layers.0."))
    x = norm(x, w, "encoder.norm")
    y = placed(target.numpy(), w["embed.token.weight"])
    for i in (0, 2):
        y = decoded(y, x, (under(f"layers.{i}."), under(f"layers.{i + 1}.")))
    want = norm(y, w, "norm") @ w["embed.token.weight"].T
    with torch.no_grad():
        seen = ours.encode(source, [13])
        got = ours.head(ours(target, Packed([9], source=seen)))
    assert np.abs(got.numpy() - want).max() < 1e-9 * np.abs(want).max()


@pytest.mark.parametrize("cuts", [(1,) * 9, (4, 5), (2, 3, 4)])
def test_pieces_and_neighbours_change_nothing(cuts: tuple[int, ...]) -> None:
    ours = model()
    source, target = torch.arange(20) * 7 % 50, torch.arange(18) * 3 % 50
    with torch.no_grad():
        both = ours(target, Packed([9, 9], source=ours.encode(source, [13, 7])))
        for at, (a, b) in enumerate(((0, 13), (13, 20))):
            alone = ours.encode(source[a:b], [b - a])
            mine = target[at * 9 : at * 9 + 9]
            torch.testing.assert_close(ours(mine, Packed([9], source=alone)), both[at * 9 : at * 9 + 9])
            memory, parts, done = Memory(source=alone), [], 0
            for n in cuts:
                ctx = memory.step([n])
                parts.append(ours(mine[done : done + n], ctx))
                ctx.close()
                done += n
            torch.testing.assert_close(torch.cat(parts), both[at * 9 : at * 9 + 9])
