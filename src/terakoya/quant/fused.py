"""Products with packed weights on a GPU, without making numbers of them first: tried on the device, then used."""

from __future__ import annotations

import logging
from collections import Counter

import torch
from torch import Tensor, nn

from terakoya.ops.packed_linear import FEW, floats, has_fp8, has_triton, integers, rounded, stripe
from terakoya.quant.codecs import FP8, Int4, Int8
from terakoya.quant.linear import Packed, PackedLinear

log = logging.getLogger("terakoya.quant")

NEAR = 0.02  # how far a product may be from that with numbers, relative
SAID = {"triton": f"by Triton up to {FEW} rows", "fp8": "by _scaled_mm, inputs in fp8 too"}


def enable(model: nn.Module) -> str:
    """Let the packed layers of a model use the kernels that compute on its device what they should; say which do.

    One layer of each kind and shape is tried. Nothing is said where no layer is packed.
    """
    found: dict[tuple[str, tuple[int, ...], bool], str] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for layer in model.modules():
        if isinstance(layer, PackedLinear):
            key = (str(layer.codec), layer.shape, "order" in layer.kept())
            if key not in found:
                found[key] = way(layer)
                if found[key] in SAID and (wrong := trial(layer)):
                    log.warning("no kernel for %s of %s: %s", layer.codec, layer.shape, wrong)
                    found[key] = wrong
            layer.product = product if found[key] in SAID else None
            counts[key[0], found[key]] += 1
    words = [f"{n} × {codec} {SAID.get(kind, f'as numbers ({kind})')}" for (codec, kind), n in counts.items()]
    return "packed layers: " + ", ".join(words) if words else ""


def way(layer: Packed) -> str:
    """Return who multiplies: `triton`, `fp8`, or why nobody does."""
    parts, codec = layer.kept(), layer.codec
    rows, columns = layer.shape
    if isinstance(codec, FP8):
        return "fp8" if has_fp8(parts["codes"].device) and columns % 16 == rows % 16 == 0 else "no product in fp8 here"
    if not isinstance(codec, Int4 | Int8):
        return "no kernel"
    if not has_triton():
        return "no triton"
    return "triton" if stripe(columns, parts["scales"].shape[1]) else "groups too narrow"


def product(x: Tensor, layer: Packed) -> Tensor | None:
    """Multiply x (T, K) by a packed weight -> (T, N); None: numbers are faster."""
    parts = layer.kept()
    if isinstance(layer.codec, FP8):
        return floats(x, parts["codes"], parts["scales"])
    if len(x) > FEW:
        return None
    return integers(x, parts["codes"], parts["scales"], parts.get("minima"), parts.get("order"))


@torch.no_grad()
def trial(layer: Packed) -> str:
    """Return what is wrong with the product of a layer; nothing if nothing."""
    device = next(iter(layer.kept().values())).device
    x = torch.randn(5, layer.shape[1], generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    try:
        mine = product(x, layer)
    except Exception as error:  # whatever it is, there is another way
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}"
    assert mine is not None
    seen = rounded(x) if isinstance(layer.codec, FP8) else x.float()
    theirs = seen @ layer.dense().T
    off = float((mine.float() - theirs).norm() / theirs.norm())
    return "" if off <= NEAR else f"{off:.1%} off"
