"""The model: embed, blocks, norm, head. `model(tokens, ctx)` gives hidden vectors, `model.head(hidden)` logits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.model import spec
from terakoya.model.attention import Attention, Latent
from terakoya.model.context import Context
from terakoya.model.ffn import MLP, MoE
from terakoya.model.norm import Norm
from terakoya.model.position import sinusoid
from terakoya.model.recurrent_mixers import RECURRENT, recurrent

NAMES = {spec.Attention: "attn", spec.Latent: "attn", spec.MLP: "mlp", spec.MoE: "mlp"}
NAMES |= RECURRENT


def mixer(s: spec.Mixer, model: spec.Model, layer: int) -> nn.Module:
    """Build the module of one mixer."""
    match s:
        case spec.Attention():
            return Attention(s, model, layer)
        case spec.Latent():
            return Latent(s, model, layer)
        case spec.MLP():
            return MLP(s, model.dim)
        case spec.MoE():
            return MoE(s, model.dim)
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

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Add every branch to the stream: x (T, D) -> (T, D)."""
        for branch in self.spec.branches:
            first = NAMES[type(branch.mix[0])]
            h = y = x
            for i, mix in enumerate(branch.mix):
                name = NAMES[type(mix)]
                if branch.pre and (branch.each or i == 0):
                    h = self.get_submodule(f"{name}_pre")(x)
                z = self.get_submodule(name)(h, ctx)
                if branch.post:
                    z = self.get_submodule(f"{name}_post")(z)
                y = z if i == 0 else y + z
            skip = h if branch.normed_skip else x
            y = y if branch.scale == 1.0 else y * branch.scale
            x = skip + y if branch.skip == 1.0 else skip * branch.skip + y if branch.skip else y
            if branch.out:
                x = self.get_submodule(f"{first}_out")(x)
        return x


class Embed(nn.Module):
    """Tokens, scaled, plus absolute positions where the family has them."""

    def __init__(self, s: spec.Model) -> None:
        super().__init__()
        e = self.spec = s.embed
        self.dim = s.dim
        self.scale = math.sqrt(s.dim) if e.scale == "sqrt_dim" else float(e.scale)
        width = e.factor or s.dim
        self.token = nn.Embedding(s.vocab, width)
        self.project = nn.Linear(width, s.dim, bias=False) if e.factor else None
        learned = e.position if isinstance(e.position, spec.Learned) else None
        self.position = nn.Embedding(s.context + learned.offset, s.dim) if learned else None
        self.norm = Norm(e.norm, s.dim) if e.norm else None

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        """Look up: tokens (T,) -> (T, D)."""
        x = self.token(tokens)
        if self.scale != 1.0:
            x = x * torch.tensor(self.scale, dtype=x.dtype)
        if self.project is not None:
            x = self.project(x)
        match self.spec.position:
            case spec.Learned(offset):
                assert self.position is not None
                x = x + self.position(ctx.pos + offset)
            case spec.Sinusoid():
                x = x + sinusoid(ctx.pos, self.dim, x.dtype)
        return x if self.norm is None else self.norm(x)


class Head(nn.Module):
    """Vectors to logits, through the token table where tied."""

    def __init__(self, s: spec.Model, token: nn.Embedding) -> None:
        super().__init__()
        self.spec = s.head
        width = s.embed.factor or s.dim
        self.project = nn.Linear(s.dim, width, bias=False) if s.embed.factor else None
        self.weight = token.weight if s.head.tied else nn.Parameter(torch.empty(s.vocab, width))
        self.bias = nn.Parameter(torch.empty(s.vocab)) if s.head.bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Score every token of the vocabulary: x (T, D) -> (T, V)."""
        if self.project is not None:
            x = self.project(x)
        y = F.linear(x, self.weight, self.bias)
        if self.spec.scale != 1.0:
            y = y * self.spec.scale
        cap = self.spec.softcap
        return y if cap is None else cap * torch.tanh(y / cap)


class Model(nn.Module):
    """A language model from its spec. Knows no batch, mask, cache or phase: only tokens and a context."""

    def __init__(self, s: spec.Model) -> None:
        super().__init__()
        spec.check(s)
        self.spec = s
        self.embed = Embed(s)
        self.layers = nn.ModuleList(Block(block, s, i) for i, block in enumerate(s.layers()))
        self.norm = Norm(s.norm, s.dim) if s.norm else None
        self.head = Head(s, self.embed.token)

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        """Read a step's tokens: tokens (T,) -> hidden (T, D)."""
        x = self.embed(tokens, ctx)
        for layer in self.layers:
            x = layer(x, ctx)
        return x if self.norm is None else self.norm(x)
