"""Every objective learns 64 samples by heart: what cannot be learnt by heart has a fault between text and loss."""

from __future__ import annotations

import pytest
import torch

from terakoya.train.objectives import (
    Bart,
    Contrast,
    Distil,
    Fim,
    Mlm,
    Mtp,
    Nsp,
    Permute,
    Plan,
    Prefix,
    Rtd,
    Sop,
    Spans,
    Taught,
    Ul2,
)
from terakoya.train.objectives.rows import dice
from terakoya.train.optim import AdamW, Optimizer
from terakoya.train.step import step
from tests.train.objective_fakes import batch_of, both, made, small, tokenizer

pytestmark = pytest.mark.slow
ENOUGH = 0.05  # of what was lost at first, or of nats where nothing else is said

CASES = (
    (Prefix(), small()), (Mlm(), small(causal=False)), (Nsp(), small(causal=False)), (Sop(), small(causal=False)),
    (Nsp(pool="segments"), small(causal=False)), (Rtd(), small(causal=False)), (Rtd(tied=True), small(causal=False)),
    (Permute(), small(causal=False)), (Spans(sentinels=24), both()),
    (Spans(sentinels=24), small()), (Ul2(sentinels=24), both()), (Bart(), both()), (Fim(), small()), (Mtp(), small()),
    (Distil("x", text=0.0), small(causal=False)), (Contrast(views="crops", length=16), small(causal=False)),
)  # fmt: skip


def samples() -> list[list[str]]:
    rng = dice("samples")
    return [["".join(chr(97 + c) for c in rng.integers(26, size=14))] for _ in range(64)]


@pytest.mark.parametrize(
    ("plan", "s"), CASES, ids=lambda v: type(v).__name__.lower() if isinstance(v, Plan) else v.sort
)
def test_64_samples_are_learnt_by_heart(plan: Plan, s) -> None:
    torch.set_num_threads(1)
    task = plan.task(tokenizer(), s, 0)
    if isinstance(task, Taught):
        task.teach(made(s, task, 9), tokenizer())
    model = made(s, task, std=0.05)
    optimizer = Optimizer(model, AdamW(lr=4e-3, weight_decay=0.0))
    batch = task.arrange(batch_of(samples()), 0)
    first = last = 0.0
    for i in range(400):
        seen = step(model, [batch], task.loss, optimizer, factor=min(1.0, (i + 1) / 20, (400 - i) / 100))
        first, last = first or seen.loss, seen.loss
        if last < ENOUGH * min(first, 1.0):
            return
    assert last < ENOUGH * first, (first, last)
