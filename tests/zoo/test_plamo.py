"""PLaMo's block written out, since transformers has no class for it: tiled key heads, both branches under one norm."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from terakoya.config import override
from terakoya.model.build import build, initialise
from terakoya.model.context import Packed
from terakoya.zoo import convert, lineage

HEADS, KEYS, WIDTH = 6, 2, 8


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


def turn(x: Tensor) -> Tensor:
    """Rotate halves: x (T, H, K)."""
    angle = torch.arange(len(x))[:, None] * 10_000.0 ** -(torch.arange(0, WIDTH, 2) / WIDTH)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def block(x: Tensor, w: dict[str, Tensor], layer: str) -> Tensor:
    h = norm(x, w[layer + "norm.weight"])
    q, k, v = (
        (h @ w[f"{layer}self_attn.{p}_proj.weight"].T).unflatten(-1, (n, WIDTH))
        for p, n in (("q", HEADS), ("k", KEYS), ("v", KEYS))
    )
    k, v = (t.tile(1, HEADS // KEYS, 1) for t in (turn(k), v))  # query head h meets key head h mod KEYS
    scores = torch.einsum("thk,shk->hts", turn(q), k) * WIDTH**-0.5
    hidden = torch.ones(len(x), len(x)).triu(1).bool()
    seen = torch.einsum("hts,shk->thk", scores.masked_fill(hidden, float("-inf")).softmax(-1), v)
    gate, up = (h @ w[f"{layer}mlp.{p}_proj.weight"].T for p in ("gate", "up"))
    mlp = (torch.nn.functional.silu(gate) * up) @ w[layer + "mlp.down_proj.weight"].T
    return x + seen.flatten(1) @ w[layer + "self_attn.o_proj.weight"].T + mlp


def test_plamo_is_its_block_written_out(tmp_path: Path) -> None:
    s = lineage.rescale(lineage.base("plamo"), HEADS * WIDTH, 2, WIDTH)
    s = override(s, {"vocab": 64, "context": 32, "attention.kv_heads": KEYS})
    model = initialise(build(s), 0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.15 + (p.dim() == 1))
    convert.save(convert.Loaded(model, None, "plamo"), tmp_path)
    w = load_file(tmp_path / "model.safetensors")
    tokens = torch.arange(11) * 5 % 64
    x = w["model.embed_tokens.weight"][tokens]
    for i in range(2):
        x = block(x, w, f"model.layers.layers.{i}.")
    want = norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T
    again = convert.load(tmp_path)
    assert again.family == "plamo"
    with torch.no_grad():
        got = again.model.head(again.model(tokens, Packed([11])))
    assert (got - want).abs().max() < 2e-5 * max(1.0, want.std().item())
    assert all(torch.equal(v, w[k]) for k, v in convert.tensors(again.model, "plamo").items())
