"""Folders of safetensors, in and out: one model.safetensors, or shards with an index, as transformers keeps them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import safe_open

from terakoya.errors import TerakoyaError, nearest
from terakoya.zoo import safefile
from terakoya.zoo.files import replacing, sync_folder

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".distcp")
MAX_INDEX = 64 << 20
_PT: Mapping[str, str] = MappingProxyType({"format": "pt"})
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.safetensors")
_T = TypeVar("_T")

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16}
    | {"F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32}
    | {"F64": torch.float64, "I64": torch.int64, "U64": torch.uint64, "C64": torch.complex64}
    | {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu}
    | {"F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz}
)
_NAMES: Mapping[torch.dtype, str] = MappingProxyType({dtype: name for name, dtype in DTYPES.items()})


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors by name, on disk until asked for. `metadata` is that of all files; the first to name a key wins."""

    path: Path
    metadata: Mapping[str, str]
    _entries: Mapping[str, safefile.Entry] = field(repr=False)
    _files: Mapping[str, tuple[Path, Any]] = field(repr=False)

    def keys(self) -> tuple[str, ...]:
        """Return all names, file by file, in the order they lie in."""
        return tuple(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return DTYPES[self._entry(name).dtype]

    def nbytes(self, name: str) -> int:
        return self._entry(name).stop - self._entry(name).start

    def get(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU, in the type it is stored in, mapped from the file."""
        self._entry(name)
        path, handle = self._files[name]
        return _guarded(f"{path}, tensor {name}", lambda: handle.get_tensor(name))

    def _entry(self, name: str) -> safefile.Entry:
        if name not in self._entries:
            raise TerakoyaError(
                str(self.path), "is not a tensor of these weights", given=name, hint=nearest(name, self._entries)
            )
        return self._entries[name]


def open_weights(path: Path) -> Weights:
    """Open a folder, an index or one safetensors file; read the headers only.

    Raise TerakoyaError for pickles, for shards that are missing or lie elsewhere, and for names that the index and
    the shards do not agree on.
    """
    path = Path(path)
    if path.is_dir():
        path = _main_file(path)
    if path.suffix.lower() in PICKLES:
        raise TerakoyaError(str(path), f"is a pickle, which can run code when it is read; {safefile.pickle_way_out()}")
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    if path.suffix != ".safetensors":
        what = "is no file of weights" if path.exists() else "is not there"
        raise TerakoyaError(str(path), what, allowed=f"a folder, {INDEX}, *.safetensors")
    entries, metadata = safefile.read_header(path)
    handle = _handle(path)
    return Weights(path, MappingProxyType(metadata), entries, dict.fromkeys(entries, (path, handle)))


def save_weights(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    max_shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] = _PT,
) -> None:
    """Write tensors, bit by bit, to one file, or to shards in the order given where they exceed `max_shard_bytes`.

    Every file appears whole or not at all. Weights that stood in the folder are replaced; if that is cut short the
    folder does not open, rather than give a mixture. Tensors that share memory are written each. A tensor larger
    than a shard gets its own.
    """
    folder = Path(folder)
    if max_shard_bytes < 1:
        raise TerakoyaError("max_shard_bytes", given=max_shard_bytes, allowed="1 or more")
    if not all(isinstance(word, str) for item in metadata.items() for word in item):
        raise TerakoyaError("metadata", "is not a table of strings")
    described = {name: _described(name, tensor) for name, tensor in tensors.items()}
    shards = _shards(tensors, max_shard_bytes)
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    names = [SINGLE] if len(shards) == 1 else names
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if len(shards) > 1:
            _remove(folder, [INDEX])  # shards of the same name are about to change under it
    except OSError as error:
        raise TerakoyaError(str(folder), f"cannot be written: {error.strerror or error}") from None
    for file, shard in zip(names, shards, strict=True):
        kinds = {name: described[name] for name in shard}
        safefile.write(folder / file, kinds, lambda name: _raw(tensors[name]), metadata)
    if len(shards) > 1:
        _write_index(folder / INDEX, dict(zip(names, shards, strict=True)), tensors)
    old = [path.name for path in folder.iterdir() if _SHARD.fullmatch(path.name) or path.name == SINGLE]
    _remove(folder, [INDEX] * (len(shards) == 1) + [name for name in sorted(old) if name not in names])


def _main_file(folder: Path) -> Path:
    single, index = folder / SINGLE, folder / INDEX
    if index.exists():
        if single.exists() and SINGLE not in _weight_map(index).values():
            raise TerakoyaError(str(folder), f"holds both {SINGLE} and {INDEX}", hint="name the one that you mean")
        return index
    if single.exists():
        _inside(folder, SINGLE, str(single))
        return single
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLES)
    if pickles:
        raise TerakoyaError(
            str(folder / pickles[0]), f"is a pickle, which can run code when it is read; {safefile.pickle_way_out()}"
        )
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    hint = f"name the file: {', '.join(others[:5])}" if others else ""
    raise TerakoyaError(str(folder), f"holds neither {SINGLE} nor {INDEX}", hint=hint)


def _open_shards(index: Path) -> Weights:
    listed = _weight_map(index)
    entries: dict[str, safefile.Entry] = {}
    files: dict[str, tuple[Path, Any]] = {}
    metadata: dict[str, str] = {}
    for file in sorted(set(listed.values())):
        path = _inside(index.parent, file, f"{index}, weight_map")
        found, words = safefile.read_header(path)
        handle = _handle(path)
        for name, entry in found.items():
            if name in entries:
                raise TerakoyaError(f"{path}, tensor {name}", f"is also in {files[name][0].name}")
            entries[name], files[name] = entry, (path, handle)
        metadata = words | metadata
    for name, file in listed.items():
        if name not in entries or files[name][0].name != file:
            raise TerakoyaError(f"{index}, tensor {name}", f"is not in {file}, where the index has it")
    for name in entries:
        if name not in listed:
            raise TerakoyaError(f"{files[name][0]}, tensor {name}", f"is not in the index {index.name}")
    return Weights(index.parent, MappingProxyType(metadata), entries, files)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        with index.open("rb") as file:
            text = file.read(MAX_INDEX + 1)
    except OSError as error:
        raise TerakoyaError(str(index), f"cannot be opened: {error.strerror or error}") from None
    if len(text) > MAX_INDEX:
        raise TerakoyaError(str(index), f"is larger than {MAX_INDEX} bytes")
    listed = safefile.strict_json(index, text).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise TerakoyaError(str(index), "has no weight_map from names to files")
    return listed


def _inside(folder: Path, file: str, place: str) -> Path:
    """Return the path of a plain file of the folder; links may lead only inside it, or to a hub cache's own blobs."""
    path = folder / file
    if Path(file).suffix.lower() in PICKLES:
        raise TerakoyaError(
            place, f"{file!r:.100} is a pickle, which can run code when it is read; {safefile.pickle_way_out()}"
        )
    if not _FILE.fullmatch(file):
        raise TerakoyaError(place, "is not a plain name of a file", given=file[:100], allowed="NAME.safetensors")
    try:
        real, home = path.resolve(strict=True), folder.resolve(strict=True)
    except (OSError, RuntimeError):
        raise TerakoyaError(place, "is missing from the folder", given=file) from None
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    if real.parent not in (home, blobs):
        raise TerakoyaError(place, f"leads out of the folder, to {real}", given=file)
    return path


def _handle(path: Path) -> Any:
    return _guarded(str(path), lambda: safe_open(path, framework="pt", device="cpu"))


def _guarded(place: str, call: Callable[[], _T]) -> _T:
    """Call the library; its errors and its panics (which are no Exception) become one line."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise TerakoyaError(place, f"cannot be read: {str(error)[:200]}") from None


def _described(name: str, tensor: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    if tensor.layout != torch.strided or tensor.is_meta:
        what = "has no data (meta)" if tensor.is_meta else f"is {tensor.layout}, not dense"
        raise TerakoyaError(f"tensor {name}", what)
    if tensor.dtype not in _NAMES:
        raise TerakoyaError(f"tensor {name}", f"of {tensor.dtype} cannot be stored", allowed=list(DTYPES))
    return _NAMES[tensor.dtype], tuple(tensor.shape)


def _shards(tensors: Mapping[str, torch.Tensor], most: int) -> list[list[str]]:
    shards, room = [[]], most
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > room and shards[-1]:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    return shards


def _raw(tensor: torch.Tensor) -> np.ndarray:
    """Copy a tensor's numbers out as bytes, rows first: (…) -> (nbytes,) uint8."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy()


def _write_index(path: Path, shards: Mapping[str, list[str]], tensors: Mapping[str, torch.Tensor]) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    listed = {name: file for file, shard in shards.items() for name in shard}
    index = {"metadata": {"total_size": size}, "weight_map": listed}
    with replacing(path) as file:
        file.write((json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def _remove(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if names:
        sync_folder(folder)
