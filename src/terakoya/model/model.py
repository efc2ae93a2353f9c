"""The model: embed, blocks, norm, head. `model(tokens, ctx)` gives hidden vectors, `model.head(hidden)` logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.attention import Attention, Latent
from terakoya.model.context import Context, Packed, Source
from terakoya.model.cross import Cross
from terakoya.model.disentangled import Distances, Neighbours
from terakoya.model.entities import EntityHead, EntityTable, mentions_of
from terakoya.model.evolved import GLU, CausalConv, CentredConv
from terakoya.model.ffn import ACTS, MLP, MoE
from terakoya.model.flamingo import Gate, Glance
from terakoya.model.norm import Norm
from terakoya.model.position import Axial, Biases, Buckets, sinusoid
from terakoya.model.recurrent_mixers import RECURRENT, recurrent
from terakoya.model.reformer import reversible
from terakoya.model.sight import Sight, trunk

NAMES = {spec.Attention: "attn", spec.Cross: "cross", spec.Latent: "attn", spec.MLP: "mlp", spec.MoE: "mlp"}
NAMES |= {spec.GLU: "glu", spec.EvolvedConv: "conv", spec.Glance: "glance"} | RECURRENT


def mixer(s: spec.Mixer, model: spec.Model, layer: int) -> nn.Module:
    """Build the module of one mixer."""
    match s:
        case spec.Attention():
            return Attention(s, model, layer)
        case spec.Cross():
            return Cross(s, model, layer)
        case spec.Latent():
            return Latent(s, model, layer)
        case spec.MLP():
            return MLP(s, model.dim)
        case spec.MoE():
            return MoE(s, model.dim)
        case spec.Glance():
            return Glance(s, model)
        case spec.GLU():
            return GLU(model.dim)
        case spec.EvolvedConv():
            return CausalConv(model.dim, layer) if s.causal else CentredConv(model.dim)
        case _:
            return recurrent(s, model, layer)


class Block(nn.Module):
    """One layer: the residual branches of a `spec.Block`, in order."""

    def __init__(self, s: spec.Block, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec = s
        for branch in s.branches:
            for i, mix in enumerate(branch.mix):
                name = NAMES[type(mix)]
                self.add_module(name, mixer(mix, model, layer))
                if branch.pre and (branch.each or i == 0):
                    self.add_module(f"{name}_pre", Norm(branch.pre, model.dim))
                if branch.post:
                    self.add_module(f"{name}_post", Norm(branch.post, model.dim))
            if branch.out:
                self.add_module(f"{NAMES[type(branch.mix[0])]}_out", Norm(branch.out, model.dim))
            if branch.gate:
                self.add_module(f"{NAMES[type(branch.mix[0])]}_gate", Gate())

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Add every branch to the stream: x (T, D) -> (T, D)."""
        for branch in self.spec.branches:
            first = NAMES[type(branch.mix[0])]
            y, h = self.change(branch, x, ctx)
            skip = h if branch.normed_skip else x
            x = skip + y if branch.skip == 1.0 else skip * branch.skip + y if branch.skip else y
            if branch.out:
                x = self.get_submodule(f"{first}_out")(x)
        return x

    def change(self, branch: spec.Branch, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """Return what a branch adds to the stream, and the last that it read: x (T, D) -> (T, D), (T, D)."""
        h = y = x
        for i, mix in enumerate(branch.mix):
            name = NAMES[type(mix)]
            if branch.pre and (branch.each or i == 0):
                h = self.get_submodule(f"{name}_pre")(x)
            z = self.get_submodule(name)(h, ctx)
            if branch.post:
                z = self.get_submodule(f"{name}_post")(z)
            y = z if i == 0 else y + z
        if branch.gate:
            y = self.get_submodule(f"{NAMES[type(branch.mix[0])]}_gate")(y)
        return (y if branch.scale == 1.0 else y * branch.scale), h

    def halves(self, ctx: Context) -> tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Return the block and its two branches as functions, for reversible streams."""
        f, g = self.spec.branches
        return self, lambda x: self.change(f, x, ctx)[0], lambda x: self.change(g, x, ctx)[0]


class Embed(nn.Module):
    """Tokens, scaled, plus absolute positions where the family has them."""

    def __init__(self, s: spec.Model) -> None:
        super().__init__()
        e = self.spec = s.embed
        self.dim = s.dim
        self.scale = scale_of(e.scale, s.dim)
        width = e.factor or s.dim
        inner = width if e.whole else s.dim
        self.token = nn.Embedding(s.vocab, width)
        self.project = nn.Linear(width, s.dim, bias=e.whole) if e.factor else None
        learned = e.position if isinstance(e.position, spec.Learned) else None
        self.position: nn.Module | None = nn.Embedding(s.context + learned.offset, inner) if learned else None
        if isinstance(e.position, spec.Axial):
            self.position = Axial(e.position, inner)
        self.segment = nn.Embedding(e.types, inner) if e.types else None
        self.asks = nn.Parameter(torch.empty(1, 1, s.dim)) if e.asks else None
        self.norm = Norm(e.norm, inner) if e.norm else None
        self.entity = EntityTable(e.entities, s) if e.entities else None

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        """Look up: tokens (T,) -> (T, D)."""
        x = self.token(tokens)
        if self.scale != 1.0:
            x = x * torch.tensor(self.scale, dtype=x.dtype)
        if (given := ctx.share("vectors", lambda: None)) is not None:
            x = x.index_copy(0, given[0], given[1].to(x.dtype))
        if self.project is not None and not self.spec.whole:
            x = self.project(x)
        if self.segment is not None:
            x = x + self.segment(ctx.share("segments", lambda: torch.zeros_like(tokens)))
        match self.spec.position:
            case spec.Learned(offset):
                assert self.position is not None
                x = x + self.position(self.counted(ctx) + offset)
            case spec.Axial():
                assert self.position is not None
                x = x + self.position(self.counted(ctx))
            case spec.Sinusoid():
                x = x + sinusoid(ctx.pos, self.dim, x.dtype)
        x = x if self.norm is None else self.norm(x)
        x = self.project(x) if self.project is not None and self.spec.whole else x
        if self.entity is not None and (mentions := mentions_of(ctx)) is not None:
            segments = ctx.share("segments", lambda: None)
            x = x.index_copy(0, mentions.at, self.entity(mentions, segments).to(x.dtype))
        return x

    def counted(self, ctx: Context) -> Tensor:
        """Return the positions of words (T,); entities stand behind them and have none of their own."""
        mentions = None if self.entity is None else mentions_of(ctx)
        return ctx.pos if mentions is None else ctx.pos.index_fill(0, mentions.at, 0)


class Transform(nn.Module):
    """norm(act(W h + b)), before scores are taken (Devlin 2018)."""

    def __init__(self, s: spec.Transform, dim: int, width: int) -> None:
        super().__init__()
        self.spec = s
        self.dense = nn.Linear(dim, width, bias=s.bias)
        self.norm = Norm(s.norm, width) if s.norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Prepare each vector: x (T, D) -> (T, E)."""
        x = ACTS[self.spec.act](self.dense(x))
        return x if self.norm is None else self.norm(x)


def scale_of(scale: float | str, dim: int) -> float:
    """Return what token vectors are multiplied with."""
    if not isinstance(scale, str):
        return float(scale)
    root = math.sqrt(dim)
    return root if scale == "sqrt_dim" else float(torch.tensor(root, dtype=torch.bfloat16, device="cpu"))


class Head(nn.Module):
    """Vectors to logits, through the token table where tied."""

    def __init__(self, s: spec.Model, token: nn.Embedding) -> None:
        super().__init__()
        h = self.spec = s.head
        words = h.scores == "words"
        own = s.dim if h.tied else s.out_dim  # a table that is shared is as wide as the embedding
        width = s.embed.factor or own if words else s.out_dim
        self.transform = Transform(h.transform, s.out_dim, width) if h.transform else None
        self.project = nn.Linear(s.out_dim, width, bias=False) if width != s.out_dim and not h.transform else None
        rows = s.vocab if words else 1
        table = None if h.scores == "nothing" else nn.Parameter(torch.empty(rows, width))
        self.weight = token.weight if words and h.tied else table
        self.bias = nn.Parameter(torch.empty(rows)) if h.bias else None
        self.shift: Tensor | None
        self.register_buffer("shift", torch.zeros(1, rows) if h.shift else None)

    def forward(self, x: Tensor) -> Tensor:
        """Score every token of the vocabulary (or whether each was replaced): x (T, D) -> (T, V) or (T, 1)."""
        if self.weight is None:
            raise TerakoyaError("model", "has no head: it turns text into vectors and scores no words")
        if self.transform is not None:
            x = self.transform(x)
        if self.project is not None:
            x = self.project(x)
        y = F.linear(x, self.weight, self.bias)
        if self.shift is not None:
            y = y + self.shift
        if self.spec.scale != 1.0:
            y = y * self.spec.scale
        cap = self.spec.softcap
        return y if cap is None else cap * torch.tanh(y / cap)


class Pool(nn.Module):
    """One vector per sequence from its first token, and what the pair of sentences is (Devlin 2018)."""

    def __init__(self, s: spec.Pooler, dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.pair = nn.Linear(dim, s.classes) if s.classes else None

    def forward(self, hidden: Tensor, ctx: Context) -> Tensor:
        """Take the first token of each sequence: hidden (T, D) -> (N, D)."""
        return torch.tanh(self.dense(hidden[torch.tensor(ctx.cu[:-1], device=hidden.device)]))


class Model(nn.Module):
    """A language model from its spec. Knows no batch, mask, cache or phase: only tokens and a context."""

    def __init__(self, s: spec.Model) -> None:
        super().__init__()
        spec.check(s)
        self.spec = s
        encoder = Model(s.encoder) if s.encoder else None
        self.embed = Embed(s)
        if encoder is not None and s.embed.shared:
            self.embed.token = encoder.embed.token
        self.layers = nn.ModuleList(Block(block, s, i) for i, block in enumerate(s.layers()[: s.share or s.depth]))
        self.relative = lend(s, self.layers)
        self.norm = Norm(s.norm, s.out_dim) if s.norm else None
        self.head = Head(s, self.embed.token)
        self.entities = None
        if s.embed.entities and self.embed.entity is not None and s.head.scores == "words":
            self.entities = EntityHead(s.embed.entities, s, self.embed.entity)
        self.pool = Pool(s.pool, s.out_dim) if s.pool else None
        self.conv = Neighbours(s.conv, s.embed.norm, s.dim) if s.conv and s.embed.norm else None
        self.encoder = encoder
        self.sight = None
        if s.sight:
            eye, block = trunk(s.sight)
            self.sight = Sight(s.sight, s.dim, [Block(block, eye, i) for i in range(eye.depth)])

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        """Read a step's tokens: tokens (T,) -> hidden (T, D), or (T, 2 D) where layers are reversible."""
        return self.read(self.embed(tokens, ctx), ctx)

    def read(self, x: Tensor, ctx: Context) -> Tensor:
        """Read vectors in the place of tokens: x (T, D) -> hidden as `forward` gives it."""
        before = x
        if self.spec.reversible:
            x = reversible(x, [layer.halves(ctx) for layer in self.layers if isinstance(layer, Block)])
            return x if self.norm is None else self.norm(x)
        for i in range(self.spec.depth):
            x = self.layers[i if self.spec.share is None else i * self.spec.share // self.spec.depth](x, ctx)
            if self.conv is not None and i == 0:
                x = self.conv(before, x, ctx)
        return x if self.norm is None else self.norm(x)

    def see(self, pixels: Tensor) -> Tensor:
        """Look at N pictures: pixels (N, 3, height, width), prepared -> vectors (N, places, D) to stand in a text."""
        if self.sight is None:
            raise TerakoyaError("model", "cannot see: it has no image encoder")
        return self.sight(pixels)

    def encode(self, tokens: Tensor, lengths: Sequence[int]) -> Source:
        """Read N source texts, side by side, with the encoder: tokens (S,) -> what the decoder's context looks at."""
        if self.encoder is None:
            raise TerakoyaError("model", "has no encoder: it continues texts, it does not read one to write another")
        return Source(self.encoder(tokens, Packed(lengths, tokens.device)), tuple(lengths))


def lend(s: spec.Model, layers: nn.ModuleList) -> nn.Module | None:
    """Build the position that all layers have in common, and hand it to them without giving it away."""
    wanted = [m for block in layers for m in block.children() if isinstance(m, Attention) and _common(m.spec.position)]
    if not wanted:
        return None
    first = wanted[0].spec
    if isinstance(first.position, spec.Disentangled):
        made: nn.Module = Distances(first.position, s.embed.norm, s.dim)
    elif isinstance(first.position, spec.Relative):
        made = Biases(first.heads, spec.head_dim(s, first))
    else:
        assert isinstance(first.position, spec.Buckets)
        made = Buckets(first.position, first.heads, first.causal)
    for attention in wanted:
        attention.lent = [made]  # in a list, so that it is no part of the layer
    return made


def _common(position: object) -> bool:
    shares = isinstance(position, spec.Buckets | spec.Relative) and position.shared
    return shares or isinstance(position, spec.Disentangled)
