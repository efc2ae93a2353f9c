"""Weights as the packed ones stand for them: what quantised programs are held to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from terakoya.model import spec
from terakoya.ops import native
from terakoya.ops.lower import Weights
from terakoya.ops.native import Format


def dequantised(s: spec.Model, parameters: Mapping[str, Tensor], weights: Weights) -> dict[str, Tensor]:
    """Return the parameters as the packed weights stand for them: the model that quantised programs are held to."""
    out = {name: p.detach().clone() for name, p in parameters.items()}
    if weights == "fp32":
        return out
    kept = {"norm", "position", "router", "shared_gate"}
    for name, p in parameters.items():
        owner = name.split(".")[-2]
        if p.dim() < 2 or not name.endswith(".weight") or owner in kept or "norm" in owner:
            continue
        if owner.endswith(("_pre", "_post", "_out")) or (name == "embed.token.weight" and not s.head.tied):
            continue
        form = Format.Q4 if weights == "int4" and owner not in ("token", "head") else Format.Q8
        out[name] = torch.stack([_round(w, form) for w in p]) if p.dim() == 3 else _round(p, form)
    return out


def _round(w: Tensor, form: Format) -> Tensor:
    n, k = w.shape
    packed = np.empty(native.packed_bytes(form, n, k), np.uint8)
    native.pack(w.detach().numpy(), form, packed)
    return torch.from_numpy(native.unpack(packed, form, n, k))
