"""Pictures beside the text: a resampler, and gated cross-attention to the picture shown last (Alayrac 2022)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.context import Context
from terakoya.model.ffn import MLP
from terakoya.model.norm import Norm


@dataclass(frozen=True)
class Shown:
    """The pictures of a step: vectors (N, L, E), and which of them each token looks at, owner (T,), -1: none."""

    vectors: Tensor
    owner: Tensor


def show(ctx: Context, vectors: Tensor, owner: Tensor) -> None:
    """Put pictures before the tokens of a step that is about to be read: vectors (N, L, E), owner (T,) int64."""
    ctx.share("shown", lambda: Shown(vectors, owner))


def last_shown(tokens: Tensor, mark: int, before: int = 0) -> Tensor:
    """Return the last picture shown at or before each token (the paper's φ, from 0; -1: none): tokens (T,) -> (T,).

    A picture is shown where `mark` stands; `before` were shown earlier, in steps that are over.
    """
    return (tokens == mark).long().cumsum(0) - 1 + before


class Perceiver(nn.Module):
    """One layer of the resampler: the latents ask the picture and themselves, x + ff(x) after (figure 5)."""

    def __init__(self, r: spec.Resampler, width: int) -> None:
        super().__init__()
        self.heads, inner = r.heads, r.heads * r.head_dim
        norm = spec.LayerNorm()
        self.norm_seen, self.norm_latents, self.norm_ff = (Norm(norm, width) for _ in range(3))
        self.q = nn.Linear(width, inner, bias=False)
        self.k = nn.Linear(width, inner, bias=False)
        self.v = nn.Linear(width, inner, bias=False)
        self.o = nn.Linear(inner, width, bias=False)
        self.mlp = MLP(spec.MLP(4 * width, r.act), width)

    def forward(self, seen: Tensor, latents: Tensor) -> Tensor:
        """Take from what was seen: seen (N, P, E), latents (N, L, E) -> (N, L, E)."""
        x = self.norm_latents(latents)
        both = torch.cat([self.norm_seen(seen), x], 1)
        q, k, v = (
            w(t).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for w, t in ((self.q, x), (self.k, both), (self.v, both))
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        latents = latents + self.o(y)
        return latents + self.mlp(self.norm_ff(latents))


class Resampler(nn.Module):
    """However many vectors a picture has, `latents` of them: learned queries through Perceiver layers (§3.1.1)."""

    def __init__(self, r: spec.Resampler, width: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(r.latents, width))
        self.layers = nn.ModuleList(Perceiver(r, width) for _ in range(r.depth))
        self.norm = Norm(spec.LayerNorm(), width)

    def forward(self, seen: Tensor) -> Tensor:
        """Resample: seen (N, P, E) -> (N, L, E)."""
        x = self.latents.expand(len(seen), -1, -1)
        for layer in self.layers:
            x = layer(seen, x)
        return self.norm(x)


class Glance(nn.Module):
    """Cross-attention to the picture shown last (§3.1.2 and 3.1.3); where none was shown, nothing is added."""

    def __init__(self, s: spec.Glance, model: spec.Model) -> None:
        super().__init__()
        if model.sight is None:
            raise TerakoyaError("model.sight", "is missing: the blocks look at pictures")
        self.width = s.head_dim or model.dim // s.heads
        inner, seen = s.heads * self.width, model.sight.dim
        self.q = nn.Linear(model.dim, inner, bias=False)
        self.k = nn.Linear(seen, inner, bias=False)
        self.v = nn.Linear(seen, inner, bias=False)
        self.o = nn.Linear(inner, model.dim, bias=False)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Look: x (T, D) -> (T, D)."""
        shown: Shown | None = ctx.share("shown", lambda: None)
        if shown is None or not (shown.owner >= 0).any():
            return torch.zeros_like(x)
        looks = shown.owner >= 0
        q = self.q(x[looks]).unflatten(-1, (-1, self.width))[:, :, None]  # (M, H, 1, K)
        k, v = (w(shown.vectors).unflatten(-1, (-1, self.width)).transpose(1, 2) for w in (self.k, self.v))
        y = torch.zeros_like(x)
        for n in shown.owner[looks].unique().tolist():  # the tokens of one picture, in one product
            mine = shown.owner[looks] == n
            found = F.scaled_dot_product_attention(q[mine].transpose(0, 2), k[n : n + 1], v[n : n + 1])
            at = looks.nonzero()[:, 0][mine]
            y = y.index_copy(0, at, self.o(found[0].transpose(0, 1).flatten(1)).to(y.dtype))
        return y


class Gate(nn.Module):
    """tanh(α) · x, α from 0: a fresh branch changes nothing (§3.1.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1))

    def start(self, draw: Callable[[str], torch.Generator]) -> None:
        self.alpha.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Let through: x (T, D) -> (T, D)."""
        return torch.tanh(self.alpha) * x
