"""The norm with its own gradient against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from terakoya.ops.norm import rms_norm


@pytest.mark.parametrize("shape", [(1, 8), (7, 64), (2, 3, 5, 16)])
def test_rms_norm_is_torchs(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    w = torch.randn(shape[-1], dtype=torch.float64, requires_grad=True)
    grad = torch.randn(shape, dtype=torch.float64)
    ours, theirs = rms_norm(x, w, 1e-6), F.rms_norm(x, shape[-1:], w, 1e-6)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, (x, w), grad), torch.autograd.grad(theirs, (x, w), grad), strict=True):
        torch.testing.assert_close(a, b)


def test_a_row_of_nothing_stays_finite() -> None:
    x, w = torch.zeros(2, 4, requires_grad=True), torch.ones(4, requires_grad=True)
    y = rms_norm(x, w, 1e-6)
    y.sum().backward()
    assert y.eq(0).all() and x.grad is not None and x.grad.isfinite().all()
