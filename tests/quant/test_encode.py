"""Encoded blocks equal gguf-py's to the bit, and what cannot be encoded is refused."""

from __future__ import annotations

import numpy as np
import pytest

from terakoya.errors import TerakoyaError
from terakoya.quant import blocks
from terakoya.quant.blocks import dequantise
from terakoya.quant.encode import quantise

gguf = pytest.importorskip("gguf", reason="the reference is not installed")
KINDS = [blocks.F32, blocks.F16, blocks.BF16, blocks.Q8_0, blocks.Q4_0, blocks.Q4_1, blocks.Q5_0, blocks.Q5_1]
SCALED = KINDS[3:]
WIDE = [blocks.Q4_K, blocks.Q5_K, blocks.Q6_K]


def rows(seed: int) -> np.ndarray:
    """Rows of many sizes, with zeros, ties of rounding and one-sided blocks: (700, 128) float32."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((700, 128)) * 10.0 ** rng.integers(-9, 4, (700, 1))
    x[::7] = 0
    x[1::7] = rng.integers(-254, 255, (100, 128)) / 2  # with ±127 present every odd one is a tie
    x[1::7, ::32] = 127
    x[2::7] = np.abs(x[2::7])
    x[3::7, ::5] = -0.0
    return x.astype(np.float32)


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_same_bits_as_the_reference(kind: blocks.BlockType) -> None:
    x = rows(kind.id)
    ours = quantise(x, kind)
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType(kind.id)).view(np.uint8)
    assert ours.shape == theirs.shape
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_was_decoded_encodes_to_the_same_numbers(kind: blocks.BlockType) -> None:
    x = dequantise(quantise(rows(1), kind), kind)
    again = dequantise(quantise(x, kind), kind)
    # A scale is a half number: encoding anew may move it by its last place, 2⁻¹¹, on top of float32 rounding.
    np.testing.assert_allclose(again, x, rtol=2**-10, atol=1e-7)


def test_bf16_keeps_nan_and_infinity() -> None:
    bits = np.array([0x7F800001, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 0x7F7FFFFF], np.uint32)
    out = dequantise(quantise(bits.view(np.float32), blocks.BF16), blocks.BF16)
    assert np.isnan(out[:2]).all()
    assert np.isinf(out[2:]).all()  # the largest float32 rounds up to infinity


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e9])
@pytest.mark.parametrize("kind", [*SCALED, *WIDE], ids=lambda kind: kind.name)
def test_numbers_without_a_scale_are_refused(kind: blocks.BlockType, bad: float) -> None:
    x = np.ones((2, 256), np.float32)
    x[1, 40] = bad
    with pytest.raises(TerakoyaError, match="infinite, NaN or very large"):
        quantise(x, kind)


@pytest.mark.parametrize("x", [np.ones(33, np.float32), np.ones(32), np.float32(1)])
def test_rows_that_are_not_blocks_are_refused(x: np.ndarray) -> None:
    with pytest.raises(TerakoyaError, match="cannot hold"):
        quantise(x, blocks.Q8_0)
    with pytest.raises(TerakoyaError, match="cannot be written"):
        quantise(x, blocks.BlockType(10, "Q2_K", 256, 84))


def test_leading_axes_and_nothing() -> None:
    assert quantise(np.ones((2, 3, 64), np.float32), blocks.Q4_0).shape == (2, 3, 36)
    assert quantise(np.ones((0, 64), np.float32), blocks.Q8_0).shape == (0, 68)


def error(x: np.ndarray, kind: blocks.BlockType) -> float:
    """Root mean square of what is lost, as other code decodes it."""
    raw = quantise(x, kind)
    back = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind.id))
    np.testing.assert_array_equal(back, dequantise(raw, kind))
    return float(np.sqrt(np.square(back - x).mean() / np.square(x).mean()))


@pytest.mark.parity
def test_wide_blocks_lose_little_and_less_than_narrow_ones() -> None:
    x = np.random.default_rng(5).standard_normal((64, 1024)).astype(np.float32)
    x *= np.exp(np.random.default_rng(6).standard_normal((64, 1)))  # rows of many sizes
    four, five, six = (error(x, kind) for kind in WIDE)
    assert four < error(x, blocks.Q4_0)
    assert four < 0.075  # a normal distribution on 16 levels in groups of 32: 0.08 and more without the search
    assert five < 0.55 * four
    assert six < 0.55 * five


@pytest.mark.parity
@pytest.mark.parametrize("kind", WIDE, ids=lambda kind: kind.name)
def test_wide_blocks_hold_grids_of_their_own_exactly_and_zeros(kind: blocks.BlockType) -> None:
    steps = {"Q4_K": 15, "Q5_K": 31, "Q6_K": 31}[kind.name]
    x = np.random.default_rng(7).integers(0, steps + 1, (6, 256)).astype(np.float32)
    x[:, ::32], x[:, 1::32] = 0, steps
    x[:, ::16] = steps if kind is blocks.Q6_K else x[:, ::16]
    x[3] = 0
    np.testing.assert_allclose(dequantise(quantise(x, kind), kind), x, atol=0.02 * steps)
    assert not dequantise(quantise(x, kind), kind)[3].any()
    one_sided = -np.abs(x) - 1
    np.testing.assert_allclose(dequantise(quantise(one_sided, kind), kind), one_sided, atol=0.08 * steps)
