"""An n-gram model behind the same door as the networks: `model(tokens, ctx)` gives hidden, `model.head` logits.

Its hidden vector of a token is a list of nodes: those of the contexts that end there, of one token, two tokens … It is
a recurrent network with a finite memory, so the contexts of training, scoring and generation all serve it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.context import Context
from terakoya.model.model import Head, Model
from terakoya.ngram.counts import MOST, Level
from terakoya.ngram.smooth import Smoothing, smooth

UNBOUNDED = 1 << 40  # positions: what lies further back than the order is forgotten anyway


class _Grams(nn.Module):
    """One level for look-ups: the sorted keys parent * V + token, and where each parent's begin."""

    keys: Tensor
    first: Tensor
    p: Tensor
    gamma: Tensor  # of the nodes above, as contexts of these

    def __init__(self, level: Level, p: np.ndarray, gamma: np.ndarray, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab
        for name, value in {
            "keys": level.parents * vocab + level.tokens.astype(np.int64),
            "first": level.first.astype(np.int64),
            "p": p.astype(np.float32),
            "gamma": gamma.astype(np.float32),
        }.items():
            self.register_buffer(name, torch.from_numpy(value), persistent=False)

    def find(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Return the node of `tokens` after `parents`, -1 where it was never seen: (T,), (T,) -> (T,)."""
        if not len(self.keys):
            return torch.full_like(tokens, -1)
        wanted = parents * self.vocab + tokens
        at = torch.searchsorted(self.keys, wanted).clamp_(max=len(self.keys) - 1)
        return torch.where((parents >= 0) & (self.keys[at] == wanted), at, -1)

    def withheld(self, parents: Tensor) -> Tensor:
        """Return log gamma of `parents`, 0 for -1: (T,) -> (T,)."""
        return torch.where(parents >= 0, self.gamma[parents.clamp(min=0)], 0.0)

    def spread(self, parents: Tensor, logits: Tensor) -> None:
        """Lay this level over shorter contexts' logits (T, V), in place."""
        logits += self.withheld(parents)[:, None]
        known = parents.clamp(min=0)
        counts = torch.where(parents >= 0, self.first[known + 1] - self.first[known], 0)
        rows = torch.repeat_interleave(counts)
        before = counts.cumsum(0) - counts
        at = self.first[known][rows] + torch.arange(len(rows), device=rows.device) - before[rows]
        logits[rows, self.keys[at] % self.vocab] = self.p[at]


class _Head(Head):
    """Nodes to log-probabilities. Without any context it is the bias: log p of each token alone."""

    def __init__(self, s: spec.Model, single: np.ndarray, grams: list[_Grams]) -> None:
        super().__init__(s, nn.Embedding(1, 1))
        self.weight = None  # it counts, it does not multiply
        self.bias = nn.Parameter(torch.from_numpy(single.astype(np.float32)), requires_grad=False)
        self.grams = grams  # the model's own: in a list they are not registered twice

    def forward(self, x: Tensor) -> Tensor:
        """Give log p(token | context): x (T, order - 1) nodes -> (T, V)."""
        logits = self.bias.expand(len(x), -1).clone()
        for gram, nodes in zip(self.grams, x.unbind(1), strict=True):
            gram.spread(nodes, logits)
        return logits


class NGram(Model):
    """A language model that counts."""

    def __init__(self, levels: Sequence[Level], smoothing: Smoothing = "modified") -> None:
        nn.Module.__init__(self)
        vocab, self.order = len(levels[0].tokens), len(levels)
        self.spec = spec.Model(
            vocab=vocab, dim=max(1, self.order - 1), depth=1, context=UNBOUNDED, blocks=_NO_BLOCKS,
            head=spec.Head(tied=False, bias=True),
        )  # fmt: skip
        found, self.discounts = smooth(levels, smoothing)
        self.layers = nn.ModuleList()
        self.grams = [
            _Grams(level, own.p, above.gamma, vocab)
            for level, (above, own) in zip(levels[1:], pairwise(found), strict=True)
        ]
        self.tables = nn.ModuleList(self.grams)
        self.head = _Head(self.spec, found[0].p, self.grams)

    @property
    def size(self) -> int:
        """How many n-grams it knows, of all lengths."""
        return self.spec.vocab + sum(len(gram.keys) for gram in self.grams)

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        """Find the longest known contexts: tokens (T,) -> nodes (T, order - 1), -1 where a context is new."""
        past = ctx.state(0)
        begins = torch.tensor(ctx.cu[:-1], device=tokens.device)
        columns = [tokens][: self.order - 1]
        for k, gram in enumerate(self.grams[: max(0, self.order - 2)]):
            before = columns[k].roll(1)
            before[begins] = -1 if past is None else past[0][:, k]
            columns.append(gram.find(before, tokens))
        hidden = torch.stack(columns, 1) if columns else tokens.new_empty(len(tokens), 0)
        ctx.commit(0, (hidden[torch.tensor(ctx.cu[1:], device=tokens.device) - 1],))
        return hidden

    def log_probabilities(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Look up single targets without spreading all tokens: (T, order - 1), (T,) -> log p (T,)."""
        assert self.head.bias is not None
        out = self.head.bias[targets]
        for gram, nodes in zip(self.grams, hidden.unbind(1), strict=True):
            found = gram.find(nodes, targets)
            out = torch.where(
                found >= 0, gram.p[found.clamp(min=0)] if len(gram.p) else out, out + gram.withheld(nodes)
            )
        return out


_NO_BLOCKS = (spec.Block(()),)


def tensors(levels: Sequence[Level]) -> dict[str, Tensor]:
    """Return the counts as named tensors in the narrowest types that hold them."""
    out = {"1.counts": _narrow(levels[0].counts)}
    for k, level in enumerate(levels[1:], 2):
        parts = {"first": level.first, "tokens": level.tokens, "counts": level.counts, "suffix": level.suffix}
        out |= {f"{k}.{name}": _narrow(value) for name, value in parts.items()}
    return out


def _narrow(value: np.ndarray) -> Tensor:
    top = int(value.max(initial=0))
    kind = next(t for t in (np.uint8, np.uint16, np.uint32, np.int64) if top <= np.iinfo(t).max)
    return torch.from_numpy(value.astype(kind))


def levels_of(parts: Mapping[str, Tensor], place: str) -> list[Level]:
    """Read what `tensors` wrote; every number that is used as a place is checked."""
    none = np.zeros(0, np.int64)
    try:
        read = {name: tensor.numpy().astype(np.int64) for name, tensor in parts.items()}
        levels = [Level(none, np.arange(len(read["1.counts"])), read.pop("1.counts"), none)]
        for k in range(2, MOST + 1):
            if f"{k}.tokens" not in read:
                break
            levels.append(Level(*(read.pop(f"{k}.{name}") for name in ("first", "tokens", "counts", "suffix"))))
    except KeyError as error:
        raise TerakoyaError(place, f"lacks the tensor {error}") from None
    if read or not len(levels[0].tokens):
        raise TerakoyaError(place, "is no n-gram model", given=sorted(read)[:4] or "no tokens")
    for k, (above, level) in enumerate(pairwise(levels), 2):
        count, steps = len(level.tokens), np.diff(level.first)
        inside = np.repeat(np.arange(len(steps)), np.maximum(steps, 0)) if level.first.size else none
        sound = (
            len(level.first) == len(above.tokens) + 1 and level.first[0] == 0 and level.first[-1] == count
            and len(level.counts) == len(level.suffix) == len(inside) == count and (steps >= 0).all()
            and _below(level.tokens, len(levels[0].tokens)) and _below(level.suffix, len(above.tokens))
            and (level.counts >= 0).all()
            and (np.diff(inside * len(levels[0].tokens) + level.tokens) > 0).all()
        )  # fmt: skip
        if not sound:
            raise TerakoyaError(place, f"is damaged: its {k}-grams do not fit together")
    return levels


def _below(values: np.ndarray, end: int) -> bool:
    return not len(values) or bool(values.min() >= 0 and values.max() < end)
