"""Many answers to one prompt, with the prompt computed once: what sampling does for its memory, done for gradients."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from terakoya.config import select
from terakoya.model import spec
from terakoya.model.context import Keys
from terakoya.ops.attend import Bias, Look, attend

Group = tuple[int, tuple[int, ...]]  # tokens of the prompt, and of each answer that follows it


def branches(s: spec.Model) -> bool:
    """Say whether a model can be computed this way: its memory is keys and values, not a state that moves on."""
    mixers = {type(m) for block in s.layers() for branch in block.branches for m in branch.mix}
    fine = mixers <= {spec.Attention, spec.Latent, spec.MLP, spec.MoE}
    return fine and all(a.causal for a in select(s, "attention"))


class Branched:
    """A context in which each answer sees its prompt and itself. Tokens: prompt, answer, answer …, next prompt …"""

    def __init__(self, groups: Sequence[Group], device: torch.device | str | None = None) -> None:
        self.groups = groups
        lengths = [n for prompt, answers in groups for n in (prompt, *answers)]
        starts = [n for prompt, answers in groups for n in (0, *(prompt for _ in answers))]
        self.cu = [0, *accumulate(lengths)]
        spans = [torch.arange(a, a + n, device=device) for a, n in zip(starts, lengths, strict=True)]
        self.pos = torch.cat(spans)
        self._made: dict[Hashable, Any] = {}

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look, bias: Bias | None, sinks: Tensor | None
    ) -> Tensor:
        """Let every token look at what stands before it in its prompt and answer."""
        out: list[Tensor] = []
        at = 0
        for prompt, answers in self.groups:
            begins = [at + prompt + n for n in accumulate((0, *answers))]
            head = slice(at, at + prompt)
            out.append(attend(q[None, head], k[None, head], v[None, head], look, 0, bias, sinks)[0])
            made: dict[int, Tensor] = {}
            for size in sorted(set(answers) - {0}):  # answers of one length share a kernel call
                these = [i for i, n in enumerate(answers) if n == size]
                parts = [torch.stack([t[begins[i] : begins[i] + size] for i in these]) for t in (q, k, v)]
                past = [t[None, head].expand(len(these), *t[head].shape) for t in (k, v)]
                ks, vs = (torch.cat(pair, 1) for pair in zip(past, parts[1:], strict=True))
                made |= dict(zip(these, attend(parts[0], ks, vs, look, prompt, bias, sinks), strict=True))
            out += [made[i] for i, n in enumerate(answers) if n]
            at = begins[-1]
        return torch.cat(out)

    def cross(self, layer: int, q: Tensor, keys: Keys, scale: float) -> Tensor:
        raise AssertionError("a text without a source")

    def remember(self, layer: int, x: Tensor) -> list[Tensor]:
        raise AssertionError("what attends over itself cannot branch")

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        raise AssertionError("a recurrent layer cannot branch")

    def commit(self, layer: int, new: tuple[Tensor, ...]) -> None:
        raise AssertionError("a recurrent layer cannot branch")

    def share(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
