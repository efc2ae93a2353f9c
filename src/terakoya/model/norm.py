"""Layer norm and root-mean-square norm, computed in fp32 whatever the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terakoya.model import spec
from terakoya.ops.norm import rms_norm


class Norm(nn.Module):
    """y = (x - mean) / std * (offset + w) + b, or x / rms * (offset + w)."""

    def __init__(self, s: spec.Norm, *shape: int) -> None:
        super().__init__()
        self.spec, self.centred = s, isinstance(s, spec.LayerNorm)
        self.offset = s.offset
        self.weight = nn.Parameter(torch.empty(shape)) if s.affine else None
        biased = isinstance(s, spec.LayerNorm) and s.affine and s.bias
        self.bias = nn.Parameter(torch.empty(shape)) if biased else None

    def forward(self, x: Tensor) -> Tensor:
        """Norm the last axis: x (..., D) -> (..., D)."""
        w, b = self.weight, self.bias
        plain = x.dtype == torch.float32 and (w is None or w.dim() == 1) and not self.offset
        if plain:
            if self.centred:
                return F.layer_norm(x, x.shape[-1:], w, b, self.spec.eps)
            if w is not None and x.device.type == "cpu":
                return rms_norm(x, w, self.spec.eps)
            return F.rms_norm(x, x.shape[-1:], w, self.spec.eps)
        h = x if x.dtype == torch.float64 else x.float()
        if self.centred:
            h = h - h.mean(-1, keepdim=True)
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.spec.eps)
        if w is not None:
            h = h * (w.to(h.dtype) + self.offset)
        if b is not None:
            h = h + b
        return h.to(x.dtype)
