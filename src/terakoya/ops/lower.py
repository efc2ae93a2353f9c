"""From a spec and its parameters to the flat program of one decoder step.

What a program cannot say is refused by name (`NotLowered`); the caller runs the model in PyTorch instead.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.ops import native
from terakoya.ops.native import ACTS, ADD, BY_TOKEN, HIDDEN, LOGITS, WEIGHED, Code, Format, Op, Rows

Weights = Literal["fp32", "int8", "int4"]
GGUF_KINDS = {  # block types whose blocks are kept as they are
    2: Format.S4, 3: Format.Q4, 6: Format.S5, 7: Format.Q5, 8: Format.Q8, 12: Format.K4, 13: Format.K5, 14: Format.K6,
}  # fmt: skip


class NotLowered(TerakoyaError):
    """A part of the model that the native program has no instruction for."""


@dataclass(frozen=True)
class Blocks:
    """A weight as a GGUF file holds it: rows (N, bytes) uint8 of blocks of `kind`, K columns."""

    rows: Tensor
    kind: int
    columns: int


class Positions(Protocol):
    """The functions of `model.position` that a program is made with; `ops` may not import them."""

    def alibi_slopes(self, heads: int, /) -> list[float]: ...
    def mscale(self, factor: float, m: float = 1.0, /) -> float: ...
    def sinusoid(self, pos: Tensor, dim: int, dtype: torch.dtype, /) -> Tensor: ...


@dataclass(frozen=True)
class Kept:
    """What one layer with attention remembers of a position; `value` is a multiple of 16."""

    layer: int
    heads: int
    key: int
    value: int
    reach: spec.Reach | None


@dataclass
class Lowered:
    """A program as data. Instructions before `head` make hidden vectors, those from it on make logits."""

    code: Code
    head: int = 0
    rotary: list[tuple[spec.Rope, int]] = field(default_factory=list)  # tables to pass: (rope, width of a head)
    memory: list[Kept] = field(default_factory=list)  # in the order of the instructions' `memory_at`
    half: bool = False  # memory of half-precision numbers
    forms: Counter[Format] = field(default_factory=Counter)  # how many weights, not counting blocks of files, are in


def lower(
    s: spec.Model,
    parameters: Mapping[str, Tensor | Blocks],
    weights: Weights,
    positions: Positions,
    half: bool = False,
) -> Lowered:
    """Lower a model: parameters by the names of `model.named_parameters`; raises NotLowered.

    fp32: as they are, in sixteen bits where that loses nothing. int8: groups of 32 columns. int4: so too, with the
    head (and a tied token table) in int8.
    Blocks of a GGUF file are taken without loss whatever `weights` says. `half`: remember keys and values in fp16.
    """
    lowering = _Lowering(s, parameters, weights, positions)
    lowering.out.half = half
    return lowering.model()


class _Lowering:
    def __init__(
        self, s: spec.Model, parameters: Mapping[str, Tensor | Blocks], weights: Weights, positions: Positions
    ) -> None:
        self.spec, self.parameters, self.weights, self.positions = s, parameters, weights, positions
        self.code = Code()
        self.out = Lowered(self.code)
        self.buffers: dict[str, int] = {}
        self.layer = 0
        self.blocks = {"fp32": Format.F32, "int8": Format.Q8, "int4": Format.Q4}[weights]
        self.table = {"fp32": Format.F32, "int8": Format.Q8, "int4": Format.Q8}[weights]

    # Buffers and weights

    def buffer(self, name: str, width: int) -> int:
        if name not in self.buffers:
            self.buffers[name] = self.code.buffer(width)
        number = self.buffers[name]
        self.code.widths[number] = max(width, self.code.widths[number])
        return number

    def tensor(self, name: str) -> np.ndarray:
        found = self.parameters[name]
        assert not isinstance(found, Blocks), f"{name} is wanted as numbers"
        return found.detach().to("cpu", torch.float32).numpy()

    def floats(self, values: np.ndarray) -> int:
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        return self.code.arena.reserve(flat.nbytes, lambda out: np.copyto(out, flat.view(np.uint8)))

    def optional(self, name: str) -> int | None:
        return self.floats(self.tensor(name)) if name in self.parameters else None

    def packed(self, parts: Sequence[str], form: Format) -> tuple[int, Format, int, int]:
        """Reserve rows of several weights one after the other -> (place, format, N, K)."""
        found = [self.parameters[name] for name in parts]
        first = found[0]
        if isinstance(first, Blocks):
            kind, k = first.kind, first.columns
            n = sum(len(f.rows) for f in found if isinstance(f, Blocks))
            form = GGUF_KINDS[kind]

            def fill(out: np.ndarray) -> None:
                rows = torch.cat([f.rows for f in found if isinstance(f, Blocks)]) if len(found) > 1 else first.rows
                native.pack_blocks(rows.numpy(), kind, k, out)

        else:
            n, k = sum(len(self.tensor(name)) for name in parts), self.tensor(parts[0]).shape[1]
            form = self.smallest(form, [self.tensor(name) for name in parts])

            def fill(out: np.ndarray) -> None:
                native.pack(np.concatenate([self.tensor(name) for name in parts]), form, out)

        return self.code.arena.reserve(native.packed_bytes(form, n, k), fill), form, n, k

    def smallest(self, form: Format, weights: Sequence[np.ndarray]) -> Format:
        """Return the format for weights: numbers that are sixteen bits wide anyway stay so."""
        if form == Format.F32:
            form = native.exact(*(np.ascontiguousarray(w) for w in weights))
        self.out.forms[form] += sum(w.size for w in weights)
        return form

    def linear(
        self, owners: Sequence[str], src: int, dst: int, *, form: Format | None = None, at: int = 0, src_at: int = 0,
        flags: int = 0, act: int = 0, scale: float = 1.0, rows: Rows = Rows.TOKENS,
    ) -> None:  # fmt: skip
        """Emit layers that read the same input, side by side in dst; those stored alike become one."""
        form = self.blocks if form is None else form
        kind = [p.kind if isinstance(p := self.parameters[f"{o}.weight"], Blocks) else -1 for o in owners]
        begin = 0
        for end in range(1, len(owners) + 1):
            if end < len(owners) and kind[end] == kind[begin]:
                continue
            part = owners[begin:end]
            weight, stored, n, k = self.packed([f"{o}.weight" for o in part], form)
            self.code.add(
                Op.LINEAR, rows=rows, dst=dst, dst_at=at, src=src, src_at=src_at, n=n, k=k, format=stored,
                flags=flags, act=act, scale=scale, places={"weight": weight, "bias": self.biases(part)},
            )  # fmt: skip
            at, begin = at + n, end

    def biases(self, owners: Sequence[str]) -> int | None:
        names = [f"{o}.bias" for o in owners]
        if not any(n in self.parameters for n in names):
            return None
        return self.floats(np.concatenate([self.tensor(n) for n in names]))

    def norm(
        self, s: spec.Norm, owner: str, src: int, dst: int, width: int, *, heads: int = 1, own: bool = False,
        at: int = 0, src_at: int = 0, rows: Rows = Rows.TOKENS,
    ) -> None:  # fmt: skip
        weight = self.tensor(f"{owner}.weight") + s.offset if s.affine else None
        self.code.add(
            Op.NORM, rows=rows, dst=dst, dst_at=at, src=src, src_at=src_at, k=width, heads=heads,
            stride=width if own else 0, kind=0 if isinstance(s, spec.LayerNorm) else 1, eps=s.eps,
            places={
                "weight": None if weight is None else self.floats(weight),
                "bias": self.optional(f"{owner}.bias"),
            },
        )  # fmt: skip

    def rotate(self, rope: spec.Rope, width: int, dst: int, at: int, heads: int, stride: int) -> None:
        key = (rope, width)
        if key not in self.out.rotary:
            self.out.rotary.append(key)
        self.code.add(
            Op.ROTARY, dst=dst, dst_at=at, heads=heads, stride=stride, n=int(rope.fraction * width + 1e-6) // 2 * 2,
            kind=int(rope.interleaved), table=self.out.rotary.index(key),
        )  # fmt: skip

    # The whole

    def model(self) -> Lowered:
        s = self.spec
        x = self.buffer("stream", s.dim)
        self.embed(x)
        for self.layer, block in enumerate(s.layers()):
            for branch in block.branches:
                self.branch(branch, x)
        self.code.widths[HIDDEN] = s.dim
        self.code.add(Op.TAKE, rows=Rows.OUTPUTS, dst=HIDDEN, src=x, k=s.dim)
        if s.norm:
            self.norm(s.norm, "norm", HIDDEN, HIDDEN, s.dim, rows=Rows.OUTPUTS)
        self.head()
        return self.out

    def embed(self, x: int) -> None:
        e, s = self.spec.embed, self.spec
        width = e.factor or s.dim
        to = self.buffer("token", width) if e.factor else x
        tied = isinstance(self.parameters["embed.token.weight"], Blocks) or s.head.tied
        weight, form, _, k = self.packed(["embed.token.weight"], self.table if tied else Format.F32)
        self.tied = (weight, form)
        if e.scale == "sqrt_dim_bf16":
            raise NotLowered("embed", "a rounded scale has no native instruction")
        scale = math.sqrt(s.dim) if e.scale == "sqrt_dim" else float(e.scale)
        self.code.add(Op.EMBED, dst=to, k=k, format=form, scale=scale, places={"weight": weight})
        if e.factor:
            self.linear(["embed.project"], to, x)
        match e.position:
            case spec.Learned(offset):
                place = self.floats(self.tensor("embed.position.weight"))
                self.code.add(Op.PLACE, dst=x, k=s.dim, kind=offset, places={"weight": place})
            case spec.Sinusoid():
                table = self.positions.sinusoid(torch.arange(s.context), s.dim, torch.float32)
                self.code.add(Op.PLACE, dst=x, k=s.dim, places={"weight": self.floats(table.numpy())})
        if e.norm:
            self.norm(e.norm, "embed.norm", x, x, s.dim)

    def head(self) -> None:
        s, h = self.spec, self.spec.head
        self.out.head, self.code.widths[LOGITS] = len(self.code.instructions), s.vocab
        src = HIDDEN
        if s.embed.factor:
            src = self.buffer("factor", s.embed.factor)
            self.linear(["head.project"], HIDDEN, src, rows=Rows.OUTPUTS)
        if h.tied:
            weight, form = self.tied
            self.code.add(
                Op.LINEAR, rows=Rows.OUTPUTS, dst=LOGITS, src=src, n=s.vocab, k=s.embed.factor or s.dim, format=form,
                scale=h.scale, places={"weight": weight, "bias": self.optional("head.bias")},
            )  # fmt: skip
        else:
            self.linear(["head"], src, LOGITS, form=self.table, rows=Rows.OUTPUTS, scale=h.scale)
        if h.softcap is not None:
            self.code.add(Op.LOGITS, rows=Rows.OUTPUTS, dst=LOGITS, src=LOGITS, k=s.vocab, limit=h.softcap)

    def branch(self, b: spec.Branch, x: int) -> None:
        """x <- out(skip + scale * sum of post(mixer(pre(x)))): inputs first, for the sums go straight into x."""
        dim, layer = self.spec.dim, f"layers.{self.layer}"
        names = ["mlp" if isinstance(m, spec.MLP | spec.MoE) else "attn" for m in b.mix]
        sources = []
        for m in b.mix:
            if not isinstance(m, spec.Attention | spec.Latent | spec.MLP | spec.MoE):
                raise NotLowered(layer, f"{type(m).__name__} has no native instruction")
            if isinstance(m, spec.Attention) and not isinstance(m.reach, spec.Full | spec.Window | spec.Chunk):
                raise NotLowered(layer, f"{type(m.reach).__name__} has no native instruction")
        if b.skip != 1.0:
            raise NotLowered(f"{layer}.{names[0]}", "a scaled skip has no native instruction")
        if b.gate:
            raise NotLowered(f"{layer}.{names[0]}", "a gate has no native instruction")
        for i, name in enumerate(names):
            if b.pre and (b.each or i == 0):
                sources.append(self.buffer(f"normed {i}", dim))
                self.norm(b.pre, f"{layer}.{name}_pre", x, sources[-1], dim)
            elif i == 0 and len(names) > 1:
                sources.append(self.buffer("normed 0", dim))
                self.copy(x, sources[-1], dim)
            else:
                sources.append(sources[-1] if sources else x)
        if b.normed_skip and sources[-1] != x:
            self.copy(sources[-1], x, dim)
        for mixer, name, src in zip(b.mix, names, sources, strict=True):
            owner = f"{layer}.{name}"
            if b.post is None:
                self.mixer(mixer, owner, src, x, b.scale, ADD)
                continue
            z = self.buffer("mixed", dim)
            self.mixer(mixer, owner, src, z, 1.0, 0)
            self.norm(b.post, f"{layer}.{name}_post", z, z, dim)
            self.code.add(Op.ADD, dst=x, src=z, k=dim, scale=b.scale)
        if b.out:
            self.norm(b.out, f"{layer}.{names[0]}_out", x, x, dim)

    def copy(self, src: int, dst: int, width: int) -> None:
        self.code.add(Op.COPY, dst=dst, src=src, heads=1, k=width)

    def mixer(self, m: spec.Mixer, owner: str, src: int, dst: int, scale: float, flags: int) -> None:
        match m:
            case spec.Attention():
                self.attention(m, owner, src, dst, scale, flags)
            case spec.Latent():
                self.latent(m, owner, src, dst, scale, flags)
            case spec.MLP():
                self.mlp(m, owner, src, dst, scale, flags)
            case spec.MoE():
                self.experts(m, owner, src, dst, scale, flags)
            case _:
                raise NotLowered(owner, f"{type(m).__name__} has no native instruction")

    # Attention

    def attention(self, a: spec.Attention, owner: str, src: int, dst: int, scale: float, flags: int) -> None:
        K, H = spec.head_dim(self.spec, a), a.heads
        G = a.kv_heads or H
        qkv, q, k = self.buffer("qkv", (H + 2 * G) * K), H * K, G * K
        self.linear([f"{owner}.q", f"{owner}.k", f"{owner}.v"], src, qkv)
        if a.clip is not None:
            self.code.add(Op.CLIP, dst=qkv, k=q + 2 * k, limit=a.clip)
        if a.qk_norm and not (a.qk_norm.after_rope and a.qk_norm.over != "width"):
            self.qk_norm(a.qk_norm, owner, qkv, H, G, K)
        if isinstance(a.position, spec.Rope):
            self.rotate(a.position, K, qkv, 0, H + G, K)
        if a.qk_norm and a.qk_norm.after_rope and a.qk_norm.over != "width":
            self.qk_norm(a.qk_norm, owner, qkv, H, G, K)
        if a.temper:
            self.code.add(Op.TEMPER, dst=qkv, k=q, limit=float(a.temper.floor), scale=a.temper.scale)
        scores = K**-0.5 if a.scale is None else a.scale
        scores = scores / (self.layer + 1) if a.scale_by_layer else scores
        y = self.buffer("attended", q)
        fields, bias = self.bias(a, owner, scores)
        self.look(
            qkv, y, H, G, K, K, q, q + k, scores, bias, self.optional(f"{owner}.sinks"), causal=a.causal,
            reach=a.reach, limit=a.softcap or 0.0, **fields,
        )  # fmt: skip
        self.linear([f"{owner}.o"], y, dst, flags=flags, scale=scale)

    def qk_norm(self, s: spec.QKNorm, owner: str, qkv: int, H: int, G: int, K: int) -> None:
        at = 0
        for name, heads in (("q_norm", H), ("k_norm", G)):
            count, width = (1, heads * K) if s.over == "width" else (heads, K)
            self.norm(
                s.norm, f"{owner}.{name}", qkv, qkv, width, heads=count, own=s.over == "heads", at=at, src_at=at
            )  # fmt: skip
            at += heads * K

    def bias(self, a: spec.Attention, owner: str, scores: float) -> tuple[dict[str, Any], int | None]:
        match a.position:
            case spec.Alibi() as alibi:
                slopes = torch.tensor(self.positions.alibi_slopes(a.heads))
                by = scores if alibi.before_scale else 1.0
                if alibi.rounded:
                    return {"alibi": 2, "eps": by}, self.floats(slopes.bfloat16().float().numpy())
                return {"alibi": 1}, self.floats((slopes * by).numpy())
            case spec.Buckets() as buckets:
                table = self.tensor(f"{owner}.position.weight")[_bucket(buckets)]
                return {"distances": len(table)}, self.floats(table.T)
            case spec.Relative():
                raise NotLowered(owner, "has positions relative to content (Transformer-XL), which run in PyTorch only")
            case _:
                return {}, None

    def look(
        self, src: int, dst: int, H: int, G: int, key: int, value: int, key_at: int, value_at: int, scale: float,
        bias: int | None, sinks: int | None, *, causal: bool = True, reach: spec.Reach | None = None,
        **fields: int | float,
    ) -> None:  # fmt: skip
        if not causal:
            raise NotLowered(f"layers.{self.layer}", "looks ahead; the native program only decodes")
        self.code.add(
            Op.ATTEND, dst=dst, src=src, heads=H, groups=G, key_width=key, value_width=value, key_at=key_at,
            value_at=value_at, memory_at=len(self.out.memory), scale=scale,
            format=Format.F16 if self.out.half else Format.F32,
            window=reach.size if isinstance(reach, spec.Window) else 0,
            chunk=reach.size if isinstance(reach, spec.Chunk) else 0,
            places={"bias": bias, "extra": sinks}, **fields,
        )  # fmt: skip
        self.out.memory.append(Kept(self.layer, G, key, -(-value // 16) * 16, reach))

    def latent(self, a: spec.Latent, owner: str, src: int, dst: int, scale: float, flags: int) -> None:
        H, K, V, both = a.heads, a.nope + a.rope, a.value, a.nope + a.value
        qkv = self.buffer("qkv", H * (2 * K + V))
        kv, low = self.buffer("latent", a.kv_rank + a.rope), self.buffer("spread", H * both)
        if a.q_rank:
            q = self.buffer("low query", a.q_rank)
            self.linear([f"{owner}.q_a"], src, q)
            self.norm(spec.RMSNorm(), f"{owner}.q_norm", q, q, a.q_rank)
            self.linear([f"{owner}.q_b"], q, qkv)
        else:
            self.linear([f"{owner}.q"], src, qkv)
        self.linear([f"{owner}.kv_a"], src, kv)
        self.norm(spec.RMSNorm(), f"{owner}.kv_norm", kv, kv, a.kv_rank)
        self.linear([f"{owner}.kv_b"], kv, low)
        self.rotate(a.position, a.rope, qkv, a.nope, H, K)
        self.rotate(a.position, a.rope, kv, a.kv_rank, 1, a.rope)
        copy = self.code.add
        copy(Op.COPY, dst=qkv, dst_at=H * K, src=low, heads=H, k=a.nope, stride=both, kind=K)
        copy(Op.COPY, dst=qkv, dst_at=H * K + a.nope, src=kv, src_at=a.kv_rank, heads=H, k=a.rope, stride=0, kind=K)
        copy(Op.COPY, dst=qkv, dst_at=2 * H * K, src=low, src_at=a.nope, heads=H, k=V, stride=both, kind=V)
        scores = K**-0.5
        yarn = a.position.scaling
        if isinstance(yarn, spec.Yarn) and yarn.mscale_all:
            scores *= self.positions.mscale(yarn.factor, yarn.mscale_all) ** 2
        y = self.buffer("attended", H * V)
        self.look(qkv, y, H, H, K, V, H * K, 2 * H * K, scores, None, None)
        self.linear([f"{owner}.o"], y, dst, flags=flags, scale=scale)

    # Feed-forward

    def mlp(self, m: spec.MLP, owner: str, src: int, dst: int, scale: float, flags: int) -> None:
        if m.norm is not None:
            raise NotLowered(owner, "a norm between the layers of an MLP has no native instruction")
        inner = self.buffer("inner", m.hidden)
        act = ACTS.index(m.act)
        if m.gated:
            both = self.buffer("gate and up", 2 * m.hidden)
            self.linear([f"{owner}.gate", f"{owner}.up"], src, both)
            self.code.add(Op.GLU, dst=inner, src=both, k=m.hidden, act=act)
        else:
            self.linear([f"{owner}.up"], src, inner, flags=native.ACT, act=act)
        self.linear([f"{owner}.down"], inner, dst, flags=flags, scale=scale)

    def experts(self, m: spec.MoE, owner: str, src: int, dst: int, scale: float, flags: int) -> None:
        dim, code, F = self.spec.dim, self.code, m.expert.hidden
        if code.choices not in (1, m.top_k):
            raise NotLowered(owner, "chooses another number of experts than an earlier layer")
        code.choices = m.top_k
        scores = self.buffer("router", m.count)
        self.linear([f"{owner}.router"], src, scores, form=Format.F32)
        groups = m.groups
        code.add(
            Op.ROUTE, src=scores, n=m.count, top=m.top_k, score=("softmax", "sigmoid", "softmax_topk").index(m.score),
            normalise=int(m.normalize), scale=m.scale, kind=groups.count if groups else 0,
            group_keep=groups.keep if groups else 0, act=int(groups is not None and groups.by == "top2"),
            places={"extra": self.optional(f"{owner}.choice_bias")},
        )  # fmt: skip
        inner, each = self.buffer("expert inner", F), self.buffer("expert out", dim)
        by_token = BY_TOKEN
        if m.scale_input:
            weighed = self.buffer("expert in", dim)
            code.add(Op.SPREAD, rows=Rows.CHOICES, dst=weighed, src=src, k=dim, flags=WEIGHED)
            src_of_experts, by_token = weighed, 0
        else:
            src_of_experts = src
        act = ACTS.index(m.expert.act)
        if m.expert.gated:
            both = self.buffer("expert gate and up", 2 * F)
            self.stack([f"{owner}.experts.gate", f"{owner}.experts.up"], src_of_experts, both, by_token)
            code.add(Op.GLU, rows=Rows.CHOICES, dst=inner, src=both, k=F, act=act)
        else:
            self.stack([f"{owner}.experts.up"], src_of_experts, inner, by_token | native.ACT, act)
        self.stack([f"{owner}.experts.down"], inner, each, 0)
        y = self.buffer("experts", dim)
        code.add(Op.GATHER, dst=y, src=each, k=dim, flags=0 if m.scale_input else WEIGHED)
        if m.shared:
            z = self.buffer("shared", dim)
            self.mlp(m.shared, f"{owner}.shared", src, z, 1.0, 0)
            if m.shared_gate:
                gate = self.buffer("shared gate", 1)
                self.linear([f"{owner}.shared_gate"], src, gate, form=Format.F32)
                code.add(Op.GATE, dst=z, src=gate, k=dim)
            code.add(Op.ADD, dst=y, src=z, k=dim)
        if flags & ADD:
            code.add(Op.ADD, dst=dst, src=y, k=dim, scale=scale)
        else:
            self.copy(y, dst, dim)

    def stack(self, owners: Sequence[str], src: int, dst: int, flags: int, act: int = 0) -> None:
        """Emit E layers of one shape, gate above up in each."""
        parts = [self.tensor(f"{o}.weight") for o in owners]
        count, n, k = len(parts[0]), sum(p.shape[1] for p in parts), parts[0].shape[2]
        form = self.smallest(self.blocks, parts)
        size = native.packed_bytes(form, n, k)

        def fill(out: np.ndarray) -> None:
            for e in range(count):
                native.pack(np.concatenate([p[e] for p in parts]), form, out[e * size : (e + 1) * size])

        names = [f"{o}.bias" for o in owners]
        bias = None
        if names[0] in self.parameters:
            bias = self.floats(np.concatenate([self.tensor(b) for b in names], 1))
        self.code.add(
            Op.EXPERTS, rows=Rows.CHOICES, dst=dst, src=src, n=n, k=k, format=form, flags=flags, act=act,
            places={"weight": self.code.arena.reserve(count * size, fill), "bias": bias},
        )  # fmt: skip


def _bucket(s: spec.Buckets) -> np.ndarray:
    """Return the bucket of every distance up to where the last one begins (Raffel 2019)."""
    gap = torch.arange(s.furthest + 1)
    near, last = s.count // 2, s.count - 1
    steps = torch.log(gap.clamp(min=1).float() / near) / math.log(s.furthest / near)
    far = near + (steps * (s.count - near)).long()
    return torch.where(gap < near, gap, far.clamp(max=last)).numpy()
