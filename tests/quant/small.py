"""Small models with uneven weights, and a tokenizer that llama.cpp knows."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from terakoya.config import override
from terakoya.model.build import Init, build, initialise
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer, train
from terakoya.zoo import lineage

TEXTS = ("寺子屋で読み書き算盤を学ぶ。", "ﾃﾗｺﾔ ①②③ 👩🏽‍🏫", "one and two make three", "いろはにほへと")
IDS = torch.randint(0, 259, (60,), generator=torch.Generator().manual_seed(1))


@cache
def tokenizer() -> Tokenizer:
    return train(TEXTS, "bytes", 300)


def small(family: str = "smollm2", *, dim: int = 64, depth: int = 2, seed: int = 0, **changes: object) -> Model:
    """A model whose columns matter unequally: some inputs are ten times others, as in trained ones."""
    s = replace(
        lineage.rescale(lineage.base(family), dim, depth, 8), vocab=tokenizer().vocab_size, context=256, **changes
    )
    s = override(s, {"mlp.hidden": 192})
    model = initialise(build(s), seed, Init(std=0.1))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                g = torch.Generator().manual_seed(len(name))
                p.mul_(torch.exp(0.5 * torch.randn(p.shape, generator=g))).add_(
                    torch.randn(p.shape, generator=g) * 0.02
                )
    return model


@torch.inference_mode()
def logits(model: Model, ids: Tensor = IDS) -> Tensor:
    return model.head(model(ids, Packed([len(ids)])))


def lost(model: Model, before: Tensor) -> float:
    """How far the logits moved, relative."""
    return ((logits(model) - before).norm() / before.norm()).item()
