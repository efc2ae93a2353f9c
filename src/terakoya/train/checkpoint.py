"""Checkpoints that are either whole or not there, and that notice a flipped bit.

A checkpoint is written beside the others under a hidden name, every byte and name made durable, and only then given
its own name in one rename. So a process may be killed, or the power fail, at any instant: what can be seen is complete.
Reading checks each tensor against the manifest. One process writes to a folder at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch

from terakoya.errors import TerakoyaError, nearest
from terakoya.train import manifest, tensorfile
from terakoya.train.files import DISK, Files
from terakoya.train.manifest import JSON, CorruptCheckpoint, FileEntry, Manifest, TensorEntry

PIECE = 1 << 20  # bytes checked at a time: small enough to stay in the processor's cache
STEP = re.compile(r"step-(\d{8,})(\.old)?")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: where, which step, the notes saved with it, and what it should hold."""

    path: Path
    step: int
    meta: Mapping[str, JSON]
    files: Mapping[str, FileEntry]

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read and check the manifest only; raise CorruptCheckpoint where it is missing or damaged."""
        where = path / manifest.NAME
        with _reading(where):
            found = manifest.parse(where.read_bytes(), where)
        return cls(path, found.step, found.meta, found.files)

    def tensors(self, stem: str) -> dict[str, torch.Tensor]:
        """Load the tensors of file `stem`.safetensors on the CPU, each read once and checked against its checksum."""
        name = f"{stem}.safetensors"
        loaded: dict[str, torch.Tensor] = {}
        with self._open(name) as (file, entry):
            self._check_head(file, name, entry)
            for key, t in sorted(entry.tensors.items(), key=lambda item: item[1].start):
                tensor = torch.empty(t.shape, dtype=tensorfile.DTYPES[t.dtype])
                if _fill(file, tensorfile.raw(tensor)) != t.crc32:
                    raise self._damaged(name, key, t)
                loaded[key] = tensor
        return {key: loaded[key] for key in entry.tensors}

    def read(self, name: str) -> bytes:
        """Return the checked bytes of one of the other files, for instance "model/config.json"."""
        with self._open(name) as (file, entry):
            if entry.tensors:
                raise ValueError(f"{name} holds tensors: call tensors()")
            data = bytearray(entry.size)
            if _fill(file, memoryview(data)) != entry.crc32:
                raise CorruptCheckpoint(str(self.path / name), "is damaged (checksum)")
            return bytes(data)

    def verify(self) -> None:
        """Read everything; raise CorruptCheckpoint naming the first damaged file and tensor."""
        for name in self.files:
            with self._open(name) as (file, entry):
                self._check_head(file, name, entry)
                for key, t in sorted(entry.tensors.items(), key=lambda item: item[1].start):
                    if _checksum(file, t.end - t.start) != t.crc32:
                        raise self._damaged(name, key, t)

    def _entry(self, name: str) -> FileEntry:
        if name not in self.files:
            raise TerakoyaError(
                str(self.path), "is not in this checkpoint", given=name, allowed=list(self.files),
                hint=nearest(name, self.files),
            )  # fmt: skip
        return self.files[name]

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[tuple[FileIO, FileEntry]]:
        entry, where = self._entry(name), self.path / name
        with _reading(where), FileIO(where) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                raise CorruptCheckpoint(str(where), f"has {size} bytes where {entry.size} were written")
            yield file, entry

    def _check_head(self, file: FileIO, name: str, entry: FileEntry) -> None:
        if _checksum(file, entry.head) != entry.crc32:
            what = "checksum of the header" if entry.tensors else "checksum"
            raise CorruptCheckpoint(str(self.path / name), f"is damaged ({what})")

    def _damaged(self, name: str, key: str, entry: TensorEntry) -> CorruptCheckpoint:
        return CorruptCheckpoint(
            str(self.path / name),
            f"tensor {key!r} is damaged (checksum of bytes {entry.start} to {entry.end})",
        )


class Checkpoints:
    """The checkpoints of one run, in one folder; `rejected` says why `latest` passed over the ones it did."""

    def __init__(self, folder: Path, *, keep: int = 2, files: Files = DISK) -> None:
        if keep < 1:
            raise TerakoyaError("keep", "checkpoints would leave nothing to resume from", given=keep, allowed=">= 1")
        self.folder, self.keep, self.files = folder, keep, files
        self.rejected: list[str] = []
        self._one_writer = threading.Lock()  # a save in a background thread and a prune must not meet

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        meta: Mapping[str, JSON],
        extra: Mapping[str, bytes] | None = None,
    ) -> Path:
        """Write a checkpoint and return its folder once it is durable; an earlier save of this step is replaced.

        `tensors` is file stem -> name -> tensor: {"model/model": …} becomes model/model.safetensors. `extra` is
        relative path -> bytes. Raises TerakoyaError if the disk fails; earlier checkpoints are then as they were.
        Does not prune: call `prune` after it.
        """
        extra = extra or {}
        manifest.check_paths([*(f"{stem}.safetensors" for stem in tensors), *extra])
        target, hidden = self.folder / f"step-{step:08d}", self.folder / f".tmp-{step}-{os.getpid()}"
        with self._one_writer:
            try:
                self._make(self.folder)
                self.files.remove(hidden)
                self._write(hidden, step, tensors, meta, extra)
                self._make_way(target)
                self.files.rename(hidden, target)
                self.files.syncdir(self.folder)
            except BaseException as error:
                with contextlib.suppress(OSError):
                    self.files.remove(hidden)
                if isinstance(error, OSError):
                    raise self._failed(f"step {step} could not be saved", error) from error
                raise
        return target

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint that verifies, or None where there is none at all.

        A broken one is passed over with a warning, its reason in `rejected`. Raises CorruptCheckpoint if there are
        checkpoints but none of them is whole: to begin anew instead is not for us to decide.
        """
        self.rejected = []
        for path in self._found():
            try:
                return self._verified(path)
            except TerakoyaError as error:
                self.rejected.append(str(error))
                log.warning("passed over a checkpoint: %s", error)
        if self.rejected:
            raise CorruptCheckpoint(str(self.folder), f"no checkpoint is whole; the newest: {self.rejected[0]}")
        return None

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first, whether whole or not."""
        return sorted({_step(path) for path in self._found()})

    def prune(self) -> None:
        """Remove all but the `keep` newest checkpoints, and what killed saves left behind.

        Never removes the newest one that verifies: where none of those to keep is whole, the newest older one that
        is stays too, and where none at all is, all stay.
        """
        with self._one_writer:
            try:
                self._prune()
            except OSError as error:
                raise self._failed("could not be pruned", error) from error

    def _prune(self) -> None:
        for path in self._found():  # a save was killed between putting the old one aside and naming the new one
            if path.suffix == ".old" and not _superseded(path):
                self.files.rename(path, path.with_suffix(""))
        found = self._found()
        newest = sorted({_step(path) for path in found})[-self.keep :]
        kept = [path for path in found if _step(path) in newest and not _superseded(path)]
        others = [path for path in found if path not in kept]
        if others and not any(map(self._whole, kept)):
            spared = next(filter(self._whole, others), None)
            others = [path for path in others if spared is not None and path != spared]
        for path in others:
            self._put_away(path)
        if others:
            self.files.syncdir(self.folder)
        for path in sorted(self.folder.glob(".tmp-*")):
            self.files.remove(path)

    def _write(
        self,
        hidden: Path,
        step: int,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        meta: Mapping[str, JSON],
        extra: Mapping[str, bytes],
    ) -> None:
        self.files.mkdir(hidden)
        made = [hidden]
        entries: dict[str, FileEntry] = {}
        names = {f"{stem}.safetensors": stem for stem in tensors}
        for name in sorted([*names, *extra]):
            for folder in reversed((hidden / name).relative_to(hidden).parents):
                if hidden / folder not in made:
                    self.files.mkdir(hidden / folder)
                    made.append(hidden / folder)
            if name in names:
                entries[name] = self._write_tensors(hidden / name, tensors[names[name]])
            else:
                data = extra[name]
                self.files.write(hidden / name, [data])
                entries[name] = FileEntry(len(data), len(data), zlib.crc32(data), {})
        self.files.write(hidden / manifest.NAME, [manifest.dump(Manifest(step, meta, entries))])
        for folder in reversed(made):
            self.files.syncdir(folder)

    def _write_tensors(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> FileEntry:
        head, spans = tensorfile.layout(tensors)
        sums: dict[str, int] = {}

        def chunks() -> Iterator[bytes | memoryview]:
            yield head
            for name in spans:
                data = tensorfile.raw(tensors[name])
                sums[name] = zlib.crc32(data)
                yield data

        self.files.write(path, chunks())
        entries = {
            name: TensorEntry(tensorfile.NAMES[tensor.dtype], tuple(tensor.shape), *spans[name], sums[name])
            for name, tensor in tensors.items()
        }
        size = max((end for _, end in spans.values()), default=len(head))
        return FileEntry(size, len(head), zlib.crc32(head), entries)

    def _make(self, folder: Path) -> None:
        """Make a folder and its missing parents, durably."""
        if not folder.is_dir():
            self._make(folder.parent)
            self.files.mkdir(folder)
            self.files.syncdir(folder.parent)

    def _make_way(self, target: Path) -> None:
        """Put an earlier save of the same step aside under a name that `latest` still finds, or away if broken."""
        aside = target.with_name(f"{target.name}.old")
        if not target.exists():
            return
        if self._whole(target):
            if aside.exists():
                self._put_away(aside)
            self.files.rename(target, aside)
        else:
            self._put_away(target)

    def _put_away(self, path: Path) -> None:
        """Hide a checkpoint before it is removed: a half-removed folder never looks like one."""
        hidden = self.folder / f".tmp-del-{path.name}-{os.getpid()}"
        self.files.remove(hidden)
        self.files.rename(path, hidden)

    def _found(self) -> list[Path]:
        """Folders that look like checkpoints, newest first, one put aside after its replacement."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if STEP.fullmatch(path.name)]
        return sorted(found, key=lambda path: (-_step(path), path.name))

    def _verified(self, path: Path) -> Checkpoint:
        checkpoint = Checkpoint.open(path)
        if checkpoint.step != _step(path):
            raise CorruptCheckpoint(str(path), f"holds step {checkpoint.step}, not the one it is named after")
        checkpoint.verify()
        return checkpoint

    def _whole(self, path: Path) -> bool:
        try:
            self._verified(path)
        except TerakoyaError:
            return False
        return True

    def _failed(self, what: str, error: OSError) -> TerakoyaError:
        reason = error.strerror or str(error)
        return TerakoyaError(str(self.folder), f"{what}: {reason}", hint="earlier checkpoints are as they were")


def _step(path: Path) -> int:
    found = STEP.fullmatch(path.name)
    assert found is not None
    return int(found[1])


def _superseded(path: Path) -> bool:
    return path.suffix == ".old" and path.with_suffix("").exists()


@contextlib.contextmanager
def _reading(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CorruptCheckpoint(str(where), f"cannot be read: {error.strerror or error}") from error


def _fill(file: FileIO, buffer: memoryview, crc: int = 0) -> int:
    """Read into all of `buffer` and return the checksum, continued from `crc`."""
    at = 0
    while at < len(buffer):
        read = file.readinto(buffer[at : at + PIECE])
        if not read:
            raise OSError("the file ended early")
        crc = zlib.crc32(buffer[at : at + read], crc)
        at += read
    return crc


def _checksum(file: FileIO, size: int) -> int:
    """Read `size` bytes, keep none and return their checksum."""
    buffer, crc = memoryview(bytearray(min(size, PIECE))), 0
    while size:
        part = buffer[:size]
        crc = _fill(file, part, crc)
        size -= len(part)
    return crc
