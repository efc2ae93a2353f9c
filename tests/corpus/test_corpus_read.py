from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import zstandard

from terakoya.corpus import Document, Skipped, read, stream
from terakoya.errors import TerakoyaError

JA = "いろは\r\n漢字 ﾊﾝｶｸ 👩‍👩‍👧‍👦\n"


def rows(*records: dict) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


def packed(data: bytes, frames: int = 1) -> bytes:
    step = -(-len(data) // frames)
    return b"".join(zstandard.compress(data[i : i + step]) for i in range(0, len(data), step))


def message(path: Path) -> str:
    with pytest.raises(TerakoyaError) as error:
        list(read(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    (root / "b" / "deep").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "b" / "deep" / "z.TXT").write_bytes(b"\xef\xbb\xbf" + JA.encode())
    (root / "b.md").write_text("# 題", encoding="utf-8")
    (root / "B.py").write_text("x = 1", encoding="utf-8")
    (root / "c.jsonl").write_bytes(rows({"text": "一", "license": "CC0-1.0", "lang": "ja"}, {"text": "\n "}) + b"\n\n")
    (root / "d.jsonl.zst").write_bytes(packed(rows(*({"text": f"行{i}", "id": i} for i in range(3))), frames=4))
    (root / "e.txt.zst").write_bytes(packed(JA.encode(), frames=2))
    (root / "f.bin").write_bytes(b"\xff")
    (root / ".hidden.txt").write_bytes(b"\xff")
    (root / ".git" / "x.txt").write_bytes(b"\xff")
    (root / "link").symlink_to(root / "b")
    skipped: list[Skipped] = []
    assert list(read(root, skipped)) == [
        Document("x = 1", "corpus/B.py", language="code"),
        Document("# 題", "corpus/b.md"),
        Document(JA, "corpus/b/deep/z.TXT"),
        Document("一", "corpus/c.jsonl#1", "CC0-1.0", "ja"),
        *(Document(f"行{i}", f"corpus/d.jsonl.zst#{i + 1}") for i in range(3)),
        Document(JA, "corpus/e.txt.zst"),
    ]
    assert {(s.source, s.reason) for s in skipped} == {
        ("corpus/c.jsonl#2", "blank"),
        ("corpus/f.bin", "unknown kind of file"),
        ("corpus/link", "link to a folder"),
    }


def test_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("本", encoding="utf-8")
    assert list(read(tmp_path / "a.txt")) == [Document("本", "a.txt")]
    assert list(read(str(tmp_path / "a.txt"))) == [Document("本", "a.txt")]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.bin", b"x", "allowed: .txt, .md"),
        ("a.txt", b"", "holds no document"),
        ("a.txt", "ab漢字".encode("cp932"), "a.txt: is not UTF-8 at byte 2 (0x8a)"),
        ("a.txt.zst", packed(b"ok\xe3\x81"), "a.txt.zst: is not UTF-8 at byte 2 (0xe3)"),
        ("a.jsonl", rows({"text": "あ"}) + b'{"text": "\xff"}\n', "a.jsonl:2: is not UTF-8 at byte 26 (0xff)"),
        (
            "a.jsonl",
            rows({"text": "x"}, {"body": "y", "id": 1}),
            "a.jsonl:2: has no field 'text'; fields seen: body, id",
        ),
        ("a.jsonl", rows({}), "fields seen: none"),
        ("a.jsonl", rows({"text": None}), "has a field 'text' that is not a string"),
        ("a.jsonl", b'["text"]\n', "a.jsonl:1: is a JSON list"),
        ("a.jsonl", b'{"text": \n', "a.jsonl:1: is not JSON"),
        ("a.jsonl", b"[" * 200_000, "a.jsonl:1: is JSON nested too deeply"),
        ("a.jsonl", b'{"text": "x", "n": ' + b"1" * 9999 + b"}", "a.jsonl:1: is not JSON"),
        ("a.jsonl", b'{"text": "a\\ud800"}', "a.jsonl:1: holds half of a surrogate pair at character 1"),
        ("a.jsonl.zst", b"not zstd at all", "is not sound zstd data"),
        ("a.jsonl.zst", packed(rows({"text": "x" * 9999}))[:-5], "ends in the middle of a zstd frame"),
        ("a.jsonl.zst", packed(rows({"text": "x"})) + b"\0tail", "is not sound zstd data"),
        ("a.parquet", b"PAR1 not really PAR1", "cannot be read as parquet"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert said in message(tmp_path / name)


def test_missing_and_empty_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(TerakoyaError, match="does not exist"):
        read(tmp_path / "nowhere")  # at once, not when first asked
    (tmp_path / "x.bin").write_bytes(b"1")
    assert "holds no document (1 passed over)" in message(tmp_path)
    (tmp_path / "a.txt").mkdir()
    (tmp_path / "a.txt" / "b.txt").symlink_to(tmp_path / "gone.txt")
    skipped: list[Skipped] = []
    with pytest.raises(TerakoyaError, match="holds no document"):
        list(read(tmp_path / "a.txt", skipped))
    assert [s.reason for s in skipped] == ["not a regular file"]
    os.mkfifo(tmp_path / "a.txt" / "pipe.txt")  # must not wait for a writer
    assert "2 passed over" in message(tmp_path / "a.txt")


def test_lines_and_files_have_a_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_LINE", 100)
    monkeypatch.setattr(stream, "MAX_TEXT", 300)
    (tmp_path / "a.jsonl").write_bytes(rows({"text": "x" * 88}, {"text": "x" * 89}))
    assert len(next(read(tmp_path / "a.jsonl")).text) == 88
    assert "a.jsonl:2: is a line of more than 100 bytes" in message(tmp_path / "a.jsonl")
    (tmp_path / "a.txt.zst").write_bytes(packed(b"x" * 301))
    assert "more than 300 bytes" in message(tmp_path / "a.txt.zst")


def test_a_zstd_bomb_stops_at_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_LINE", 2**20)
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(2**28))
    (tmp_path / "a.jsonl.zst").write_bytes(bomb)
    import tracemalloc

    tracemalloc.start()
    assert "is a line of more than" in message(tmp_path / "a.jsonl.zst")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**28


def test_a_window_above_the_limit_is_refused(tmp_path: Path) -> None:
    params = zstandard.ZstdCompressionParameters(window_log=28, compression_level=1)
    packer = zstandard.ZstdCompressor(compression_params=params).compressobj()
    (tmp_path / "a.txt.zst").write_bytes(packer.compress(b"x" * 100_000) + packer.flush())
    assert "is not sound zstd data" in message(tmp_path / "a.txt.zst")


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": ["あ", "い"], "lang": ["ja", None], "other": [1, 2]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert list(read(tmp_path / "a.parquet")) == [
        Document("あ", "a.parquet#1", language="ja"),
        Document("い", "a.parquet#2"),
    ]
    parquet.write_table(arrow.table({"text": ["あ", None]}), tmp_path / "b.parquet")
    assert "b.parquet:2: has a field 'text' that is not a string" in message(tmp_path / "b.parquet")
    parquet.write_table(arrow.table({"body": ["あ"]}), tmp_path / "c.parquet")
    assert "has no column 'text'; columns seen: body" in message(tmp_path / "c.parquet")


def test_shared_corpora_read_whole(shared_data: Path) -> None:
    path = shared_data / "pretrain" / "ja_law.heldout.jsonl.zst"
    raw = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True).read()
    assert [d.text for d in read(path)] == [json.loads(line)["text"] for line in raw.splitlines()]
