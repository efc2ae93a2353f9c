"""Attention of one text over another: keys and values come from the encoder's vectors, once per source."""

from __future__ import annotations

from torch import Tensor, nn

from terakoya.model import spec
from terakoya.model.context import Context


class Cross(nn.Module):
    """softmax(q k^T * scale) v with q from the decoder, k and v from the encoder (Vaswani 2017, §3.2.3)."""

    def __init__(self, s: spec.Cross, model: spec.Model, layer: int) -> None:
        super().__init__()
        self.spec, self.layer = s, layer
        K = self.width = spec.head_dim(model, s)
        H, G, D = s.heads, s.kv_heads or s.heads, model.dim
        self.q = nn.Linear(D, H * K, bias=s.bias)
        self.k = nn.Linear(D, G * K, bias=s.bias)
        self.v = nn.Linear(D, G * K, bias=s.bias)
        self.o = nn.Linear(H * K, D, bias=s.out_bias)
        self.scale = K**-0.5 if s.scale is None else s.scale

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Look at the source: x (T, D) -> (T, D)."""
        q = self.q(x).unflatten(-1, (-1, self.width))
        return self.o(ctx.cross(self.layer, q, self.keys, self.scale).flatten(1))

    def keys(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values: source (S, D) -> (S, G, K), (S, G, K)."""
        return self.k(source).unflatten(-1, (-1, self.width)), self.v(source).unflatten(-1, (-1, self.width))
