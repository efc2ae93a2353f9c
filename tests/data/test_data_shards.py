from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terakoya.corpus import Document
from terakoya.data import Shards, build, format
from terakoya.errors import TerakoyaError
from tests.data.data_fakes import TEXTS, Bytes, documents, made


def stream(texts: list[str], style: str) -> list[int]:
    prefix, suffix = Bytes(style).wrap()
    return [i for text in texts for i in (*prefix, *text.encode(), *suffix)]


@pytest.mark.parametrize("style", ["prefix", "suffix", "both", "none"])
@pytest.mark.parametrize("shard_tokens", [1, 7, 64, 2**27])
def test_stream_is_the_documents_end_to_end(tmp_path: Path, style: str, shard_tokens: int) -> None:
    shards = made(tmp_path / "s", style=style, shard_tokens=shard_tokens)
    want = stream(TEXTS, style)
    assert shards.slice(0, shards.tokens).tolist() == want
    assert shards.documents == len(TEXTS)
    assert shards.text_bytes == sum(len(t.encode()) for t in TEXTS) == shards.index.token_bytes
    for i, text in enumerate(TEXTS):
        assert shards.slice(*shards.starts[i : i + 2]).tolist() == stream([text], style)
        assert shards.provenance(i) == {"source": f"made#{i}", "licence": "CC0-1.0", "language": "ja"}
    for a, b in [(0, 0), (3, 3), (5, 70), (63, 65), (shards.tokens, shards.tokens)]:
        assert shards.slice(a, b).tolist() == want[a:b]
    assert shards.token_bytes.tolist() == [1] * 256 + [0 if style != "none" else 5]


def test_wide_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    assert build(documents(), Bytes(vocab_size=2**16), tmp_path / "a").slice(0, 9).dtype == np.dtype("<u2")
    assert build(documents(), Bytes(vocab_size=2**16 + 1), tmp_path / "b").slice(0, 9).dtype == np.dtype("<u4")


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    a, b = (made(tmp_path / name, shard_tokens=50) for name in "ab")
    files = sorted(p.name for p in a.folder.iterdir())
    assert files == sorted(p.name for p in b.folder.iterdir())
    assert all((a.folder / name).read_bytes() == (b.folder / name).read_bytes() for name in files)
    assert a.fingerprint == b.fingerprint != made(tmp_path / "c", TEXTS[1:], shard_tokens=50).fingerprint


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "s")
    assert Shards.open(tmp_path / "s", "bytes-prefix-257", verify=True).documents == len(TEXTS)
    with pytest.raises(TerakoyaError, match="these tokens were made with another tokenizer"):
        Shards.open(tmp_path / "s", "other")


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    made(tmp_path / "s", TEXTS[:3], shard_tokens=30)
    for path in sorted((tmp_path / "s").iterdir()):
        whole = path.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 60)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            with pytest.raises(TerakoyaError, match=path.name) as error:
                Shards.open(tmp_path / "s", verify=True)
            assert "\n" not in str(error.value)
        path.write_bytes(whole[:-2])  # more than the last line end of the index
        with pytest.raises(TerakoyaError, match=path.name):
            Shards.open(tmp_path / "s")
        path.unlink()
        with pytest.raises(TerakoyaError, match=rf"{path.name}.*missing"):
            Shards.open(tmp_path / "s")
        path.write_bytes(whole)
    Shards.open(tmp_path / "s", verify=True)


BAD = [b"", b"[]", b"{", b"null", b"\xff", b'{"kind": 1}', b"[" * 100_000, b"1" * 5000, b'{"a":' * 50_000]


@pytest.mark.parametrize("data", BAD)
def test_malformed_index_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "index.json").write_bytes(data)
    with pytest.raises(TerakoyaError, match=r"index\.json") as error:
        Shards.open(tmp_path)
    assert "\n" not in str(error.value)


VALUES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | st.just([[1]])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_hostile_index_with_a_right_fingerprint(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    base = tmp_path_factory.getbasetemp() / "hostile"
    if not base.exists():
        made(base, TEXTS[:3], shard_tokens=30)
        (base / "kept.json").write_bytes((base / "index.json").read_bytes())
    body = json.loads((base / "kept.json").read_text(encoding="utf-8"))
    del body["fingerprint"]
    kept = dict(body)
    name = data.draw(st.sampled_from(sorted(body)))
    if name == "files" and data.draw(st.booleans()):
        file = dict(body["files"][0])
        file[data.draw(st.sampled_from(sorted(file)))] = data.draw(VALUES | st.just("../../etc/passwd"))
        body["files"] = [file, *body["files"][1:]]
    else:
        body[name] = data.draw(VALUES)
    body["fingerprint"] = format._hash(body)
    (base / "index.json").write_text(json.dumps(body), encoding="utf-8")
    try:
        shards = Shards.open(base)
    except TerakoyaError:
        return
    assert shards.tokens == kept["tokens"]
    assert shards.documents == kept["documents"]


@pytest.mark.parametrize(
    ("docs", "message"),
    [
        ([], "no document"),
        ([Document("", "x#1")], "x#1: is an empty document"),
        ([Document("a\ud800", "x#2")], "x#2: holds half of a surrogate pair"),
    ],
)
def test_bad_documents(tmp_path: Path, docs: list[Document], message: str) -> None:
    with pytest.raises(TerakoyaError, match=message):
        build(docs, Bytes(), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(TerakoyaError, match=r"made#0.*outside 0 to 99"):
        build(documents(), Bytes("none", 100), tmp_path / "s")


def test_existing_folder_is_kept(tmp_path: Path) -> None:
    fingerprint = made(tmp_path / "s").fingerprint
    with pytest.raises(TerakoyaError, match="exists already"):
        made(tmp_path / "s")
    assert Shards.open(tmp_path / "s", verify=True).fingerprint == fingerprint


@pytest.mark.parametrize("call", ["open", "fsync", "rename", "mkdir"])
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*{"fsync": (os, "fsync")}.get(call, (Path, call)), full)
    with pytest.raises(TerakoyaError, match="cannot be written: No space left on device") as error:
        made(tmp_path / "s")
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a: real(Path("/dev/full") if "tokens-" in self.name else self, *a))
    with pytest.raises(TerakoyaError, match="No space left on device"):
        made(tmp_path / "s", ["x" * 200_000])
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_killed_build_leaves_no_folder(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "import tests.data.data_fakes as f; from terakoya.data import build\n"
        "def docs():\n    yield from f.documents(['x' * 5000] * 2000)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "build(docs(), f.Bytes(), sys.argv[1])"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s"), str(Path(__file__).parents[2])], check=False)
    assert ran.returncode == -signal.SIGKILL
    assert not (tmp_path / "s").exists()
    assert all(path.name.startswith(".s.partial-") for path in tmp_path.iterdir())
    assert made(tmp_path / "s").documents == len(TEXTS)


def test_checksums_are_plain_sha256(tmp_path: Path) -> None:
    shards = made(tmp_path / "s")
    for file in shards.index.files:
        assert hashlib.sha256((shards.folder / file.name).read_bytes()).hexdigest() == file.sha256
