"""How a model knows order: rotary tables with their scalings, ALiBi slopes, sinusoids, relative terms."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from terakoya.model import spec

Single = Callable[[Tensor, Tensor, Tensor], Tensor]
"""single(head, q_pos, k_pos) -> what is added to one score: a bias as kernels ask for it that ask score by score."""


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn channel pairs of the first R channels: x (T, H, K), cos and sin (T, 1, R / 2) -> (T, H, K)."""
    half = cos.shape[-1]
    turn, rest = x[..., : 2 * half], x[..., 2 * half :]
    if interleaved:
        a, b = turn[..., 0::2], turn[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    else:
        a, b = turn[..., :half], turn[..., half:]
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned


def rope_table(
    s: spec.Rope, width: int, context: int, pos: Tensor, cu: list[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return cos and sin, (T, 1, R / 2) each, for positions `pos` (T,) of sequences `cu` and heads of `width` K."""
    if isinstance(s.scaling, spec.Dynamic | spec.LongRope) and len(cu) > 2:  # each sequence by its own length
        parts = [rope_table(s, width, context, pos[a:b], [0, b - a], dtype) for a, b in pairwise(cu)]
        return torch.cat([cos for cos, _ in parts]), torch.cat([sin for _, sin in parts])
    dim = int(s.fraction * width + 1e-6) // 2 * 2
    longest = int(pos.max()) + 1 if isinstance(s.scaling, spec.Dynamic | spec.LongRope) and len(pos) else 0
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    asked = (s, dim, context, longest)
    freqs, gain = _frequencies_at(*asked, pos.device) if pos.is_cuda else frequencies(*asked)
    angle = pos[:, None, None].to(wide) * freqs.to(pos.device, wide)
    sin = -angle.sin() if s.reverse else angle.sin()
    return (angle.cos() * gain).to(dtype), (sin * gain).to(dtype)


@cache
def _frequencies_at(s: spec.Rope, dim: int, context: int, longest: int, device: torch.device) -> tuple[Tensor, float]:
    """Return `frequencies` on a GPU, where a step that is being recorded cannot carry them."""
    freqs, gain = frequencies(s, dim, context, longest)
    return freqs.to(device), gain


@cache
def frequencies(s: spec.Rope, dim: int, context: int, longest: int = 0) -> tuple[Tensor, float]:
    """Return the R / 2 angles per position (radians) and the factor on cos and sin, after the scaling."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    freqs = 1.0 / s.theta**exponents
    match s.scaling:
        case None:
            return freqs, 1.0
        case spec.Linear(factor):
            return freqs / factor, 1.0
        case spec.Dynamic(factor, length):
            trained = length or context
            if longest > trained:
                stretched = s.theta * (factor * longest / trained - (factor - 1)) ** (dim / (dim - 2))
                freqs = 1.0 / stretched**exponents
            return freqs, 1.0
        case spec.Llama3() as c:
            return _llama3(freqs, c), 1.0
        case spec.Yarn() as c:
            return _yarn(freqs, c, s.theta, dim, context)
        case spec.LongRope() as c:
            factor = c.factor or context / c.trained
            gain = c.attention or (math.sqrt(1 + math.log(factor) / math.log(c.trained)) if factor > 1 else 1.0)
            chosen = c.long if longest > c.trained else c.short
            return freqs / torch.tensor(chosen, dtype=torch.float32), gain


def _llama3(freqs: Tensor, c: spec.Llama3) -> Tensor:
    wave = 2 * math.pi / freqs
    smooth = ((c.trained / wave - c.low) / (c.high - c.low)).clamp(0, 1)
    return (1 - smooth) * freqs / c.factor + smooth * freqs


def _yarn(freqs: Tensor, c: spec.Yarn, theta: float, dim: int, context: int) -> tuple[Tensor, float]:
    trained = c.trained or context

    def channel(turns: float) -> float:  # the channel that makes `turns` turns within the trained length
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(c.beta_fast), channel(c.beta_slow)
    if c.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low or 0.001)).clamp(0, 1)
    return freqs / c.factor * ramp + freqs * (1 - ramp), yarn_gain(c)


def yarn_gain(c: spec.Yarn) -> float:
    """Return YaRN's multiplier of cos and sin."""
    if c.attention is not None:
        return c.attention
    if c.mscale and c.mscale_all:
        return mscale(c.factor, c.mscale) / mscale(c.factor, c.mscale_all)
    return mscale(c.factor)


def mscale(factor: float, m: float = 1.0) -> float:
    """Return YaRN's 0.1 m ln(factor) + 1 (Peng 2023, eq. 22)."""
    return 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0


def alibi_slopes(heads: int) -> list[float]:
    """Return one slope per head: 2^(-8 i / n), and odd ones of the doubled list where n is no power of two."""
    n = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (i + 1) / n) for i in range(n)]
    return slopes + [2.0 ** (-8 * (2 * i + 1) / (2 * n)) for i in range(heads - n)]


class Alibi(nn.Module):
    """Score term -slope * distance."""

    def __init__(self, s: spec.Alibi, heads: int, scale: float) -> None:
        super().__init__()
        self.spec, self.scale, self.slopes = s, scale if s.before_scale else 1.0, tuple(alibi_slopes(heads))

    def forward(self, q: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """Return the term: q (B, T, H, K), q_pos (T,), k_pos (S,) -> (H, T, S)."""
        slopes = torch.tensor(self.slopes, device=q.device, dtype=q.dtype)[:, None, None]
        if self.spec.rounded:  # by key position: the difference to the distance is the same for a whole row
            return (slopes.bfloat16() * k_pos.bfloat16()[None, None, :]).to(q.dtype) * self.scale
        return -slopes * (q_pos[:, None] - k_pos[None, :]) * self.scale

    def single(self, like: Tensor) -> Single:
        """Return the term as a function of one score, in numbers `like` these."""
        slopes, scale = _slopes_at(self.slopes, like.device, like.dtype), self.scale
        if self.spec.rounded:
            return lambda head, q_pos, k_pos: (slopes[head].bfloat16() * k_pos.bfloat16()).to(slopes.dtype) * scale
        return lambda head, q_pos, k_pos: -slopes[head] * (q_pos - k_pos) * scale


@cache
def _slopes_at(slopes: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(slopes, device=device, dtype=dtype)


class Buckets(nn.Module):
    """Score term table[bucket(distance)]: near distances one bucket each, far ones by logarithm (Raffel 2019)."""

    def __init__(self, s: spec.Buckets, heads: int, causal: bool = True) -> None:
        super().__init__()
        self.spec, self.causal = s, causal
        self.weight = nn.Parameter(torch.empty(s.count, heads))

    def forward(self, q: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """Return the term: q (B, T, H, K), q_pos (T,), k_pos (S,) -> (H, T, S)."""
        return self.weight[self.bucket(q_pos[:, None] - k_pos[None, :])].permute(2, 0, 1)

    def single(self, like: Tensor) -> Single:
        """Return the term as a function of one score, in numbers `like` these."""
        weight = self.weight.to(like.dtype)
        return lambda head, q_pos, k_pos: weight[self.bucket(q_pos - k_pos), head]

    def bucket(self, gap: Tensor) -> Tensor:
        """Return the bucket of each distance."""
        count = self.spec.count if self.causal else self.spec.count // 2  # the other half: what follows
        after = torch.zeros_like(gap) if self.causal else (gap < 0) * count
        gap = gap.clamp(min=0) if self.causal else gap.abs()
        near = count // 2
        steps = torch.log(gap.clamp(min=1).float() / near) / math.log(self.spec.furthest / near)
        far = near + (steps * (count - near)).long()
        return after + torch.where(gap < near, gap, far.clamp(max=count - 1))


class Biases(nn.Module):
    """Transformer-XL's u and w: what every query asks of content, and of distance."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.u, self.w = (nn.Parameter(torch.empty(heads, width)) for _ in range(2))


class Relative(nn.Module):
    """Transformer-XL's score term: (q + w) · W_r sinusoid(distance), and u · k by way of q + u (Dai 2019)."""

    def __init__(self, s: spec.Relative, dim: int, heads: int, width: int, scale: float, causal: bool = True) -> None:
        super().__init__()
        self.dim, self.shape, self.scale, self.causal = dim, (heads, width), scale, causal
        self.r = nn.Linear(dim, heads * width, bias=False)
        self.bias = None if s.shared else Biases(heads, width)
        self.s = nn.Parameter(torch.empty(heads, width)) if s.segments else None
        self.same = nn.Parameter(torch.empty(2, heads, width)) if s.segments else None  # same segment, another

    def term(self, bias: Biases) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Return the term: q + u (B, T, H, K), q_pos (T,), k_pos (S,) -> (B, H, T, S)."""

        def distance(q: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
            q, more = q[..., : self.shape[1]], q[..., self.shape[1] :]  # what follows a query: its segment
            gap = q_pos[:, None] - k_pos[None, :]
            gap = gap.clamp(min=0) if self.causal else gap
            least = int(gap.min())
            steps = torch.arange(least, int(gap.max()) + 1, device=q.device)
            table = self.r(sinusoid(steps, self.dim, q.dtype)).unflatten(-1, self.shape)
            terms = torch.einsum("bthk,dhk->bhtd", q - bias.u + bias.w, table) * self.scale
            terms = terms.gather(-1, (gap - least).expand(*terms.shape[:3], -1))
            return terms + self.segment(q - bias.u, more[:, :, 0, 0]) if more.shape[-1] else terms

        return distance

    def segment(self, q: Tensor, segments: Tensor) -> Tensor:
        """Return the term of segments: q (B, T, H, K), ids (B, T) -> (B, H, T, T)."""
        assert self.s is not None
        assert self.same is not None
        terms = torch.einsum("bthk,xhk->bhtx", q + self.s, self.same) * self.scale
        other = (segments[:, :, None] != segments[:, None, :]).long()[:, None]
        return terms.gather(-1, other.expand(-1, terms.shape[1], -1, -1))


class Axial(nn.Module):
    """Positions as rows and columns, a table for each, side by side (Kitaev 2020, trax; Ho 2019)."""

    def __init__(self, s: spec.Axial, dim: int) -> None:
        super().__init__()
        self.width = s.columns
        self.rows = nn.Parameter(torch.empty(s.rows, 1, s.dim))
        self.columns = nn.Parameter(torch.empty(1, s.columns, dim - s.dim))

    def forward(self, pos: Tensor) -> Tensor:
        """Look up: pos (T,) -> (T, D)."""
        return torch.cat([self.rows[pos // self.width, 0], self.columns[0, pos % self.width]], -1)


def sinusoid(pos: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Return sines, then cosines, of pos / 10000^(2i / D): pos (T,) -> (T, D) (Vaswani 2017, in CTRL's layout)."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    freqs = 10_000.0 ** -(torch.arange(0, dim, 2, device=pos.device, dtype=wide) / dim)
    angle = pos[:, None].to(wide) * freqs
    return torch.cat((angle.sin(), angle.cos()), -1).to(dtype)
