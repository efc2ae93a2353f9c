"""The kernels for CUDA in Triton's interpreter, on the CPU, against the definitions in double precision.

This says that what they compute is right; the last test says that they compile for a GPU; no GPU has run them yet.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from terakoya.model import naive
from terakoya.ops import recur, scan, triton
from tests.ops import test_recur
from tests.ops.test_recur import given, narrow, noise, order, slopes

NAMES = ["selective", "diagonal", "decayed", "delta", "general", "wkv"]
INTERPRETED: list[bool] = []  # whether this file was the first to import Triton


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let tensors on the CPU take the kernels, and return the names of those that ran."""
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1" and not INTERPRETED:
        pytest.skip("Triton was loaded for a GPU before: run this file alone")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when Triton is imported
    pytest.importorskip("triton", reason="Triton is not installed")
    INTERPRETED.append(True)
    monkeypatch.setenv(triton.SWITCH, "1")
    monkeypatch.setattr(recur, "able", lambda *_: False)
    for name, value in (("LENGTHS", [35, 1, 4]), ("N", 3), ("T", 40)):  # the interpreter is slow
        monkeypatch.setattr(test_recur, name, value)
    from terakoya.ops.triton import recurrences

    ran: list[str] = []

    def listening(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            ran.append(name)
            return real(*given)

        return call

    for name in [*NAMES, "scan"]:
        monkeypatch.setattr(recurrences, name, listening(name, getattr(recurrences, name)))
    return ran


@pytest.mark.parametrize("size", [(16, 16), (33, 5)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_equals_the_definition(name: str, size: tuple[int, int], called: list[str]) -> None:
    """Documents of 1 to 35 tokens from states in the middle of a text; back, through the definition in PyTorch."""
    tensors = given(name, *size)
    out, grads = slopes(name, "fast", [narrow(t) for t in tensors])
    assert name in called
    want, wanted = slopes(name, "naive", tensors)
    assert len(out) == len(want) and len(grads) == len(wanted)
    for a, b in zip(out + grads, want + wanted, strict=True):
        far = (a.to(b.dtype) - b).abs().max() / b.abs().max().clamp(min=1)
        assert a.shape == b.shape and far < 2e-5, far


def test_a_scan_and_its_derivative_are_one_kernel(called: list[str]) -> None:
    def run(by: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        tensors = [noise(order().cu[-1], 5, 3, seed=0).sigmoid(), noise(order().cu[-1], 5, 3, seed=1)]
        own = [t.to(dtype).requires_grad_() for t in (*tensors, noise(order().count, 5, 3, seed=2))]
        h, last = by(own[0], own[1], order(), own[2])
        look = noise(*h.shape, seed=3).to(dtype)
        return [h, last, *torch.autograd.grad((h * look).sum() + last.sum(), own)]

    found, wanted = run(scan.scan, torch.float32), run(naive.scan, torch.float64)
    assert called == ["scan", "scan"]
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a.double(), b, atol=2e-5)


def test_a_memory_that_does_not_fade(called: list[str]) -> None:
    q, k, v, _, start = given("decayed", 8, 4)
    from terakoya.ops import linear

    y, last = linear.decayed(*(narrow(t) for t in (q, k, v)), None, order(), narrow(start))
    want, end = naive.decayed(q, k, v, None, order(), start)
    assert called == ["decayed"]
    assert torch.allclose(y.double(), want, atol=1e-4) and torch.allclose(last.double(), end, atol=1e-4)


def test_nothing_takes_them_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2)
    monkeypatch.setattr(triton, "_installed", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv(triton.SWITCH, raising=False)
    assert not triton.able(1, x)
    monkeypatch.setenv(triton.SWITCH, "1")
    assert triton.able(1, x, None)
    assert not triton.able(1, x.double()) and not triton.able(triton.MOST + 1, x)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not triton.able(1, x)  # a tensor on the CPU, and kernels for a GPU
    monkeypatch.setattr(triton, "_installed", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not triton.able(1, x)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from terakoya.ops.triton import kernels
shapes = {
    "decayed": dict(K=128, V=64, BK=128, BV=32, C=32, FADES=True), "matrix": dict(K=64, V=64, BK=64, BV=32),
    "scan": dict(C=32, B=32), "selective": dict(S=16, BS=16, B=32), "diagonal": dict(S=32, BS=32, B=32),
    "wkv": dict(B=32),
}
for name, known in shapes.items():
    kernel = getattr(kernels, name)
    names = list(kernel.arg_names)
    kinds = ["*fp32"] * names.index("cu") + ["*i32", "i32"] + ["constexpr"] * len(known)
    fixed = {(names.index(n),): value for n, value in known.items()}
    source = ASTSource(kernel, dict(zip(names, kinds, strict=True)), fixed)
    made = compile(source, target=GPUTarget("cuda", 80, 32), options={"num_stages": 1})
    assert made.asm["cubin"] and made.metadata.shared < 99_000, name
    print(name)
"""


@pytest.mark.slow
def test_they_compile_for_a_gpu(tmp_path: Path) -> None:
    """Down to the machine code of compute capability 8.0, without such a machine; shared memory fits the small ones."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=clean, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["decayed", "matrix", "scan", "selective", "diagonal", "wkv"]
