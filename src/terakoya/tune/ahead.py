"""What stands before every text: learned vectors, or learned keys and values, at positions that no token has.

Every sequence of a step sees them, packed ones each for itself. In a step of the engine the ids of a request must hold
a place for each: its first `lead(model)` ids are anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from terakoya.engine.paged import Paged, Probe
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.build import generator
from terakoya.model.context import Cached, Context, Keys, Packed
from terakoya.model.model import Model
from terakoya.ops.attend import Bias, Look
from terakoya.tune.branch import Branched, branches
from terakoya.tune.plans import Ahead, Prefix, Prompt, PTuning

COMMON = 5000  # the ids that random words are taken from: a vocabulary has the frequent ones first


class Virtual(nn.Module):
    """`count` positions before a text. Either `vectors()` (P, D) or `past()` (L, 2, P, G, K) is theirs."""

    plan: Ahead
    count: int
    prompt: nn.Parameter

    def vectors(self) -> Tensor | None:
        """Return what stands in the place of the vectors of tokens: (P, D)."""
        return None

    def past(self) -> Tensor | None:
        """Return keys and values of every layer: (L, 2, P, G, K)."""
        return None


class Vectors(Virtual):
    """Learned vectors, each for itself."""

    def __init__(self, plan: Prompt | PTuning, begin: Tensor) -> None:
        super().__init__()
        self.plan, self.count = plan, plan.tokens
        self.prompt = nn.Parameter(begin.clone())

    def vectors(self) -> Tensor:
        return self.prompt


class Encoded(Virtual):
    """Learned vectors, read by a small network."""

    def __init__(self, plan: PTuning, width: int, seed: int, like: Tensor) -> None:
        super().__init__()
        self.plan, self.count = plan, plan.tokens
        self.prompt = nn.Parameter(torch.empty(plan.tokens, width))
        if plan.encoder == "lstm":
            self.lstm = nn.LSTM(width, plan.hidden, num_layers=2, bidirectional=True, batch_first=True)
            sizes = [2 * plan.hidden, 2 * plan.hidden, width]
        else:
            self.lstm = None
            sizes = [width, plan.hidden, plan.hidden, width]
        self.mlp = nn.Sequential(*_relus(sizes))
        _begin(self, seed)
        self.to(like)

    def vectors(self) -> Tensor:
        x = self.prompt if self.lstm is None else self.lstm(self.prompt[None])[0][0]
        return self.mlp(x)


class Past(Virtual):
    """Learned keys and values: (P, L · 2 · G · K), through an MLP or not."""

    def __init__(
        self, plan: Prefix, shape: tuple[int, int, int], begin: Tensor | None, seed: int, like: Tensor
    ) -> None:
        super().__init__()
        self.plan, self.count, self.shape = plan, plan.tokens, shape
        layers, heads, width = shape
        size = layers * 2 * heads * width
        self.mlp = None
        if begin is not None:
            self.prompt = nn.Parameter(begin.clone())
            return
        narrow = heads * width if plan.hidden else size
        self.prompt = nn.Parameter(torch.empty(plan.tokens, narrow))
        if plan.hidden:
            self.mlp = nn.Sequential(nn.Linear(narrow, plan.hidden), nn.Tanh(), nn.Linear(plan.hidden, size))
        _begin(self, seed)
        self.to(like)

    def flat(self) -> Tensor:
        """Return (P, L · 2 · G · K), as peft keeps it."""
        return self.prompt if self.mlp is None else self.mlp(self.prompt)

    def past(self) -> Tensor:
        layers, heads, width = self.shape
        return self.flat().view(self.count, layers, 2, heads, width).permute(1, 2, 0, 3, 4)


def virtual(model: Model, plan: Ahead, seed: int) -> Virtual:
    """Make what `plan` puts before texts; its own network and its beginning are functions of the seed."""
    fit(model.spec, plan)
    device = next(model.parameters()).device
    ids = torch.randint(min(COMMON, model.spec.vocab), (plan.tokens,), generator=generator(seed, "words")).to(device)
    with torch.no_grad():
        words = model.embed.token(ids)
    width, like = model.spec.dim, words
    if isinstance(plan, PTuning):
        return Encoded(plan, width, seed, like)
    if isinstance(plan, Prompt):
        noise = torch.rand(plan.tokens, width, generator=generator(seed, "prompt")) - 0.5  # ±0.5, as the paper has it
        return Vectors(plan, words if plan.init == "words" else noise.to(like))
    heard = _Listening([plan.tokens], device)
    with torch.no_grad():
        model(ids, heard)
    shapes = {t.shape for pair in heard.seen.values() for t in pair}
    if len(shapes) > 1 or len(heard.seen) < model.spec.depth:
        raise TerakoyaError("adapter", "needs keys and values of one shape in every layer", given="prefix")
    past = torch.stack([torch.stack(heard.seen[i]) for i in range(model.spec.depth)])  # (L, 2, P, G, K)
    begin = past.permute(2, 0, 1, 3, 4).flatten(1) if plan.init == "words" and not plan.hidden else None
    layers, _, _, heads, size = past.shape
    return Past(plan, (layers, heads, size), begin, seed, like)


def fit(s: spec.Model, plan: Ahead) -> None:
    """Refuse a model that has no place for it."""
    kind = type(plan).__name__.lower()
    if not branches(s) or s.encoder or s.reversible or s.embed.types:
        raise TerakoyaError("adapter", "needs a model that only looks back, with keys and values", given=kind)
    if s.embed.factor or s.conv:
        raise TerakoyaError("adapter", "has no place in a model that widens its token vectors", given=kind)
    if isinstance(plan, Prefix) and s.share:
        raise TerakoyaError("adapter", "needs keys and values of its own in every layer", given=kind)
    if plan.tokens >= s.context:
        raise TerakoyaError("adapter.tokens", given=plan.tokens, allowed=f"less than the context, {s.context}")


def read(
    model: Model, whole: Callable[[Tensor, Context], Tensor], parts: Sequence[Virtual], tokens: Tensor, ctx: Context
) -> Tensor:
    """Read tokens (T,) with what stands before them -> (T, D). `whole` is the model without."""
    table = _Table(parts, tokens.device)
    match ctx:
        case Packed() | Branched():
            longer, room = _spread(ctx, table.count, tokens, model.spec.context)
            return whole(room.spread, table.around(longer, room.free))[room.real]
        case Cached():
            if not ctx.memory.before and not any(ctx.memory.lengths):
                every = torch.arange(table.count * len(ctx.counts), device=tokens.device)
                first = Cached(ctx.memory, [table.count] * len(ctx.counts), tokens.device)
                whole(tokens.new_zeros(len(every)), table.around(first, every))
                ctx.follow(table.count)
            if ctx.memory.before != table.count:
                raise TerakoyaError("memory", "was begun under another adapter; begin a new one")
            return whole(tokens, ctx)
        case Paged() | Probe():
            return whole(tokens, table.around(ctx, (ctx.pos < table.count).nonzero()[:, 0]))
        case _:
            kind = type(ctx).__name__
            raise TerakoyaError("adapter", "what stands before the text cannot be read in this context", given=kind)


class _Table:
    """The positions of all active adapters, one after another."""

    def __init__(self, parts: Sequence[Virtual], device: torch.device) -> None:
        self.count = sum(p.count for p in parts)
        vectors, past, first = [], [], 0
        for part in parts:
            at = torch.arange(first, first + part.count, device=device)
            if (v := part.vectors()) is not None:
                vectors.append((at, v))
            if (p := part.past()) is not None:
                past.append((at, p))
            first += part.count
        self.vectors = (torch.cat([a for a, _ in vectors]), torch.cat([v for _, v in vectors])) if vectors else None
        self.past = (torch.cat([a for a, _ in past]), torch.cat([p for _, p in past], 2)) if past else None

    def around(self, ctx: Context, rows: Tensor) -> _Around:
        """Put the table into a context whose `rows` (N,) are no tokens; their positions say which they are."""
        pos = ctx.pos[rows]
        vectors, past = ctx.share("vectors", lambda: None), None
        if self.vectors is not None:
            which = (pos[:, None] == self.vectors[0]).nonzero()
            mine = (rows[which[:, 0]], self.vectors[1][which[:, 1]])
            vectors = mine if vectors is None else (torch.cat([vectors[0], mine[0]]), torch.cat([vectors[1], mine[1]]))
        if self.past is not None:
            which = (pos[:, None] == self.past[0]).nonzero()
            past = (rows[which[:, 0]], which[:, 1], self.past[1])
        return _Around(ctx, vectors, past)


class _Around:
    """A context in which some rows are no tokens: their vectors, or their keys and values, are given."""

    def __init__(
        self, inner: Context, vectors: tuple[Tensor, Tensor] | None, past: tuple[Tensor, Tensor, Tensor] | None
    ) -> None:
        self.inner, self.vectors, self.past = inner, vectors, past
        self.pos, self.cu = inner.pos, inner.cu

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look, bias: Bias | None, sinks: Tensor | None
    ) -> Tensor:
        if self.past is not None:
            rows, which, past = self.past
            k = k.index_copy(0, rows, past[layer, 0][which].to(k.dtype))
            v = v.index_copy(0, rows, past[layer, 1][which].to(v.dtype))
        return self.inner.attend(layer, q, k, v, look, bias, sinks)

    def cross(self, layer: int, q: Tensor, keys: Keys, scale: float) -> Tensor:
        return self.inner.cross(layer, q, keys, scale)

    def remember(self, layer: int, x: Tensor) -> list[Tensor]:
        return self.inner.remember(layer, x)

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        return self.inner.state(layer)

    def commit(self, layer: int, new: tuple[Tensor, ...]) -> None:
        self.inner.commit(layer, new)

    def share(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key == "vectors":
            return self.vectors if self.vectors is not None else make()
        return self.inner.share(key, make)


@dataclass(frozen=True)
class _Room:
    """T tokens with room before every sequence: spread (T + N P,); rows of the tokens (T,) and of the room (N P,)."""

    spread: Tensor
    real: Tensor
    free: Tensor


def _spread(ctx: Packed | Branched, count: int, tokens: Tensor, most: int) -> tuple[Packed | Branched, _Room]:
    """Make room for `count` positions before every sequence of a step."""
    device = tokens.device
    if isinstance(ctx, Packed):
        lengths = longest = list(ctx.lengths)
        longer: Packed | Branched = Packed([n + count for n in lengths], device)
    else:
        lengths = [prompt + sum(answers) for prompt, answers in ctx.groups]
        longest = [prompt + max(answers, default=0) for prompt, answers in ctx.groups]
        longer = Branched([(prompt + count, answers) for prompt, answers in ctx.groups], device)
    if max(longest, default=0) + count > most:
        said = f"of {max(longest)} tokens and {count} positions before it is longer than the model's context"
        raise TerakoyaError("text", said, allowed=f"{most} together")
    owner = torch.repeat_interleave(torch.arange(1, len(lengths) + 1), torch.tensor(lengths)).to(device)
    real = torch.arange(len(tokens), device=device) + owner * count
    spread = tokens.new_zeros(len(tokens) + count * len(lengths))
    spread[real] = tokens
    free = torch.ones(len(spread), dtype=torch.bool, device=device)
    free[real] = False
    if (given := ctx.share("vectors", lambda: None)) is not None:
        longer.share("vectors", lambda: (real[given[0]], given[1]))
    return longer, _Room(spread, real, free.nonzero()[:, 0])


class _Listening(Packed):
    """A context that takes down the keys and values of every layer."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        super().__init__(lengths, device)
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look, bias: Bias | None, sinks: Tensor | None
    ) -> Tensor:
        self.seen[layer] = (k, v)
        return super().attend(layer, q, k, v, look, bias, sinks)


def _relus(sizes: Sequence[int]) -> list[nn.Module]:
    """Linear layers of these sizes with a ReLU between."""
    made: list[nn.Module] = []
    for a, b in pairwise(sizes):
        made += [nn.ReLU(), nn.Linear(a, b)] if made else [nn.Linear(a, b)]
    return made


@torch.no_grad()
def _begin(module: nn.Module, seed: int) -> None:
    """Fill every parameter from the seed and its name: what stands for words as N(0, 1), the rest as layers begin."""
    for name, p in module.named_parameters():
        noise = generator(seed, name)
        if name == "prompt":
            p.copy_(torch.randn(p.shape, generator=noise))
        else:
            bound = 1 / math.sqrt(p.shape[-1])
            p.copy_((torch.rand(p.shape, generator=noise) * 2 - 1) * bound)
