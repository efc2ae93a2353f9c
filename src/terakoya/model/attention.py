"""Attention layers: multi-head, multi-query, grouped-query, and latent (DeepSeek)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terakoya.model import spec
from terakoya.model.context import Context
from terakoya.model.disentangled import Disentangled
from terakoya.model.entities import Queries, mentions_of
from terakoya.model.norm import Norm
from terakoya.model.position import Alibi, Biases, Buckets, Relative, mscale, rope_table, rotate
from terakoya.model.spec_sparse import Fixed, Local, Strided
from terakoya.ops.attend import Look


class Attention(nn.Module):
    """softmax(q k^T * scale + position) v, heads side by side (Vaswani 2017; Shazeer 2019; Ainslie 2023)."""

    def __init__(self, s: spec.Attention, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec, self.layer, self.context = s, layer, model.context
        K = self.width = spec.head_dim(model, s)
        H, G, D = s.heads, s.kv_heads or s.heads, model.dim
        self.q = nn.Linear(D, H * K, bias=s.bias)
        self.k = nn.Linear(D, G * K, bias=s.bias and s.key_bias)
        self.v = nn.Linear(D, G * K, bias=s.bias)
        self.o = nn.Linear(H * K, D, bias=s.out_bias)
        terms = 1 + len(s.position.terms) if isinstance(s.position, spec.Disentangled) else 1
        scale = (K * terms) ** -0.5 if s.scale is None else s.scale
        self.look = look(s, scale / (layer + 1) if s.scale_by_layer else scale)
        if s.qk_norm:
            self.q_norm, self.k_norm = (Norm(s.qk_norm.norm, *_norm_shape(s.qk_norm, n, K)) for n in (H, G))
        self.sinks = nn.Parameter(torch.empty(H)) if s.sinks else None
        self.aware = Queries(D, H * K, s.bias) if s.aware else None
        match s.position:
            case spec.Alibi() as alibi:
                self.position: nn.Module | None = Alibi(alibi, H, self.look.scale)
            case spec.Buckets() as buckets if not buckets.shared:
                self.position = Buckets(buckets, H, s.causal)
            case spec.Relative() as relative:
                self.position = Relative(relative, D, H, K, self.look.scale, s.causal)
            case spec.Disentangled() as apart:
                self.position = Disentangled(apart, s, D, K)
            case _:
                self.position = None
        self.lent: list[nn.Module] = []  # the stack's position, where all layers have one; the stack owns it

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Mix over time: x (T, D) -> (T, D)."""
        q, k, v = self.project(x, ctx)
        if self.aware is not None and (mentions := mentions_of(ctx)) is not None:
            q, k = self.aware(x, q, k, mentions)
        if isinstance(self.position, Relative):
            bias = self.lent[0] if self.lent else self.position.bias
            assert isinstance(bias, Biases)
            q = q + bias.u
            if self.position.s is not None and (segments := ctx.share("segments", lambda: None)) is not None:
                mine = segments.to(q.dtype)[:, None, None].expand(-1, q.shape[1], 1)
                q, k = torch.cat((q, mine), -1), torch.cat((k, torch.zeros_like(k[..., :1])), -1)
            y = ctx.attend(self.layer, q, k, v, self.look, self.position.term(bias), self.sinks)
            return self.o(y.flatten(1))
        if isinstance(self.position, Disentangled):
            term = self.position.term(self.lent[0](), self.q, self.k, self.look.scale)
            q, k = torch.cat((q, k), -1), torch.cat((k, torch.zeros_like(k)), -1)  # the term wants to see keys
            return self.o(ctx.attend(self.layer, q, k, v, self.look, term, self.sinks).flatten(1))
        position = self.lent[0] if self.lent else self.position
        y = ctx.attend(self.layer, q, k, v, self.look, position, self.sinks)
        return self.o(y.flatten(1))

    def project(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, rotated: x (T, D) -> (T, H, K), (T, G, K), (T, G, K)."""
        s = self.spec
        q, k, v = self.q(x), self.k(x), self.v(x)
        if s.clip is not None:
            q, k, v = (t.clamp(-s.clip, s.clip) for t in (q, k, v))
        norm = s.qk_norm
        if norm and norm.over == "width":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.unflatten(-1, (-1, self.width)) for t in (q, k, v))
        if norm and norm.over != "width" and not norm.after_rope:
            q, k = self.q_norm(q), self.k_norm(k)
        if isinstance(s.position, spec.Rope):
            q, k = self.turn(q, k, s.position, ctx)
        if norm and norm.over != "width" and norm.after_rope:
            q, k = self.q_norm(q), self.k_norm(k)
        if s.temper:
            steps = torch.floor((ctx.pos + 1) / s.temper.floor)
            q = q * (torch.log1p(steps) * s.temper.scale + 1)[:, None, None].to(q.dtype)
        return q, k, v

    def turn(self, q: Tensor, k: Tensor, rope: spec.Rope, ctx: Context) -> tuple[Tensor, Tensor]:
        key = ("rope", rope, self.width, q.dtype)
        cos, sin = ctx.share(key, lambda: rope_table(rope, self.width, self.context, ctx.pos, ctx.cu, q.dtype))
        return rotate(q, cos, sin, rope.interleaved), rotate(k, cos, sin, rope.interleaved)


class Latent(nn.Module):
    """Keys and values of all heads from one vector of `kv_rank` per token (DeepSeek-V2, §2.1)."""

    def __init__(self, s: spec.Latent, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec, self.layer, self.context = s, layer, model.context
        D, H = model.dim, s.heads
        width = s.nope + s.rope
        if s.q_rank:
            self.q_a = nn.Linear(D, s.q_rank, bias=s.bias)
            self.q_norm = Norm(spec.RMSNorm(), s.q_rank)
            self.q_b = nn.Linear(s.q_rank, H * width, bias=False)
        else:
            self.q = nn.Linear(D, H * width, bias=False)
        self.kv_a = nn.Linear(D, s.kv_rank + s.rope, bias=s.bias)
        self.kv_norm = Norm(spec.RMSNorm(), s.kv_rank)
        self.kv_b = nn.Linear(s.kv_rank, H * (s.nope + s.value), bias=False)
        self.o = nn.Linear(H * s.value, D, bias=s.bias)
        scale = width**-0.5
        yarn = s.position.scaling
        if isinstance(yarn, spec.Yarn) and yarn.mscale_all:  # V3 squares it into the scores
            scale *= mscale(yarn.factor, yarn.mscale_all) ** 2
        self.look = Look(scale=scale)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Mix over time: x (T, D) -> (T, D)."""
        s, rope = self.spec, self.spec.position
        q = self.q_b(self.q_norm(self.q_a(x))) if s.q_rank else self.q(x)
        q_nope, q_rope = q.unflatten(-1, (s.heads, -1)).split([s.nope, s.rope], -1)
        latent, k_rope = self.kv_a(x).split([s.kv_rank, s.rope], -1)
        k_nope, v = self.kv_b(self.kv_norm(latent)).unflatten(-1, (s.heads, -1)).split([s.nope, s.value], -1)
        key = ("rope", rope, s.rope, q.dtype)
        cos, sin = ctx.share(key, lambda: rope_table(rope, s.rope, self.context, ctx.pos, ctx.cu, q.dtype))
        q_rope = rotate(q_rope, cos, sin, rope.interleaved)
        k_rope = rotate(k_rope[:, None], cos, sin, rope.interleaved).expand(-1, s.heads, -1)
        q, k = torch.cat((q_nope, q_rope), -1), torch.cat((k_nope, k_rope), -1)
        return self.o(ctx.attend(self.layer, q, k, v, self.look, None, None).flatten(1))


def look(s: spec.Attention, scale: float) -> Look:
    """Translate the spec's reach into what a context needs."""
    window = s.reach.size if isinstance(s.reach, spec.Window) else None
    chunk = s.reach.size if isinstance(s.reach, spec.Chunk) else None
    stride = s.reach.stride if isinstance(s.reach, Strided) else None
    fixed = (s.reach.block, s.reach.summary) if isinstance(s.reach, Fixed) else None
    near = s.reach.size if isinstance(s.reach, Local) else None
    return Look(scale, s.causal, window, chunk, s.softcap, stride, fixed, near)


def _norm_shape(norm: spec.QKNorm, heads: int, width: int) -> tuple[int, ...]:
    return {"head": (width,), "heads": (heads, width), "width": (heads * width,)}[norm.over]
