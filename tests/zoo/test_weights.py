"""Folders of safetensors: bit by bit there and back, and nothing hostile gets past the door."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from terakoya.errors import TerakoyaError
from terakoya.zoo import safefile, weights
from terakoya.zoo.weights import INDEX, SINGLE, open_weights, save_weights

PICKLE_SIGNS = "is a pickle.*convert with"


def some_tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    base = torch.randn(6, 5, generator=g)
    tied = torch.randn(7, 3, generator=g)
    out = {
        "f32": base,
        "turned": base.t(),  # not contiguous
        "slice": base[1:4, 2],  # shares memory
        "f16": base.half(),
        "bf16.重み": base.bfloat16(),
        "i64": torch.tensor([[1, -(2**60)]]),
        "bool": torch.tensor([True, False, True]),
        "u8": torch.arange(5, dtype=torch.uint8),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "embed": tied,
        "head": tied,
        "bits": torch.tensor([0x7FC00001, -0x7FFFFF], dtype=torch.int32).view(torch.float32),  # a NaN's payload
        "broadcast": torch.ones(1).expand(3, 2),
        "learned": torch.nn.Parameter(torch.ones(2)),
        "conj": torch.tensor([1 + 2j]).conj(),
    }
    return out | {name: torch.ones(3).to(dtype) for name, dtype in weights.DTYPES.items()}


def bits(x: torch.Tensor) -> bytes:
    return x.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)


@pytest.mark.parametrize("most", [5_000_000_000, 200, 1], ids=["one file", "shards", "a shard each"])
def test_there_and_back_bit_by_bit(tmp_path: Path, most: int) -> None:
    tensors = some_tensors()
    save_weights(tmp_path / "new" / "model", tensors, max_shard_bytes=most, metadata={"format": "pt", "名": "猫"})
    got = open_weights(tmp_path / "new" / "model")
    assert sorted(got) == sorted(got.keys()) == sorted(tensors)
    assert len(got) == len(tensors)
    assert got.metadata == {"format": "pt", "名": "猫"}
    for name, x in tensors.items():
        assert name in got
        assert (got.shape(name), got.dtype(name), got.nbytes(name)) == (x.shape, x.dtype, len(bits(x)))
        assert same(got.get(name), x), name
    assert not [p for p in (tmp_path / "new" / "model").iterdir() if p.name.endswith(".tmp")]


@pytest.mark.parity
def test_the_library_reads_and_writes_the_same_bytes(tmp_path: Path) -> None:
    tensors = {name: x.detach().resolve_conj().clone().contiguous() for name, x in some_tensors().items()}
    tensors.pop("bf16.重み")
    save_weights(tmp_path, tensors)
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / SINGLE).read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    theirs = load_file(tmp_path / SINGLE)
    assert all(same(theirs[name], x) for name, x in tensors.items())
    ours = open_weights(tmp_path / "theirs.safetensors")
    assert all(same(ours.get(name), x) for name, x in tensors.items())


@pytest.mark.parity
def test_transformers_opens_a_sharded_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=16)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    config.save_pretrained(tmp_path)
    stored = {name: x for name, x in model.state_dict().items() if name != "lm_head.weight"}  # tied
    save_weights(tmp_path, stored, max_shard_bytes=2000)
    assert (tmp_path / INDEX).exists()
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    assert all(same(x, loaded.state_dict()[name]) for name, x in model.state_dict().items())
    model.save_pretrained(tmp_path / "theirs", max_shard_size=2000)
    theirs = open_weights(tmp_path / "theirs")
    assert all(same(theirs.get(name), x) for name, x in stored.items())


def test_order_does_not_change_a_file_and_metadata_may_be_absent(tmp_path: Path) -> None:
    tensors = some_tensors()
    save_weights(tmp_path / "a", tensors, metadata={})
    save_weights(tmp_path / "b", dict(reversed(tensors.items())), metadata={})
    assert (tmp_path / "a" / SINGLE).read_bytes() == (tmp_path / "b" / SINGLE).read_bytes()
    assert open_weights(tmp_path / "a").metadata == {}


def test_shards_keep_the_order_given_and_the_limit(tmp_path: Path) -> None:
    tensors = {f"{i}": torch.full((i,), i, dtype=torch.uint8) for i in (3, 3 + 1, 9, 1, 2)}
    save_weights(tmp_path, tensors, max_shard_bytes=7)
    index = json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))
    assert index["metadata"] == {"total_size": 19}
    name = "model-0000{}-of-00003.safetensors".format
    assert index["weight_map"] == {"3": name(1), "4": name(1), "9": name(2), "1": name(3), "2": name(3)}
    assert not (tmp_path / SINGLE).exists()


def test_saving_again_replaces_what_was_there(tmp_path: Path) -> None:
    x = {f"{i}": torch.full((4,), float(i)) for i in range(4)}
    (tmp_path / "mine.safetensors").write_bytes(b"kept")
    for most in (16, 32, 1000, 48, 16, 1000):
        save_weights(tmp_path, x, max_shard_bytes=most)
        got = open_weights(tmp_path)
        assert sorted(got) == sorted(x)
        files = {p.name for p in tmp_path.glob("model*.safetensors")}
        assert len(files) == max(1, -(-64 // most) if most < 64 else 1)
        x = {name: got.get(name) + 1 for name in got}  # tensors of the files that are replaced next
    assert got.get("0").tolist() == [5.0] * 4
    assert (tmp_path / "mine.safetensors").read_bytes() == b"kept"


def test_saving_mapped_tensors_over_themselves(tmp_path: Path) -> None:
    x = {"a": torch.randn(1000), "b": torch.randn(1000)}
    save_weights(tmp_path, x)
    got = open_weights(tmp_path)
    save_weights(tmp_path, {name: got.get(name) for name in got})
    assert all(same(open_weights(tmp_path).get(name), x[name]) for name in x)


def test_a_save_that_is_cut_short_leaves_no_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = {"a": torch.zeros(4), "b": torch.zeros(4)}, {"a": torch.ones(4), "b": torch.ones(4)}
    real = os.replace
    for before, after in ((16, 16), (16, 100), (100, 16), (100, 100)):
        for allowed in range(4):
            save_weights(tmp_path, old, max_shard_bytes=before)
            left = [allowed]

            def replace(a: str, b: str, left: list[int] = left) -> None:
                if left[0] == 0:
                    raise OSError(28, "No space left on device")
                left[0] -= 1
                real(a, b)

            monkeypatch.setattr(os, "replace", replace)
            try:
                save_weights(tmp_path, new, max_shard_bytes=after)
            except TerakoyaError as error:
                assert "No space left" in str(error)  # noqa: PT017
            monkeypatch.setattr(os, "replace", real)
            try:
                got = open_weights(tmp_path)
            except TerakoyaError:
                continue
            assert {got.get(name).sum().item() for name in got} in ({0.0}, {4.0})
            assert not list(tmp_path.glob(".*"))


def test_writing_into_a_tensor_does_not_change_the_file(tmp_path: Path) -> None:
    save_weights(tmp_path, {"a": torch.zeros(8)})
    before = (tmp_path / SINGLE).read_bytes()
    open_weights(tmp_path).get("a").fill_(7)
    assert (tmp_path / SINGLE).read_bytes() == before
    assert open_weights(tmp_path).get("a").tolist() == [0.0] * 8


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"x": torch.ones(2, dtype=torch.complex128)}, "complex128 cannot be stored"),
        ({"x": torch.ones(2).to_sparse()}, "sparse"),
        ({"x": torch.ones(2, device="meta")}, "meta"),
        ({"": torch.ones(1)}, "cannot be a name"),
        ({"a\nb": torch.ones(1)}, "cannot be a name"),
        ({"__metadata__": torch.ones(1)}, "cannot be a name"),
        ({"x": torch.ones([1] * 9)}, "9 dimensions"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(TerakoyaError, match=words):
        save_weights(tmp_path, tensors)
    assert not list(tmp_path.iterdir())


def test_unknown_name_gets_a_hint(tmp_path: Path) -> None:
    save_weights(tmp_path, {"layers.0.q": torch.ones(1)})
    with pytest.raises(TerakoyaError, match=r"did you mean 'layers\.0\.q'"):
        open_weights(tmp_path).get("layer.0.q")


# ------------------------------------------------------------------ what is refused


def file_of(header: object, data: int = 0) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(data)


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


HEADERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "0 bytes"),
    "short": (b"\x02\0\0\0", "4 bytes"),
    "length beyond the file": (file_of({})[:8] + b"{", "promises a header of 2 bytes; the file has 9"),
    "absurd length": ((1 << 63).to_bytes(8, "little") + b"{}", "promises a header of 9223372036854775808"),
    "bomb": ((17 << 20).to_bytes(8, "little") + b"{" * (17 << 20), "promises a header of 17825792"),
    "list": (file_of([1]), "not a safetensors file"),
    "no json": (file_of(b'{"a":'), "not valid JSON"),
    "nan": (file_of(b'{"a":NaN}'), "NaN is not JSON"),
    "huge int": (file_of(b'{"a":' + b"9" * 5000 + b"}"), "not valid JSON"),
    "deep": (file_of(b'{"a":' + b"[" * 100_000 + b"}"), "not valid JSON"),
    "utf-8": (file_of(b'{"\xff":1}'), "not valid JSON"),
    "twice": (file_of(b'{"a":1,"a":1}'), "'a' is there twice"),
    "metadata": (file_of({"__metadata__": {"a": 1}}), "__metadata__: is not a table of strings"),
    "name": (file_of({"a\nb": entry()}, 8), "cannot be a name"),
    "lone surrogate": (file_of({"\ud800": entry()}, 8), "cannot be a name"),
    "entry": (file_of({"a": 3}), "tensor 'a': needs exactly"),
    "more keys": (file_of({"a": entry(x=1)}, 8), "tensor 'a': needs exactly"),
    "dtype": (file_of({"a": entry("F31")}, 8), "tensor 'a': dtype 'F31' is not known; allowed: BOOL"),
    "dtype list": (file_of({"a": entry(["F32"])}, 8), "is not known"),
    "dims": (file_of({"a": entry(shape=[1] * 9)}, 8), "tensor 'a': shape"),
    "million dims": (file_of({"a": entry(shape=[1] * 10**6)}, 8), "tensor 'a': shape"),
    "negative": (file_of({"a": entry(shape=[-2])}, 8), "tensor 'a': shape"),
    "float": (file_of({"a": entry(shape=[2.0])}, 8), "tensor 'a': shape"),
    "bool": (file_of({"a": entry("U8", [True], [0, 1])}, 1), "tensor 'a': shape"),
    "offsets": (file_of({"a": entry(offsets=[0])}, 8), "tensor 'a': data_offsets"),
    "reversed": (file_of({"a": entry(offsets=[8, 0])}, 8), "tensor a: F32 of shape"),
    "size": (file_of({"a": entry(shape=[3])}, 8), r"tensor a: F32 of shape \(3,\) does not fill"),
    "wrap": (file_of({"a": entry(shape=[1 << 61, 8], offsets=[0, 0])}), "tensor a: .* does not fill"),
    "hidden by a zero": (file_of({"a": entry(shape=[0, 1 << 61, 8], offsets=[0, 0])}), "tensor a: .* does not fill"),
    "overlap": (file_of({"a": entry(), "b": entry(offsets=[4, 12])}, 12), "tensor b: overlaps with tensor a"),
    "gap": (file_of({"a": entry(offsets=[4, 12])}, 12), "tensor a: begins at byte 4"),
    "cut": (file_of({"a": entry()}, 7), "tensor a: ends at byte 8 of 7; the file is cut"),
    "trailing": (file_of({"a": entry()}, 9), "1 bytes after the last tensor"),
    "pickle": (b"\x80\x04\x95" + bytes(64), PICKLE_SIGNS),
    "zip": (b"PK\x03\x04" + bytes(64), PICKLE_SIGNS),
    "gguf": (b"GGUF" + bytes(64), "GGUF"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_damage_is_named_in_one_line(case: str, tmp_path: Path) -> None:
    data, words = HEADERS[case]
    path = tmp_path / SINGLE
    path.write_bytes(data)
    with pytest.raises(TerakoyaError, match=words) as caught:
        open_weights(tmp_path)
    assert caught.value.place.startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.PTH", "x.ckpt", "x.pkl"])
def test_pickles_are_refused_unread(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(TerakoyaError, match=PICKLE_SIGNS):
            open_weights(path)


def test_folders_without_weights_say_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(TerakoyaError, match=r"neither model\.safetensors nor"):
        open_weights(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "adapter.safetensors")
    with pytest.raises(TerakoyaError, match=r"name the file: adapter\.safetensors"):
        open_weights(tmp_path)
    assert open_weights(tmp_path / "adapter.safetensors").keys() == ("a",)
    with pytest.raises(TerakoyaError, match="is not there"):
        open_weights(tmp_path / "nowhere")
    with pytest.raises(TerakoyaError, match="cannot be opened"):
        open_weights(tmp_path / "nowhere.safetensors")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    save_weights(folder, {"a": torch.ones(4), "b": torch.zeros(4)}, max_shard_bytes=16)
    return folder


def relisted(folder: Path, **changes: object) -> None:
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    index["weight_map"] = {k: v for k, v in (index["weight_map"] | changes).items() if v is not None}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ESCAPES = (
    "../out.safetensors",
    "/out.safetensors",
    "sub/x.safetensors",
    "..",
    "",
    ".hidden.safetensors",
    "x\0.safetensors",
)


@pytest.mark.parametrize("file", [*ESCAPES, "C:\\x.safetensors", "a" * 300 + ".safetensors"])
def test_an_index_names_plain_files(sharded: Path, file: str) -> None:
    save_file({"b": torch.ones(1)}, sharded.parent / "out.safetensors")
    relisted(sharded, b=file)
    with pytest.raises(TerakoyaError, match=r"weight_map: .*not a plain name"):
        open_weights(sharded)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "../x.pt"])
def test_an_index_does_not_name_pickles(sharded: Path, file: str) -> None:
    relisted(sharded, b=file)
    with pytest.raises(TerakoyaError, match=PICKLE_SIGNS):
        open_weights(sharded)


def test_links_do_not_lead_out(sharded: Path) -> None:
    outside = sharded.parent / "out.safetensors"
    outside.write_bytes((sharded / TWO).read_bytes())
    (sharded / TWO).rename(sharded / "inside.safetensors")
    (sharded / TWO).symlink_to("inside.safetensors")
    assert len(open_weights(sharded)) == 2
    (sharded / TWO).unlink()
    (sharded / TWO).symlink_to(outside)
    with pytest.raises(TerakoyaError, match="leads out of the folder"):
        open_weights(sharded)
    (sharded / TWO).unlink()
    (sharded / TWO).symlink_to(TWO)  # to itself
    with pytest.raises(TerakoyaError, match="is missing"):
        open_weights(sharded)
    lone = sharded.parent / "lone"
    lone.mkdir()
    (lone / SINGLE).symlink_to(outside)
    with pytest.raises(TerakoyaError, match="leads out of the folder"):
        open_weights(lone)


def test_a_hub_cache_opens(sharded: Path) -> None:
    repo = sharded.parent / "models--terakoya--tiny"
    snapshot = repo / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for i, path in enumerate(sharded.iterdir()):
        path.rename(repo / "blobs" / f"{i}")
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    assert open_weights(snapshot).get("a").tolist() == [1.0] * 4


def test_index_and_shards_agree(sharded: Path) -> None:
    relisted(sharded, c=ONE)
    with pytest.raises(TerakoyaError, match=f"tensor c: is not in {ONE}"):
        open_weights(sharded)
    relisted(sharded, c=None, b=ONE)
    with pytest.raises(TerakoyaError, match="tensor b: is not in"):
        open_weights(sharded)
    save_file({"a": torch.ones(1), "z": torch.ones(1)}, sharded / ONE)
    relisted(sharded, b=TWO)
    with pytest.raises(TerakoyaError, match="tensor z: is not in the index"):
        open_weights(sharded)
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, sharded / ONE)
    with pytest.raises(TerakoyaError, match=f"{TWO}, tensor b: is also in {ONE}"):
        open_weights(sharded)
    (sharded / TWO).unlink()
    with pytest.raises(TerakoyaError, match=f"{TWO}.*is missing"):
        open_weights(sharded)


def test_two_sets_of_weights_are_one_too_many(sharded: Path) -> None:
    save_file({"a": torch.ones(1)}, sharded / SINGLE)
    with pytest.raises(TerakoyaError, match="holds both"):
        open_weights(sharded)
    assert len(open_weights(sharded / SINGLE)) == 1
    assert len(open_weights(sharded / INDEX)) == 2


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"weight_map":[]}', b'{"weight_map":{"a":3}}', b"\xff"])
def test_broken_index(sharded: Path, text: bytes) -> None:
    (sharded / INDEX).write_bytes(text)
    with pytest.raises(TerakoyaError, match="index") as caught:
        open_weights(sharded)
    assert "\n" not in str(caught.value)


def test_panics_of_the_library_become_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As Rust's panics arrive: not an Exception."""

    def fail(error: BaseException) -> Callable[..., None]:
        def call(*_: object, **__: object) -> None:
            raise error

        return call

    save_weights(tmp_path, {"a": torch.ones(1)})
    monkeypatch.setattr(weights, "safe_open", fail(PanicException("index out of\nbounds")))
    with pytest.raises(TerakoyaError, match="cannot be read: index out of bounds"):
        open_weights(tmp_path)
    monkeypatch.setattr(weights, "safe_open", fail(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        open_weights(tmp_path)


def test_mutants_are_read_or_refused(
    tmp_path: Path, damage: Callable[[random.Random, bytes], bytes], traced_peak: Callable[[], int]
) -> None:
    path, rng, tally = tmp_path / SINGLE, random.Random(2), [0, 0]
    save_weights(tmp_path, {"猫": torch.ones(2, 3), "b": torch.ones(5).byte(), "c": torch.ones(0, 2).half()})
    seed = path.read_bytes()
    for _ in range(5000):
        path.write_bytes(damage(rng, seed))
        refusal = refused(path)
        assert "\n" not in refusal
        tally[bool(refusal)] += 1
    assert min(tally) > 100, tally  # both outcomes happen, or the mutator is worthless
    assert traced_peak() < 2 << 20


def refused(path: Path) -> str:
    """Read everything; return why the file was refused, or "". Anything but TerakoyaError fails the test."""
    try:
        got = open_weights(path)
    except TerakoyaError as error:
        return str(error)
    with safe_open(path, framework="pt") as theirs:  # what we accept the library accepts, and says the same of
        for name in got:
            assert same(got.get(name), theirs.get_tensor(name))
            assert tuple(got.get(name).shape) == got.shape(name)
        assert set(theirs.keys()) == set(got)
    return ""


def test_ranks_and_types_cover_each_other() -> None:
    assert set(weights.DTYPES) == set(safefile.SIZES)
    for name, dtype in weights.DTYPES.items():
        assert dtype.itemsize == safefile.SIZES[name]
