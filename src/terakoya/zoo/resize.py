"""Recurrent mixers at another width of the model, in their own proportions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from terakoya.model import spec_encoder, spec_sparse
from terakoya.model import spec_recurrent as spec


def resized(node: Any, old: int, dim: int, width: int) -> Any:
    """Return a mixer made for a model `old` wide as it is in one `dim` wide, with heads of `width`."""
    ratio = dim / old
    match node:
        case spec_encoder.Entities():
            return replace(node, count=min(node.count, 1024), dim=node.dim and _near(node.dim * ratio))
        case spec_encoder.Glance():
            return replace(node, heads=max(1, dim // width), head_dim=None if dim % width == 0 else width)
        case spec_encoder.Sight():
            return _glasses(node, ratio, width)
        case spec.LSTM():
            return replace(node, hidden=node.hidden and _near(node.hidden * ratio))
        case spec.Mamba():
            inner = _near(node.inner * ratio)
            return replace(node, inner=inner, rank=max(2, round(node.rank * ratio)), state=min(node.state, width))
        case spec.Mamba2():
            heads = max(1, round(node.inner * ratio / width))
            groups = max(g for g in range(1, min(node.groups, heads) + 1) if heads % g == 0)
            return replace(node, inner=heads * width, heads=heads, groups=groups, state=min(node.state, 2 * width))
        case spec.Rwkv4():
            return replace(node, hidden=node.hidden and _near(node.hidden * ratio))
        case spec.RwkvChannel():
            return replace(node, hidden=_near(node.hidden * ratio))
        case spec.RGLRU():
            heads = max(1, dim // width)
            return replace(node, width=_near(node.width * ratio, heads), heads=heads)
        case spec_sparse.Lsh():
            heads = max(1, dim // width)
            own = None if width * heads == dim and node.head_dim is None else width
            return replace(node, heads=heads, head_dim=own)
        case spec_sparse.Axial():
            return replace(node, dim=min(dim - 1, max(1, round(node.dim * ratio))))
        case spec.LinearAttention() | spec.Retention():
            return replace(node, heads=max(1, dim // width))
        case spec.GatedDelta():
            heads = max(1, dim // width)
            share = max(1, node.value_heads // node.heads)
            return replace(node, heads=heads, value_heads=heads * share, key=width, value=width)
        case spec.Rwkv7():
            decay, rate, gate = (max(4, round(r * ratio)) for r in (node.decay, node.rate, node.gate))
            value = node.value and max(4, round(node.value * ratio))
            return replace(node, heads=max(1, dim // width), decay=decay, rate=rate, gate=gate, value=value)
        case spec.Rwkv7Channel():
            return replace(node, hidden=_near(node.hidden * ratio))
        case spec.H3():
            return replace(node, state=min(node.state, 2 * width), taps=min(node.taps, width))
        case spec.S4() | spec.S4D():
            return replace(node, state=min(node.state, 2 * width))
        case spec.Hyena():
            return replace(node, filter=min(node.filter, 2 * width))
    return node


def _glasses(s: spec_encoder.Sight, ratio: float, width: int) -> spec_encoder.Sight:
    """Shrink an image encoder as its reader shrinks: fewer layers, and pictures of 8 by 8 patches."""
    if ratio >= 1:
        return s
    heads, depth = max(1, round(s.dim * ratio / width)), min(s.depth, 4)
    small = {"dim": heads * width, "heads": heads, "hidden": _near(s.hidden / s.dim * heads * width), "depth": depth}
    r = s.resampler and replace(s.resampler, latents=16, depth=min(s.resampler.depth, 2), heads=heads, head_dim=width)
    return replace(s, **small, image=8 * s.patch, cut=min(s.cut, depth), resampler=r)


def _near(value: float, step: int = 16) -> int:
    return max(step, round(value / step) * step)
