"""Kernels in Triton for CUDA. Unverified on a GPU: tested by Triton's interpreter alone, so they run only if asked.

TERAKOYA_TRITON=1 lets CUDA tensors take them; with TRITON_INTERPRET=1 too, tensors on the CPU do, slowly. What imports
`triton` itself is imported where it is called, so nothing here needs it to be installed.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

SWITCH = "TERAKOYA_TRITON"
MOST = 256  # numbers of a state that a program holds


def able(states: int, *tensors: Tensor | None) -> bool:
    """Return whether these are single precision, where Triton can reach them, and it was asked for and is there."""
    if os.environ.get(SWITCH) != "1":
        return False
    place = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
    real = {torch.float32, torch.complex64}
    fits = all(t is None or (t.device.type == place and t.dtype in real) for t in tensors)
    return states <= MOST and fits and _installed()


@cache
def _installed() -> bool:
    return find_spec("triton") is not None
