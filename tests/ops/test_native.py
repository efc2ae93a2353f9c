"""Packed weights: what they stand for, and GGUF blocks taken without loss; one layer against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terakoya.ops import native
from terakoya.ops.compile import NoCompiler
from terakoya.ops.native import Code, Format, Op, Program, Rows
from terakoya.quant.blocks import Q4_0, Q4_1, Q8_0, BlockType, dequantise

try:
    MACHINES = native.isas()
except NoCompiler as error:
    pytest.skip(f"no native library here: {error}", allow_module_level=True)


def numbers(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k), np.float32)


def packed(w: np.ndarray, form: Format) -> np.ndarray:
    out = np.empty(native.packed_bytes(form, *w.shape), np.uint8)
    native.pack(w, form, out)
    return out


@given(st.integers(1, 40), st.integers(1, 100), st.sampled_from([Format.F32, Format.Q8, Format.Q4]))
@settings(max_examples=40, deadline=None)
def test_packing_keeps_every_number_within_half_a_step(n: int, k: int, form: Format) -> None:
    w = numbers(n, k, n * 101 + k)
    back = native.unpack(packed(w, form), form, n, k)
    if form == Format.F32:
        assert np.array_equal(back, w)
        return
    groups = np.pad(w, ((0, 0), (0, -k % 32))).reshape(n, -1, 32)
    low, high = groups.min(-1), groups.max(-1)
    step = (high - low) / 15 if form == Format.Q4 else np.abs(groups).max(-1) / 127
    allowed = np.repeat(step * 0.51 + np.abs(low) * 2e-3 + step * 16 * 1e-3, 32, -1)[:, :k]  # scales are halves
    assert (np.abs(back - w) <= allowed).all()


@pytest.mark.parametrize("kind", [Q4_0, Q4_1, Q8_0], ids=lambda kind: kind.name)
def test_gguf_blocks_are_taken_without_loss(kind: BlockType) -> None:
    n, k = 37, 96
    rows = np.random.default_rng(1).integers(0, 256, (n, k // 32 * kind.bytes), np.uint8)
    blocks = rows.reshape(n, -1, kind.bytes)
    blocks[..., 0:2] = numbers(n, k // 32).astype(np.float16)[..., None].view(np.uint8)  # scales that are numbers
    if kind is Q4_1:
        blocks[..., 2:4] = numbers(n, k // 32, 3).astype(np.float16)[..., None].view(np.uint8)
    form = Format.Q8 if kind is Q8_0 else Format.Q4
    out = np.empty(native.packed_bytes(form, n, k), np.uint8)
    native.pack_blocks(rows, kind.id, k, out)
    want = dequantise(rows, kind)
    if kind is Q8_0:
        assert np.array_equal(native.unpack(out, form, n, k), want)
    else:  # d * q + m instead of d * (q - 8), or fused: the last bit may differ
        assert np.allclose(native.unpack(out, form, n, k), want, rtol=1e-5, atol=1e-5)


def layer(w: np.ndarray, form: Format, bias: np.ndarray, threads: int = 2) -> Program:
    code = Code()
    code.widths[native.HIDDEN], code.widths[native.LOGITS] = w.shape[1], w.shape[0]
    place = code.arena.reserve(native.packed_bytes(form, *w.shape), lambda out: native.pack(w, form, out))
    at = code.arena.reserve(bias.nbytes, lambda out: np.copyto(out, bias.view(np.uint8)))
    code.add(
        Op.LINEAR, rows=Rows.OUTPUTS, dst=native.LOGITS, src=native.HIDDEN, n=w.shape[0], k=w.shape[1], format=form,
        places={"weight": place, "bias": at},
    )  # fmt: skip
    return Program(code, threads)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("form", [Format.F32, Format.Q8, Format.Q4])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 19])
def test_a_layer_is_its_definition(machine: str, form: Format, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs of whole numbers to 127 survive their own rounding: what is left is the order of sums."""
    monkeypatch.setenv(native.ISA, machine)
    n, k = 83, 100
    w, bias = numbers(n, k, 5), numbers(1, n, 6)[0]
    x = np.random.default_rng(rows).integers(-127, 128, (rows, k)).astype(np.float32)
    x[:, ::32] = 127.0  # the largest of every group
    program = layer(w, form, bias, 2)
    out, ids = np.full((rows, n), np.nan, np.float32), np.arange(rows, dtype=np.int32)
    program.run(ids, [], [], output=ids, hidden=x, logits=out)
    want = torch.from_numpy(x).double() @ torch.from_numpy(native.unpack(packed(w, form), form, n, k)).double().T
    want = want + torch.from_numpy(bias)
    assert (torch.from_numpy(out) - want).abs().max() <= 1e-5 * want.abs().max()


def test_extremes_do_not_overflow() -> None:
    """The largest products there are, all of one sign, on every machine."""
    w, x = np.ones((16, 4096), np.float32), np.full((1, 4096), -127.0, np.float32)
    for form in (Format.Q8, Format.Q4):
        w[:, ::32] = 0.0 if form == Format.Q4 else 1.0
        program = layer(w, form, np.zeros(16, np.float32), 1)
        out, ids = np.empty((1, 16), np.float32), np.zeros(1, np.int32)
        program.run(ids, [], [], output=ids, hidden=x, logits=out)
        want = x @ native.unpack(packed(w, form), form, 16, 4096).T
        assert np.allclose(out, want, rtol=1e-5)


def test_a_closed_program_gives_its_threads_back() -> None:
    program = layer(numbers(16, 32), Format.F32, np.zeros(16, np.float32), threads=3)
    program.close()
    program.close()
