"""Checkpoints: exact round trips, every flipped bit found and named, failing disks, keep-k."""

from __future__ import annotations

import errno
import json
import os
import random
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from terakoya.errors import TerakoyaError
from terakoya.train import manifest, tensorfile
from terakoya.train.checkpoint import Checkpoint, Checkpoints
from terakoya.train.files import Files
from terakoya.train.manifest import CorruptCheckpoint

NAN_BITS = [0x7FC00001, 0x7F800001, -1, 0x00000001, -(2**31), 0x3F800000]  # payloads, a denormal, minus zero


def every_kind() -> dict[str, torch.Tensor]:
    """One tensor of every dtype, and the awkward shapes."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, dtype in tensorfile.DTYPES.items():
        raw = torch.randint(0, 256, (3 * 5 * dtype.itemsize,), generator=generator, dtype=torch.uint8)
        tensors[f"kind.{name}"] = (raw % 2 if dtype is torch.bool else raw).view(dtype).reshape(3, 5)
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return tensors | {
        "nan": torch.tensor(NAN_BITS, dtype=torch.int32).view(torch.float32),
        "nan.bf16": torch.tensor([0x7FC1, 0x7F81, -1], dtype=torch.int16).view(torch.bfloat16),
        "scalar": torch.tensor(3.5),
        "scalar.int64": torch.tensor(2**62 + 1),
        "empty": torch.empty(0),
        "empty.shape": torch.empty(3, 0, 2, dtype=torch.bfloat16),
        "transposed": base.t(),
        "sliced": base[1:3, ::2],
        "strided": base.reshape(-1)[::2],
        "conjugate": torch.tensor([1 + 2j, -3j], dtype=torch.complex64).conj(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "重み🧑‍🏫": torch.ones(1),
    }


def small(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 4, generator=generator)
    names = {"layers.0.attn.q.weight.exp_avg": weight * 0.1, "step": torch.tensor(seed, dtype=torch.int64)}
    return {"model/model": {"layers.0.attn.q.weight": weight}, "optimizer": names}


EXTRA = {"model/config.json": '{"名": "寺子屋 ﾃﾗｺﾔ 👩🏽‍🏫"}'.encode(), "empty": b""}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return list(left) == list(right) and all(
        left[n].dtype == right[n].dtype
        and left[n].shape == right[n].shape
        and bytes(tensorfile.raw(left[n])) == bytes(tensorfile.raw(right[n]))
        for n in left
    )


def holds(checkpoint: Checkpoint | None, seed: int) -> bool:
    assert checkpoint is not None
    return all(same(checkpoint.tensors(stem), tensors) for stem, tensors in small(seed).items())


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    tensors, meta = every_kind(), {"seed": 7, "loss": 0.1, "data": {"行": [1, None, True]}}
    path = Checkpoints(tmp_path / "a" / "b").save(100, {"model/model": tensors, "none": {}}, meta, EXTRA)
    assert path.name == "step-00000100"
    found = Checkpoints(tmp_path / "a" / "b").latest()
    assert found is not None
    assert (found.path, found.step, found.meta) == (path, 100, meta)
    assert same(found.tensors("model/model"), tensors)
    assert found.tensors("none") == {}
    assert {name: found.read(name) for name in EXTRA} == EXTRA


def test_files_are_ordinary_safetensors(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(1, {"model/model": every_kind()}, {})
    data = (path / "model" / "model.safetensors").read_bytes()
    assert same(dict(sorted(safetensors.torch.load(data).items())), dict(sorted(every_kind().items())))
    with safetensors.safe_open(path / "model" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    for size in range(1, 9):  # whatever the length of the header, every tensor begins aligned
        kinds = {f"{'x' * size}{name}": tensor for name, tensor in every_kind().items()}
        _, spans = tensorfile.layout(kinds)
        assert all(spans[name][0] % tensor.element_size() == 0 for name, tensor in kinds.items())


def test_manifest_says_where_each_tensor_lies(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(1, small(), {})
    body = json.loads((path / manifest.NAME).read_text(encoding="utf-8"))
    entry = body["files"]["optimizer.safetensors"]["tensors"]["layers.0.attn.q.weight.exp_avg"]
    start, end = entry["bytes"]
    data = (path / "optimizer.safetensors").read_bytes()[start:end]
    assert data == bytes(tensorfile.raw(small()["optimizer"]["layers.0.attn.q.weight.exp_avg"]))


def test_every_flipped_bit_is_found_and_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(3, small(), {"名": "テスト"}, EXTRA)
    flips = 0
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name, data = file.relative_to(path).as_posix(), bytearray(file.read_bytes())
        entries = {} if name == manifest.NAME else Checkpoint.open(path).files[name].tensors
        with open(file, "r+b", buffering=0) as writer:
            for bit in range(8 * len(data)):
                at = bit // 8
                os.pwrite(writer.fileno(), bytes([data[at] ^ 1 << bit % 8]), at)
                with pytest.raises(CorruptCheckpoint) as caught:
                    Checkpoint.open(path).verify()
                message, hit = str(caught.value), [n for n, t in entries.items() if t.start <= at < t.end]
                assert name in message.splitlines()[-1], message
                assert all(f"tensor {n!r}" in message for n in hit), message
                os.pwrite(writer.fileno(), bytes([data[at]]), at)
                flips += 1
    checkpoint = checkpoints.latest()
    assert holds(checkpoint, 0), "the flips were not undone"
    assert flips > 10_000


def test_loading_finds_damage_without_verify(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(3, small(), {}, EXTRA)
    checkpoint, rng = Checkpoint.open(path), random.Random(0)
    for name in [*checkpoint.files]:
        data = (path / name).read_bytes()
        for _ in range(40 if data else 0):
            broken = bytearray(data)
            for _ in range(rng.randint(1, 20)):
                broken[rng.randrange(len(data))] ^= rng.randint(1, 255)
            cut = bytes(broken[: rng.randrange(len(data))]) if rng.random() < 0.2 else bytes(broken)
            (path / name).write_bytes(cut)
            stem = name.removesuffix(".safetensors")
            with pytest.raises(CorruptCheckpoint, match=name):
                checkpoint.read(name) if stem == name else checkpoint.tensors(stem)
        (path / name).write_bytes(data)


def test_damage_message_reads_well(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(3, small(), {})
    entry = Checkpoint.open(path).files["optimizer.safetensors"].tensors["layers.0.attn.q.weight.exp_avg"]
    file = path / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[entry.start + 5] ^= 4
    file.write_bytes(data)
    with pytest.raises(CorruptCheckpoint) as caught:
        Checkpoint.open(path).tensors("optimizer")
    where = f"bytes {entry.start} to {entry.end}"
    expected = f"{file}: tensor 'layers.0.attn.q.weight.exp_avg' is damaged (checksum of {where})"
    assert str(caught.value) == expected


def sealed(body: object) -> bytes:
    """A manifest with a right checksum around a wrong body."""
    text = json.dumps(body, indent=1).encode().removesuffix(b"\n}")
    return text + manifest._seal(text)


def test_hostile_manifests_are_refused(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(3, small(), {}, EXTRA)
    where = path / manifest.NAME
    good = json.loads(where.read_bytes())
    del good["crc32"]
    assert manifest.parse(sealed(good), where) == manifest.parse(where.read_bytes(), where)

    def wrong(*keys: str, value: object) -> bytes:
        body = json.loads(json.dumps(good))
        inner = body
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return sealed(body)

    tensors = ("files", "optimizer.safetensors", "tensors")
    step = (*tensors, "step")
    entry = good["files"]["empty"]
    cases = [
        *(wrong(*step, "bytes", value=v) for v in ([0, 8], [8, 0], [-8, 0], [0, 2**70], "ab", None, [1.0, 9.0])),
        *(wrong(*step, "shape", value=v) for v in ([2], [2**62, 2**62], [0, 2**70], [-1], ["1"], 3)),
        *(wrong(*step, "dtype", value=v) for v in ("F128", None, [1])),
        *(wrong("files", name, value=entry) for name in ("../a", "/etc/passwd", "a/../b", "a\\b", "", ".", "a//b")),
        *(wrong("files", "optimizer.safetensors", "size", value=v) for v in (0, 10**12, True, "1")),
        *(wrong("step", value=v) for v in (-1, 1.5, "3", None)),
        *(wrong(key, value=v) for key in ("files", "meta") for v in ([], 3, None)),
        *(sealed(v) for v in ({}, [1], {"format": 1})),
        b"",
        b"{}",
    ]
    for case in cases:
        with pytest.raises(CorruptCheckpoint):
            manifest.parse(case, where)
    with pytest.raises(TerakoyaError, match="another version"):
        manifest.parse(wrong("format", value=2), where)


def test_missing_files_and_wrong_names(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(3, small(), {}, EXTRA)
    with pytest.raises(TerakoyaError, match=r"did you mean 'optimizer\.safetensors'"):
        Checkpoint.open(path).tensors("optimiser")
    (path / "optimizer.safetensors").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"optimizer\.safetensors: cannot be read: No such file"):
        Checkpoint.open(path).verify()
    with pytest.raises(CorruptCheckpoint, match="no checkpoint is whole"):
        checkpoints.latest()
    with pytest.raises(CorruptCheckpoint, match="cannot be read"):
        Checkpoint.open(tmp_path / "nowhere")
    path.rename(tmp_path / "step-00000009")
    with pytest.raises(CorruptCheckpoint):
        checkpoints.latest()
    assert Checkpoints(tmp_path / "new").latest() is None


def test_more_bytes_than_written_and_a_wrong_name_are_damage(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(3, small(), {}, EXTRA)
    with open(path / "optimizer.safetensors", "ab") as file:
        file.write(b"x")
    with pytest.raises(CorruptCheckpoint, match=r"optimizer\.safetensors: has \d+ bytes where \d+ were written"):
        Checkpoint.open(path).verify()
    Checkpoints(tmp_path).save(3, small(), {}).rename(tmp_path / "step-00000004")
    assert Checkpoint.open(tmp_path / "step-00000004").step == 3
    with pytest.raises(CorruptCheckpoint, match="holds step 3"):
        Checkpoints(tmp_path).latest()


def test_bytes_are_on_the_disk_when_fsync_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer that is flushed after the fsync makes the fsync an empty gesture."""
    synced: dict[int, int] = {}

    def spy(handle: int) -> None:
        status = os.fstat(handle)
        synced[status.st_ino] = status.st_size

    monkeypatch.setattr(os, "fsync", spy)
    path = Checkpoints(tmp_path).save(3, small(), {}, EXTRA)
    for place in [*path.rglob("*"), path, tmp_path]:
        assert place.stat().st_ino in synced, f"{place} was never synced"
        assert place.is_dir() or synced[place.stat().st_ino] == place.stat().st_size, f"{place} was synced too early"


def test_a_good_one_put_aside_outlives_a_failed_save_over_a_broken_one(tmp_path: Path) -> None:
    class NoName(Files):
        def rename(self, source: Path, target: Path) -> None:
            if target.name == "step-00000005":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            super().rename(source, target)

    Checkpoints(tmp_path).save(5, small(1), {}).rename(tmp_path / "step-00000005.old")
    (Checkpoints(tmp_path).save(5, small(2), {}) / manifest.NAME).write_bytes(b"broken")
    with pytest.raises(TerakoyaError, match=os.strerror(errno.EIO)):
        Checkpoints(tmp_path, files=NoName()).save(5, small(3), {})
    assert holds(Checkpoints(tmp_path).latest(), 1)


def test_a_broken_newer_one_is_passed_over_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, small(step), {})
    (tmp_path / "step-00000003" / manifest.NAME).write_bytes(b"")
    file = tmp_path / "step-00000002" / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    found = checkpoints.latest()
    assert holds(found, 1)
    assert checkpoints.steps() == [1, 2, 3]
    assert ["step-00000003" in checkpoints.rejected[0], "step-00000002" in checkpoints.rejected[1]] == [True, True]
    assert len(caplog.records) == 2


def test_what_cannot_be_stored_is_refused_before_it_shows(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, small(1), {})
    wrong = [
        lambda: checkpoints.save(2, small(), {"loss": float("nan")}),
        lambda: checkpoints.save(2, {"m": {"a": torch.empty(2, device="meta")}}, {}),
        lambda: checkpoints.save(2, {"m": {"a": torch.empty(2, dtype=torch.complex128)}}, {}),
        lambda: checkpoints.save(2, {"m": {}}, {}, {"m.safetensors": b""}),
        lambda: checkpoints.save(2, {"../m": {}}, {}),
        lambda: checkpoints.save(2, {}, {}, {manifest.NAME: b""}),
    ]
    for attempt in wrong:
        with pytest.raises(ValueError):  # noqa: PT011 - which of our own mistakes it is does not matter here
            attempt()
    assert visible(tmp_path) == ["step-00000001"]
    with pytest.raises(TerakoyaError, match="keep"):
        Checkpoints(tmp_path, keep=0)


def test_prune_keeps_the_newest_and_sweeps(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 100_000_000):
        checkpoints.save(step, small(step % 10), {})
    for name in (".tmp-9-1", ".tmp-del-step-00000001-7", f".tmp-9-{os.getpid()}"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "half").write_bytes(b"half")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    checkpoints.prune()
    assert visible(tmp_path) == ["notes.txt", "step-00000003", "step-100000000"]
    Checkpoints(tmp_path / "none").prune()


def test_prune_never_removes_the_last_whole_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, small(step), {})
    (tmp_path / "step-00000004" / "optimizer.safetensors").write_bytes(b"")
    (tmp_path / "step-00000003" / manifest.NAME).write_bytes(b"")
    checkpoints.prune()
    assert checkpoints.steps() == [2, 4]
    assert holds(checkpoints.latest(), 2)
    (tmp_path / "step-00000002" / manifest.NAME).write_bytes(b"")
    checkpoints.save(1, small(1), {})
    (tmp_path / "step-00000001" / manifest.NAME).write_bytes(b"")
    checkpoints.prune()
    assert checkpoints.steps() == [1, 2, 4], "nothing is whole: nothing may go"


def test_the_same_step_may_be_saved_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for seed in (1, 2, 3):
        checkpoints.save(5, small(seed), {})
        assert holds(checkpoints.latest(), seed)
    checkpoints.prune()
    assert visible(tmp_path) == ["step-00000005"]
    (tmp_path / "step-00000005" / manifest.NAME).write_bytes(b"broken")
    checkpoints.save(5, small(4), {})
    assert holds(checkpoints.latest(), 4)


def test_a_save_killed_between_its_renames_is_mended(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(4, small(4), {})
    checkpoints.save(5, small(5), {})
    (tmp_path / "step-00000005").rename(tmp_path / "step-00000005.old")
    assert holds(checkpoints.latest(), 5)
    checkpoints.prune()
    assert visible(tmp_path) == ["step-00000004", "step-00000005"]


class Failing(Files):
    """A disk that fails at operation `at`, or from there on; of a write half is done."""

    def __init__(self, at: int, code: int, forever: bool) -> None:
        self.at, self.code, self.forever, self.count = at, code, forever, 0

    def _maybe(self) -> bool:
        self.count += 1
        return self.count - 1 == self.at or (self.forever and self.count > self.at)

    def _fail(self) -> None:
        if self._maybe():
            raise OSError(self.code, os.strerror(self.code))

    def mkdir(self, path: Path) -> None:
        self._fail()
        super().mkdir(path)

    def write(self, path: Path, chunks: Iterable[bytes | memoryview]) -> None:
        if not self._maybe():
            return super().write(path, chunks)
        whole = b"".join(bytes(chunk) for chunk in chunks)
        path.write_bytes(whole[: len(whole) // 2])
        raise OSError(self.code, os.strerror(self.code))

    def rename(self, source: Path, target: Path) -> None:
        self._fail()
        super().rename(source, target)

    def syncdir(self, path: Path) -> None:
        self._fail()
        super().syncdir(path)

    def remove(self, path: Path) -> None:
        self._fail()
        super().remove(path)


def attempted(checkpoints: Checkpoints, step: int) -> str:
    """Save and prune; return the one line of an error, if there is one."""
    try:
        checkpoints.save(step, small(7), {}, EXTRA)
        checkpoints.prune()
    except TerakoyaError as error:
        return str(error)
    return ""


def failures() -> Iterator[tuple[int, int, bool]]:
    for at in range(40):
        for code in (errno.ENOSPC, errno.EIO):
            yield from ((at, code, forever) for forever in (False, True))


@pytest.mark.parametrize("step", [2, 3])
def test_a_failing_disk_leaves_the_old_and_nothing_half_done(tmp_path: Path, step: int) -> None:
    """Step 3 is new, step 2 is saved a second time; every operation of save and prune fails once, or from there on."""
    failed = 0
    for case, (at, code, forever) in enumerate(failures()):
        folder = tmp_path / str(case)
        for old in (1, 2):
            Checkpoints(folder).save(old, small(old), {})
        disk = Failing(at, code, forever)
        checkpoints, place = Checkpoints(folder, keep=1, files=disk), (at, code, forever)
        message = attempted(checkpoints, step)
        failed += bool(message)
        assert not message or os.strerror(code) in message.splitlines()[-1], place
        assert message or disk.count <= at or not forever, f"a failed operation was swallowed: {place}"
        again = Checkpoints(folder, keep=1)
        found = again.latest()
        assert holds(found, 7) or holds(found, 2), place
        assert again.rejected == [], f"something half-written is visible: {place}"
        again.save(step, small(8), {})
        again.prune()
        assert holds(again.latest(), 8), place
        assert visible(folder) == [f"step-{step:08d}"], place
    assert failed > 60


def test_two_sweepers_do_not_trip_over_each_other(tmp_path: Path) -> None:
    for number in range(30):
        folder = tmp_path / f".tmp-{number}-1" / "model"
        folder.mkdir(parents=True)
        for file in range(10):
            (folder / str(file)).write_bytes(b"x")
    errors: list[BaseException] = []

    def sweep() -> None:
        try:
            Checkpoints(tmp_path).prune()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=sweep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert visible(tmp_path) == []


def test_saving_in_a_thread_and_pruning_meet_safely(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    thread = threading.Thread(target=lambda: [checkpoints.save(step, small(step), {}) for step in range(10)])
    thread.start()
    while thread.is_alive():
        checkpoints.prune()
    thread.join()
    checkpoints.prune()
    assert visible(tmp_path) == ["step-00000009"]
    assert holds(checkpoints.latest(), 9)
