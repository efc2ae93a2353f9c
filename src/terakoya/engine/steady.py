"""Whether a row of a matrix product depends on the rows beside it: measured on the model itself, at start-up.

`F.linear` gives other last bits for another number of rows; with the number padded to a multiple of 16 it did not on
the machines measured. Mixtures of experts are beyond that: there each choice runs by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from terakoya.engine.paged import Part
from terakoya.engine.store import Store

TRIED = (1, 16, 32, 64)
LENGTHS = (19, 1, 7, 30, 12, 2)


def steady(store: Store, compute: Callable[..., Tensor], vocab: int) -> int | None:
    """Return the smallest multiple of rows with which company changes no bit; None where none does."""
    prompts = [[(7 * i + 31 * n + 3) % vocab for i in range(n)] for n in LENGTHS]
    prompts = [p for p in prompts if len(p) + 2 <= store.longest]
    for multiple in TRIED:
        alone = [_read(store, compute, [p], multiple) for p in prompts]
        for some in (prompts, prompts[::-1], prompts[1:4]):
            together = _read(store, compute, some, multiple)
            same = [torch.equal(t, alone[prompts.index(p)][0]) for p, t in zip(some, together, strict=True)]
            if not all(same):
                break
        else:
            return multiple
    return None


def _read(store: Store, compute: Callable[..., Tensor], prompts: list[list[int]], multiple: int) -> list[Tensor]:
    """Read the prompts in one step and a token more in another -> logits after both, per prompt."""
    held = []
    for i, p in enumerate(prompts):
        new = store.open(p, salt=b"steady%d" % i)
        assert new is not None
        store.extend(new, len(p) + 1)
        held.append(new)
    ends = torch.tensor([len(p) for p in prompts]).cumsum(0) - 1
    first = compute([Part(h, 0, len(p)) for h, p in zip(held, prompts, strict=True)], prompts, ends.tolist(), multiple)
    parts = [Part(h, len(p), 1) for h, p in zip(held, prompts, strict=True)]
    second = compute(parts, [[p[0]] for p in prompts], list(range(len(prompts))), multiple)
    for h in held:
        store.close(h)
    return [torch.stack(pair) for pair in zip(first, second, strict=True)]
