"""Small texts in batches, a vocabulary of bytes with every mark, and models whose answers are known beforehand."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch

from terakoya.data.batch import Batch
from terakoya.model import spec
from terakoya.model.build import Init, build, initialise
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer, train
from terakoya.train.objectives.signs import CLS, FIM, MASK, MODES, SEP, sentinels
from terakoya.train.objectives.task import Task

MARKS = ("<|endoftext|>", CLS, SEP, MASK, *FIM, *MODES, *sentinels(24))
TEXTS = (
    "吾輩は猫である。名前はまだ無い。", "どこで生れたか見当がつかぬ。", "The cat sat on the mat. It slept.",
    "親譲りの無鉄砲で小供の時から損ばかりしている。", "ﾃﾗｺﾔで👩🏽‍🏫先生と学ぶ。", "def f(x):\n    return x + 1\n",
)  # fmt: skip


@functools.cache
def tokenizer() -> Tokenizer:
    return train(["いろは"], "bytes", 400, MARKS)


def batch_of(rows: Sequence[Sequence[str]], reader: Tokenizer | None = None) -> Batch:
    """A batch as the loader lays it: every text begins with the end of text."""
    reader = reader or tokenizer()
    start = reader.wrap()[0]
    pieces = [[[*start, *reader.encode(text)] for text in row] for row in rows]
    flat = [ids for row in pieces for ids in row]
    tokens = torch.tensor([i for ids in flat for i in ids])
    lengths = [len(ids) for ids in flat]
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    ends = torch.tensor([sum(map(len, row)) for row in pieces]).cumsum(0).tolist()
    weights = torch.ones(len(tokens))
    weights[cu[1:].long() - 1] = 0
    positions = torch.cat([torch.arange(n) for n in lengths])
    return Batch(tokens, tokens.roll(-1), weights, cu, positions, 0, tuple(ends), (0,) * len(ends))


def some() -> Batch:
    return batch_of([TEXTS[:2], TEXTS[2:3], TEXTS[3:5], TEXTS[5:]])


def small(*, causal: bool = True, vocab: int | None = None, context: int = 512) -> spec.Model:
    """A pre-norm transformer of two layers, rotary."""
    attention = spec.Attention(heads=4, causal=causal, position=spec.Rope())
    block = spec.pre(spec.RMSNorm(), attention, spec.MLP(96, gated=True, act="silu"))
    return spec.Model(vocab or tokenizer().vocab_size, dim=48, depth=2, context=context, blocks=(block,))


def both(**changes: int) -> spec.Model:
    """The same with an encoder."""
    s = small(**changes)
    attention = spec.Attention(heads=4, position=spec.Rope())
    mixers = (attention, spec.Cross(heads=4), spec.MLP(96))
    block = spec.pre(spec.RMSNorm(), *mixers)
    encoder = replace(small(causal=False, **changes), head=spec.Head(scores="nothing"))
    return replace(s, blocks=(block,), encoder=encoder, embed=spec.Embed(shared=True))


def made(s: spec.Model, task: Task, seed: int = 0, std: float = 0.1) -> Model:
    return initialise(task.joined(build(s)), seed, Init(std=std))


def table(scores: torch.Tensor, causal: bool = True) -> Model:
    """A model that answers row t of scores (V, V) wherever it reads token t, whatever stands around it."""
    vocab = len(scores)
    head = spec.Head(tied=False)
    attention = spec.Attention(heads=1, causal=causal)
    s = spec.Model(vocab, vocab, 1, 512, (spec.Block((spec.Branch((attention,)),)),), norm=None, head=head)
    model = build(s)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.embed.token.weight.copy_(scores)
        model.head.weight.copy_(torch.eye(vocab))
    return model
