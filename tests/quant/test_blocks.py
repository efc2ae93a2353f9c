"""Decoding of stored blocks equals gguf-py's to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from terakoya.errors import TerakoyaError
from terakoya.quant import blocks

gguf = pytest.importorskip("gguf", reason="the reference is not installed")
KINDS = list(blocks.BLOCKS.values())
# Where each block holds half-precision numbers, by the byte: anything else may be any bits.
HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2]}
HALVES |= {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def reference(raw: np.ndarray, kind: blocks.BlockType) -> np.ndarray:
    return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind.id))


def crafted(kind: blocks.BlockType, n: int, seed: int) -> np.ndarray:
    """Random bits with finite scales: (n·bytes,) uint8."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (n, kind.bytes), dtype=np.uint8)
    if kind.elements == 1:
        values = rng.standard_normal(n).astype(np.float32) * 10.0 ** rng.integers(-6, 5, n)
        if kind.name == "BF16":
            return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return values.astype({"F32": np.float32, "F16": np.float16}[kind.name]).view(np.uint8)
    for at in HALVES[kind.name]:
        scale = (rng.standard_normal(n) * 10.0 ** rng.integers(-7, 4, n)).astype(np.float16)
        raw[:, at : at + 2] = scale.view(np.uint8).reshape(n, 2)
    return raw.reshape(-1)


def test_table_agrees_with_ggml() -> None:
    for id_, kind in blocks.BLOCKS.items():
        theirs = gguf.GGMLQuantizationType(id_)
        assert (kind.name, (kind.elements, kind.bytes)) == (theirs.name, gguf.GGML_QUANT_SIZES[theirs])


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_any_bits_decode_as_the_reference_does(kind: blocks.BlockType) -> None:
    for n in (1, 7, (1 << 16) // kind.elements + 3):  # the last takes two chunks
        raw = crafted(kind, n, seed=n)
        ours = blocks.dequantise(raw, kind)
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours.view(np.uint32), reference(raw, kind).view(np.uint32).reshape(-1))


@pytest.mark.parity
@pytest.mark.parametrize("kind", [k for k in KINDS if not k.name.endswith("_K")], ids=lambda kind: kind.name)
def test_quantised_numbers_come_back_near(kind: blocks.BlockType) -> None:
    x = np.random.default_rng(3).standard_normal((5, 96)).astype(np.float32)
    raw = gguf.quants.quantize(x, gguf.GGMLQuantizationType(kind.id)).view(np.uint8)
    ours = blocks.dequantise(raw, kind)
    assert ours.shape == x.shape  # leading axes are kept
    np.testing.assert_array_equal(ours, reference(raw, kind))
    # Half a step of the coarsest grid: the widest span of a block, 2·max, over 2⁴ - 1 levels (Q4_0: 2⁴ and one-sided).
    np.testing.assert_allclose(ours, x, atol=2 * np.abs(x).max() / 15)


def test_zero_scale_keeps_the_sign_of_zero() -> None:
    raw = crafted(blocks.Q4_0, 4, seed=0).reshape(4, 18)
    raw[:, :2] = np.array([0.0, -0.0, 0.0, -0.0], np.float16).view(np.uint8).reshape(4, 2)
    ours = blocks.dequantise(raw, blocks.Q4_0)
    np.testing.assert_array_equal(np.signbit(ours), np.signbit(reference(raw, blocks.Q4_0)))


def test_slices_and_nothing_decode() -> None:
    raw = crafted(blocks.Q8_0, 8, seed=1).reshape(4, 2, 34)
    every_other = raw[::2].reshape(2, 68)
    np.testing.assert_array_equal(
        blocks.dequantise(raw[::2, 1], blocks.Q8_0), blocks.dequantise(every_other, blocks.Q8_0)[:, 32:]
    )
    assert blocks.dequantise(np.empty((3, 0), np.uint8), blocks.Q6_K).shape == (3, 0)


def test_the_result_is_ours_to_write() -> None:
    raw = np.arange(8, dtype=np.uint8)
    raw.flags.writeable = False
    blocks.dequantise(raw, blocks.F32)[:] = 1


@pytest.mark.parametrize("raw", [np.zeros(35, np.uint8), np.zeros(34, np.int8), np.uint8(3)])
def test_bytes_that_are_not_blocks_are_refused(raw: np.ndarray) -> None:
    with pytest.raises(TerakoyaError, match="whole blocks"):
        blocks.dequantise(raw, blocks.Q8_0)


def test_unknown_type_is_refused() -> None:
    with pytest.raises(TerakoyaError, match=r"type 10.*Q2_K.*allowed: F32"):
        blocks.dequantise(np.zeros(84, np.uint8), blocks.BlockType(10, "Q2_K", 256, 84))
