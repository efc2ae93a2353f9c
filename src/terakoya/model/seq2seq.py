"""Sequence to sequence before the Transformer: one recurrent network reads, another writes, attention between them.

A batch holds pairs: pieces 0, 2, 4 … are sources, 1, 3, 5 … their targets. `model(tokens, ctx)` gives the hidden vector
of every target token (zeros for sources), `model.head` its logits, so that the objective, the step and the loop of
other models train this one too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.align import Additive, Memory, Multiplicative, Where
from terakoya.model.context import Context
from terakoya.model.model import Head, Model
from terakoya.model.noise import Noise

State = tuple[Tensor, ...]
Kind = Literal["sutskever", "bahdanau", "luong"]
LIMIT = 1 << 16  # tokens of a text


@dataclass(frozen=True)
class Pair:
    """Which of the three, and how large. `score`, `where` and `feed` are Luong's choices.

    sutskever: deep LSTMs, the source read backwards, its last state begins the target (arXiv:1409.3215).
    bahdanau: GRUs, the source read both ways, additive attention before each word (arXiv:1409.0473).
    luong: deep LSTMs, attention after each word (arXiv:1508.04025).
    """

    kind: Kind = "luong"
    dim: int = 256
    depth: int = 2  # layers of LSTM; Bahdanau has one GRU
    score: Literal["dot", "general", "concat"] = "general"
    where: Where = "global"
    half: int = 10  # half the window of local attention
    feed: bool = True  # the attentional vector is part of the next input
    backwards: bool = False  # read the source from its end; Sutskever always does
    dropout: float = 0.2

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "half"):
            if getattr(self, name) < 1:
                raise TerakoyaError(f"pairs.{name}", given=getattr(self, name), allowed="1 or more")
        if not 0 <= self.dropout < 1:
            raise TerakoyaError("pairs.dropout", given=self.dropout, allowed="0 or more, less than 1")
        usual = {f.name: f.default for f in fields(self)}
        for name in ("score", "where", "half", "feed"):
            if self.kind != "luong" and (value := getattr(self, name)) != usual[name]:
                raise TerakoyaError(f"pairs.{name}", f"is Luong's choice; {self.kind} has none", given=value)
        if self.kind == "bahdanau" and self.depth not in (1, usual["depth"]):
            raise TerakoyaError("pairs.depth", "bahdanau has one layer each way", given=self.depth)


class Words(nn.Module):
    """A table of word vectors."""

    def __init__(self, vocab: int, dim: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token(tokens)


class DeepLSTM(nn.Module):
    """Reads with a stack of LSTMs -> states of the top layer, and each layer's last (h, c)."""

    def __init__(self, p: Pair, noise: Noise) -> None:
        super().__init__()
        self.plan, self.noise = p, noise
        self.layers = nn.ModuleList(nn.LSTM(p.dim, p.dim, batch_first=True) for _ in range(p.depth))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, list[State]]:
        """Read x (B, S, D) -> (B, S, D) in the order of the text, and [(h, c)] of each layer, (B, D) each."""
        backwards = self.plan.backwards or self.plan.kind == "sutskever"
        x = turned(x, lengths) if backwards else x
        last = list[State]()
        for i, layer in enumerate(self.layers):
            x = self.noise.drop(x, self.plan.dropout) if i else x
            packed, (h, c) = layer(pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))
            x, _ = pad_packed_sequence(packed, batch_first=True)
            last.append((h[0], c[0]))
        return turned(x, lengths) if backwards else x, last


class ResetGRU(nn.Module):
    """The GRU of Cho 2014 and Bahdanau 2014, which resets the state before the product, with an optional context.

    z, r = sigmoid(W y + U s + C c); s~ = tanh(W y + U (r o s) + C c); s' = (1 - z) o s + z o s~
    """

    def __init__(self, dim: int, context: int = 0) -> None:
        super().__init__()
        self.x = nn.Linear(dim, 3 * dim)
        self.c = nn.Linear(context, 3 * dim, bias=False) if context else None
        self.gates = nn.Linear(dim, 2 * dim, bias=False)
        self.new = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, s: Tensor, c: Tensor | None = None) -> Tensor:
        """Advance: x (B, D), s (B, D), c (B, C) -> s (B, D)."""
        given = self.x(x) if self.c is None or c is None else self.x(x) + self.c(c)
        gates, candidate = given.split([2 * s.shape[1], s.shape[1]], 1)
        z, r = (gates + self.gates(s)).sigmoid().chunk(2, 1)
        return (1 - z) * s + z * torch.tanh(candidate + self.new(r * s))


class BothWays(nn.Module):
    """Bahdanau's reader: one GRU from the left, one from the right."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.right, self.left = ResetGRU(dim), ResetGRU(dim)
        self.begin = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, list[State]]:
        """Read x (B, S, D) -> annotations (B, S, 2D), and the writer's first state from the leftmost one."""
        ways = [_run(self.right, x), turned(_run(self.left, turned(x, lengths)), lengths)]
        return torch.cat(ways, 2), [(torch.tanh(self.begin(ways[1][:, 0])),)]


def _run(cell: ResetGRU, x: Tensor) -> Tensor:
    s, out = x.new_zeros(len(x), x.shape[2]), list[Tensor]()
    for step in x.unbind(1):
        s = cell(step, s)
        out.append(s)
    return torch.stack(out, 1)


def turned(x: Tensor, lengths: Tensor) -> Tensor:
    """Turn each row's first `lengths` places round: x (B, S, D) -> (B, S, D)."""
    at = torch.arange(x.shape[1], device=x.device)[None, :]
    back = torch.where(at < lengths[:, None], lengths[:, None] - 1 - at, at)
    return x.gather(1, back[:, :, None].expand_as(x))


class StackWriter(nn.Module):
    """Writes with a stack of LSTM cells; with attention h~ = tanh(W [c; h]), fed into the next step where asked."""

    def __init__(self, p: Pair, noise: Noise) -> None:
        super().__init__()
        self.plan, self.noise = p, noise
        attends = p.kind == "luong"
        self.cells = nn.ModuleList(
            nn.LSTMCell(p.dim * (2 if i == 0 and attends and p.feed else 1), p.dim) for i in range(p.depth)
        )
        self.align = Multiplicative(p.dim, p.score, p.where, p.half) if attends else None
        self.out = nn.Linear(2 * p.dim, p.dim, bias=False) if attends else None

    def begin(self, last: list[State]) -> list[State]:
        """Return the first state: the reader's, and h~ = 0."""
        return [*last, (torch.zeros_like(last[0][0]),)]

    def forward(
        self, y: Tensor, state: list[State], memory: Memory, t: int
    ) -> tuple[Tensor, list[State], Tensor | None]:
        """Write step t: y (B, D) -> (B, D) for the head, the next state, and where it looked (B, S)."""
        x = torch.cat([y, state[-1][0]], 1) if self.align and self.plan.feed else y
        new = list[State]()
        for i, (cell, held) in enumerate(zip(self.cells, state[:-1], strict=True)):
            h, c = cell(self.noise.drop(x, self.plan.dropout) if i else x, held)
            new.append((h, c))
            x = h
        if self.align is None or self.out is None:
            return x, [*new, state[-1]], None
        weights = self.align(x, memory, t)
        seen = (weights[:, None] @ memory.states)[:, 0]
        x = torch.tanh(self.out(torch.cat([seen, x], 1)))
        return x, [*new, (x,)], weights


class GRUWriter(nn.Module):
    """Bahdanau's writer: look first, then step; the word comes from the old state, the last word and what was seen.

    The readout is the paper's (appendix A.2.2): t = max of pairs of U s + V y + C c.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cell = ResetGRU(dim, 2 * dim)
        self.align = Additive(dim, 2 * dim, dim)
        self.read = nn.Linear(4 * dim, 2 * dim)

    def begin(self, last: list[State]) -> list[State]:
        return last

    def forward(
        self, y: Tensor, state: list[State], memory: Memory, t: int
    ) -> tuple[Tensor, list[State], Tensor | None]:
        """Write one step: y (B, D) -> (B, D), state, weights (B, S)."""
        s = state[0][0]
        weights = self.align(s, memory)
        seen = (weights[:, None] @ memory.states)[:, 0]
        out = self.read(torch.cat([s, y, seen], 1)).unflatten(1, (-1, 2)).amax(2)
        return out, [(self.cell(y, s, seen),)], weights


class Seq2Seq(Model):
    """Reader, writer and head."""

    def __init__(self, plan: Pair, vocab: int) -> None:
        nn.Module.__init__(self)
        self.plan, self.noise = plan, Noise()
        self.spec = spec.Model(
            vocab=vocab, dim=plan.dim, depth=plan.depth, context=LIMIT, blocks=(spec.Block(()),), norm=None,
            head=spec.Head(tied=False, bias=True),
        )  # fmt: skip
        self.layers = nn.ModuleList()
        self.source, self.target = Words(vocab, plan.dim), Words(vocab, plan.dim)
        deep = plan.kind != "bahdanau"
        self.reader = DeepLSTM(plan, self.noise) if deep else BothWays(plan.dim)
        self.writer = StackWriter(plan, self.noise) if deep else GRUWriter(plan.dim)
        self.head = Head(self.spec, self.target.token)

    def begin(self, sources: Sequence[Tensor]) -> tuple[Memory, list[State]]:
        """Read B texts -> what the writer looks at, and its first state."""
        lengths = torch.tensor([len(s) for s in sources], device=sources[0].device)
        x = self.noise.drop(self.source(pad_sequence(list(sources), batch_first=True)), self.plan.dropout)
        states, last = self.reader(x, lengths)
        return Memory(states, lengths), self.writer.begin(last)

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        """Write every target after its source: tokens (T,) of pairs -> (T, D), zeros for sources."""
        sizes = [b - a for a, b in pairwise(ctx.cu)]
        assert len(sizes) % 2 == 0, "a batch of pairs"
        pieces = tokens.split(sizes)
        memory, state = self.begin(pieces[::2])
        y = self.noise.drop(self.target(pad_sequence(list(pieces[1::2]), batch_first=True)), self.plan.dropout)
        out = list[Tensor]()
        for t, step in enumerate(y.unbind(1)):
            x, state, _ = self.writer(step, state, memory, t)
            out.append(x)
        written = self.noise.drop(torch.stack(out, 1), self.plan.dropout)
        flat = list[Tensor]()
        for n, row in enumerate(written):
            flat += [row.new_zeros(sizes[2 * n], row.shape[1]), row[: sizes[2 * n + 1]]]
        return torch.cat(flat)

    @torch.inference_mode()
    def write(self, source: Tensor, begin: int, end: int, limit: int, beam: int = 1) -> tuple[list[int], Tensor | None]:
        """Translate one text by beam search (1: greedy) -> ids with `end` if it came, and where each looked (U, S).

        Hypotheses compare by log-probability per token, as Sutskever's and Luong's did.
        """
        memory, state = self.begin([source])
        live = [(0.0, [begin], state, list[Tensor]())]
        done = list[tuple[float, list[int], list[Tensor]]]()
        for t in range(limit):
            found = list[tuple[float, list[int], list[State], list[Tensor]]]()
            for total, ids, held, looks in live:
                y = self.target(torch.tensor([ids[-1]], device=source.device))
                x, new, weights = self.writer(y, held, memory, t)
                best = torch.log_softmax(self.head(x)[0].float(), 0).topk(min(beam, self.spec.vocab))
                seen = looks if weights is None else [*looks, weights[0]]
                pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
                found += [(total + p, [*ids, i], new, seen) for p, i in pairs]
            found.sort(key=lambda f: -f[0])
            done += [(f[0] / (t + 1), f[1][1:], f[3]) for f in found[:beam] if f[1][-1] == end]
            live = [f for f in found if f[1][-1] != end][:beam]
            if len(done) >= beam:
                break
        done += [(f[0] / limit, f[1][1:], f[3]) for f in live] if not done else []
        _, ids, looks = max(done, key=lambda d: d[0])
        return ids, torch.stack(looks) if looks else None
