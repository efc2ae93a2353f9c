"""Small models, one per design choice that could let a token see what it must not."""

from __future__ import annotations

import torch

from terakoya.model import spec
from terakoya.model.build import Init, build, initialise
from terakoya.model.model import Model

VOCAB, DIM, CONTEXT = 61, 32, 64
MLP = spec.MLP(48, "silu", gated=True)
NORM = spec.RMSNorm()


def attention(**changes: object) -> spec.Attention:
    return spec.Attention(**({"heads": 4, "position": spec.Rope()} | changes))  # type: ignore[arg-type]


def model_of(*blocks: spec.Block, depth: int = 2, **changes: object) -> spec.Model:
    return spec.Model(VOCAB, DIM, depth, CONTEXT, blocks, **changes)  # type: ignore[arg-type]


def usual(**changes: object) -> spec.Model:
    return model_of(spec.pre(NORM, attention(**changes), MLP))


MIXED = model_of(
    spec.pre(NORM, attention(reach=spec.Window(5), kv_heads=2), MLP),
    spec.pre(spec.LayerNorm(), attention(reach=spec.Chunk(4), position=None, temper=spec.Temper(3, 0.1)), MLP),
    depth=3,
)
SPECS: dict[str, spec.Model] = {
    "rope": usual(),
    "grouped": usual(kv_heads=2, bias=True),
    "one key head": usual(kv_heads=1),
    "window": usual(reach=spec.Window(5)),
    "chunk": usual(reach=spec.Chunk(4)),
    "mixed reach": MIXED,
    "softcap": usual(softcap=5.0),
    "sinks": usual(sinks=True),
    "qk norm": usual(qk_norm=spec.QKNorm(NORM)),
    "alibi": usual(position=spec.Alibi()),
    "buckets": usual(position=spec.Buckets(8, 16)),
    "relative": usual(position=spec.Relative()),
    "latent": model_of(spec.pre(NORM, spec.Latent(4, 16, 8, 4, 8, 12), MLP)),
    "learned": model_of(
        spec.pre(spec.LayerNorm(), attention(position=None), spec.MLP(64, bias=True)),
        embed=spec.Embed(position=spec.Learned(2)),
        norm=spec.LayerNorm(),
        head=spec.Head(tied=False, bias=True),
    ),
    "parallel": model_of(spec.Block((spec.Branch((attention(), MLP), pre=NORM, post=NORM, out=NORM),))),
    "experts": model_of(spec.pre(NORM, attention(), spec.MoE(spec.MLP(16, "silu", gated=True), 4, 2, shared=MLP))),
}


def made(s: spec.Model, seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    """A model with starting values large enough that attention is far from uniform, and no norm or bias trivial."""
    model = initialise(build(s), seed, Init(std=0.3, out="plain"))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p))) * 0.1)
    return model.to(dtype)


def some_tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed))
