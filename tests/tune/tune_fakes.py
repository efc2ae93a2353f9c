"""A tokenizer with a chat template, a small model that speaks it, and a few conversations."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from terakoya.model.build import Init, build, initialise
from terakoya.model.model import Model
from terakoya.tokenizer import Message, Tokenizer, train
from terakoya.zoo import convert, lineage

WORDS = (
    "寺子屋で読み書き算盤を学ぶ。",
    "ﾃﾗｺﾔ ①②③ 👩🏽‍🏫",
    "one and two make three",
    "いろはにほへと",
    "The lesson is done.",
)


@functools.cache
def tokenizer() -> Tokenizer:
    """ChatML over single bytes: everything can be said, and the stop token is no document end."""
    made = train(WORDS, "bytes", 300)
    table = made.description()
    first = made.vocab_size
    for i, name in enumerate(("<|im_start|>", "<|im_end|>")):
        table["added_tokens"].append(
            {"id": first + i, "content": name, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False}
        )  # fmt: skip
    return Tokenizer(table, name="bytes", eos=first + 1, pad=first + 1, template="chatml")


def small(seed: int = 0, *, family: str = "smollm2", dim: int = 32, depth: int = 2, context: int = 256) -> Model:
    s = replace(lineage.rescale(lineage.base(family), dim, depth, 8), vocab=tokenizer().vocab_size, context=context)
    return initialise(build(s), seed, Init(std=0.1))


def folder(path: Path, seed: int = 0) -> Path:
    """A small model as a folder that `open_model` finds."""
    convert.save(convert.Loaded(small(seed), tokenizer(), "smollm2"), path)
    return path


def talk(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def messages(*turns: str) -> tuple[Message, ...]:
    return tuple(Message(m["role"], m["content"]) for m in talk(*turns))


def jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def lessons(count: int = 24) -> list[dict[str, Any]]:
    return [{"messages": talk(f"{i}たす{i + 1}は？", f"{2 * i + 1}です。👩🏽‍🏫")} for i in range(count)]


def loud(model: Model, seed: int = 0, size: float = 0.05) -> None:
    """Move every trainable parameter away from where it started, so that adapters do something."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=g) * size)


def equal(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
