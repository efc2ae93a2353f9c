"""Products with packed weights on a GPU: which codec has a kernel, and what is said where none has."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from terakoya.ops.packed_linear import FEW, floats, has_fp8, has_triton, integers, stripe
from terakoya.quant.codecs import FP8, Codec, Int4, Int8, Parts


def product(x: Tensor, codec: Codec, parts: Parts) -> Tensor | None:
    """Multiply x (T, K) by a packed weight -> (T, N); None: it must become numbers first."""
    kind = way(codec, parts, x.device, x.shape[1])
    if kind == "fp8":
        return floats(x, parts["codes"], parts["scales"])
    if kind == "triton" and len(x) <= FEW:
        return integers(x, parts["codes"], parts["scales"], parts.get("minima"), parts.get("order"))
    return None


def way(codec: Codec, parts: Parts, device: torch.device, columns: int) -> str:
    """Return who multiplies: `triton`, `fp8`, or nobody, and then why."""
    if isinstance(codec, FP8):
        whole = columns % 16 == 0 and len(parts["codes"]) % 16 == 0
        return "fp8" if has_fp8(device) and whole else "no fp8 product here"
    if not isinstance(codec, Int4 | Int8):
        return "no kernel for it"
    if not has_triton():
        return "no triton"
    return "triton" if stripe(columns, parts["scales"].shape[1]) else "groups too narrow"


def described(model: nn.Module, device: torch.device) -> str:
    """Say how packed layers are multiplied on a GPU; nothing where there are none."""
    from terakoya.quant.linear import PackedLinear

    layers = [m for m in model.modules() if isinstance(m, PackedLinear)]
    counts = Counter((str(m.codec), way(m.codec, m.kept(), device, m.shape[-1])) for m in layers)
    said = {"triton": f"by Triton up to {FEW} rows", "fp8": "by _scaled_mm, inputs in fp8 too"}
    words = [
        f"{n} × {codec} {said.get(kind, f'made numbers in every step ({kind})')}" for (codec, kind), n in counts.items()
    ]
    return "packed " + ", ".join(words) if words else ""
