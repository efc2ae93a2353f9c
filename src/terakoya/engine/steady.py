"""Whether a row of a matrix product depends on the rows beside it: measured on the model itself, at start-up.

`F.linear` gives other last bits for another number of rows; with the number padded to a multiple of 16 it did not on
the machines measured. Mixtures of experts are beyond that: there each choice runs by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from terakoya.engine.paged import Part
from terakoya.engine.runner import Runner
from terakoya.engine.store import Shape, Store

TRIED = (1, 16, 32, 64)
LENGTHS = (19, 1, 7, 30, 12, 2)


def steady(runner: Runner, shapes: dict[int, Shape]) -> int | None:
    """Return the smallest multiple of rows with which company changes no bit; None where none does."""
    store, prompts = table(runner, shapes)
    return next((m for m in TRIED if _holds(runner, store, prompts, m)), None)


def table(runner: Runner, shapes: dict[int, Shape]) -> tuple[Store, list[list[int]]]:
    """Return a small store to try a runner on, and prompts."""
    budget = 16 * 1024 * sum(s.bytes for s in shapes.values())
    store = Store(shapes, budget, sequences=len(LENGTHS), step=sum(LENGTHS), device=runner.device, whole=runner.whole)
    prompts = [[(7 * i + 31 * n + 3) % runner.spec.vocab for i in range(n)] for n in LENGTHS]
    return store, [p for p in prompts if len(p) < runner.spec.context]


def _holds(runner: Runner, store: Store, prompts: list[list[int]], multiple: int) -> bool:
    alone = [read(runner, store, [p], multiple)[0] for p in prompts]
    for order in (list(range(len(prompts))), list(range(len(prompts)))[::-1], [1, 3, 2], [0, 4]):
        together = read(runner, store, [prompts[i] for i in order], multiple)
        if not all(torch.equal(t, alone[i]) for i, t in zip(order, together, strict=True)):
            return False
    return True


def read(runner: Runner, store: Store, prompts: list[list[int]], multiple: int) -> list[Tensor]:
    """Read the prompts in one step and a token more in another -> logits after both, per prompt."""
    held = []
    for i, p in enumerate(prompts):
        source = p if store.sources is not None else None
        new = store.open(p[:1], salt=b"%d" % i, more=len(p), source=source)  # all is to be read: nothing is known
        assert new is not None
        store.extend(new, len(p) + 1)
        held.append(new)
    ends = torch.tensor([len(p) for p in prompts]).cumsum(0) - 1
    parts = [Part(h, 0, len(p)) for h, p in zip(held, prompts, strict=True)]
    first = runner.compute(store, parts, prompts, ends.tolist(), multiple)
    parts = [Part(h, len(p), 1) for h, p in zip(held, prompts, strict=True)]
    second = runner.compute(store, parts, [[p[0]] for p in prompts], list(range(len(prompts))), multiple)
    for h in held:
        store.close(h)
    return [torch.stack(pair) for pair in zip(first, second, strict=True)]
