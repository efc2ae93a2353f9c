"""Recurrent mixers at another width of the model, in their own proportions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from terakoya.model import spec_recurrent as spec


def resized(node: Any, old: int, dim: int, width: int) -> Any:
    """Return a mixer made for a model `old` wide as it is in one `dim` wide, with heads of `width`."""
    ratio = dim / old
    match node:
        case spec.LSTM():
            return replace(node, hidden=node.hidden and _near(node.hidden * ratio))
    return node


def _near(value: float, step: int = 16) -> int:
    return max(step, round(value / step) * step)
