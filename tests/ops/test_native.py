"""Packed weights: what they stand for, and GGUF blocks taken without loss; one layer against its definition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terakoya.ops import native
from terakoya.ops.compile import NoCompiler
from terakoya.ops.lower import GGUF_KINDS
from terakoya.ops.native import Code, Format, Op, Program, Rows
from terakoya.quant.blocks import BLOCKS, Q4_1, Q5_1, BlockType, dequantise

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


KINDS = [BLOCKS[kind] for kind in GGUF_KINDS]


def drawn(kind: BlockType, n: int, k: int) -> np.ndarray:
    """Rows of blocks in which every bit is drawn, but scales and minima are numbers."""
    rows = np.random.default_rng(1).integers(0, 256, (n, k // kind.elements * kind.bytes), np.uint8)
    blocks = rows.reshape(n, -1, kind.bytes)
    for seed, at in enumerate({"Q6_K": [208], "Q4_0": [0], "Q5_0": [0], "Q8_0": [0]}.get(kind.name, [0, 2])):
        scale = numbers(n, blocks.shape[1], seed).astype(np.float16)
        blocks[..., at : at + 2] = scale[..., None].view(np.uint8)
    return rows


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_gguf_blocks_are_taken_without_loss(kind: BlockType) -> None:
    n, k = 37, 768
    rows, form = drawn(kind, n, k), GGUF_KINDS[kind.id]
    out = np.empty(native.packed_bytes(form, n, k), np.uint8)
    native.pack_blocks(rows, kind.id, k, out)
    got, want = native.unpack(out, form, n, k), dequantise(rows, kind)
    if kind in (Q4_1, Q5_1):  # d * q + m, or fused: the last bit may differ
        assert np.allclose(got, want, rtol=1e-5, atol=1e-5)
    else:
        assert np.array_equal(got, want)
    assert native.packed_bytes(form, 48, k) <= 48 * rows.shape[1] * 1.12


def run(program: Program, x: np.ndarray, n: int) -> np.ndarray:
    out, ids = np.full((len(x), n), np.nan, np.float32), np.arange(len(x), dtype=np.int32)
    program.run(ids, [], [], output=ids, hidden=x, logits=out)
    return out


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_layer_of_blocks_is_its_definition(machine: str, kind: BlockType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.ISA, machine)
    n, k, form = 40, 512, GGUF_KINDS[kind.id]
    rows = drawn(kind, n, k)
    w, bias = dequantise(rows, kind), numbers(1, n, 9)[0]
    program = layer(w, form, bias, fill=lambda out: native.pack_blocks(rows, kind.id, k, out))
    for count in (1, 3, 9):
        x = numbers(count, k, 5)
        scale = np.abs(x.reshape(count, -1, 32)).max(-1, keepdims=True) / 127  # inputs become int8
        seen = (np.rint(x.reshape(count, -1, 32) / scale) * scale).reshape(count, k)
        got = run(program, x, n)
        want = seen.astype(np.float64) @ w.T.astype(np.float64) + bias
        size = np.abs(seen) @ np.abs(w).T
        assert (np.abs(got - want) < 2e-5 * size + 1e-4).all()
    program.close()


@pytest.mark.parametrize(("form", "dtype"), [(Format.B16, torch.bfloat16), (Format.F16, torch.float16)])
def test_numbers_of_sixteen_bits_stay_so_and_give_the_bits_of_floats(form: Format, dtype: torch.dtype) -> None:
    w = torch.from_numpy(numbers(37, 100)).to(dtype).float().numpy()
    w[0, :2] = 0.0, -0.0
    w[1, 0] = 2.0**-24 if form == Format.F16 else 2.0**-120
    assert native.exact(w) == form
    assert native.exact(w, numbers(3, 4)) == Format.F32
    assert np.array_equal(native.unpack(packed(w, form), form, 37, 100), w)
    x, bias = numbers(5, 100, 1), numbers(1, 37, 2)[0]
    half, full = layer(w, form, bias), layer(w, Format.F32, bias)
    assert np.array_equal(run(half, x, 37), run(full, x, 37))
    half.close()
    full.close()


def layer(
    w: np.ndarray, form: Format, bias: np.ndarray, threads: int = 2, fill: Callable[[np.ndarray], None] | None = None
) -> Program:
    code = Code()
    code.widths[native.HIDDEN], code.widths[native.LOGITS] = w.shape[1], w.shape[0]
    place = code.arena.reserve(native.packed_bytes(form, *w.shape), fill or (lambda out: native.pack(w, form, out)))
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
    out = run(program, x, n)
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
