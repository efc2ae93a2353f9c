"""Token shards: a folder of memory-mapped tokens that knows its documents, its tokenizer and its checksums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from terakoya.data import format
from terakoya.errors import TerakoyaError


class Shards:
    """A stream of tokens: documents end to end, each between the tokenizer's prefix and suffix.

    `starts` (documents + 1,) int64 says where each document starts, its prefix included. `token_bytes` (vocab,) int32
    is the UTF-8 length of each token. `fingerprint` changes with any byte of the data. Made by `build`.
    """

    def __init__(self, folder: Path, index: format.Index, fingerprint: str) -> None:
        self.folder, self.index, self.fingerprint = folder, index, fingerprint
        self.tokens, self.documents, self.text_bytes = index.tokens, index.documents, index.text_bytes
        self._sized()
        self.starts = self._map(format.STARTS, "<i8")
        self.token_bytes = self._map(format.TOKEN_BYTES, "<i4")
        self._lines = self._map(format.LINES, "<i8")
        self._shards = [self._map(index.shard_name(i), index.dtype) for i in range(index.shards)]
        self._bounded(self.starts, format.STARTS, index.tokens)
        self._bounded(self._lines, format.LINES, (folder / format.DOCUMENTS).stat().st_size)

    @classmethod
    def open(cls, folder: Path | str, tokenizer_hash: str | None = None, *, verify: bool = False) -> Shards:
        """Open a folder: its index and the lengths of its files are checked, with `verify` every byte of them too."""
        folder = Path(folder)
        index, fingerprint = format.load(folder / format.INDEX)
        if tokenizer_hash is not None and tokenizer_hash != index.tokenizer:
            problem = f"these tokens were made with another tokenizer ({index.tokenizer:.12}, not {tokenizer_hash:.12})"
            raise TerakoyaError(str(folder), problem, hint="build the shards anew with this tokenizer")
        shards = cls(folder, index, fingerprint)
        if verify:
            shards.verify()
        return shards

    def verify(self) -> None:
        """Read every file and compare its checksum; the first that differs is named."""
        for file in self.index.files:
            try:
                with (self.folder / file.name).open("rb") as opened:
                    found = hashlib.file_digest(opened, "sha256").hexdigest()
            except OSError as error:
                raise TerakoyaError(str(self.folder / file.name), f"cannot be read: {error.strerror}") from error
            if found != file.sha256:
                hint = "build the shards anew"
                raise TerakoyaError(str(self.folder / file.name), "is damaged: its checksum does not match", hint=hint)

    def slice(self, a: int, b: int) -> np.ndarray:
        """Return tokens a to b of the stream, 0 <= a <= b <= tokens, across shards where need be."""
        if not 0 <= a <= b <= self.tokens:
            raise IndexError(f"tokens {a} to {b} of a stream of {self.tokens}")
        size = self.index.shard_tokens
        first, last = a // size, max(a, b - 1) // size
        if first == last:
            return self._shards[first][a - first * size : b - first * size] if b > a else self._shards[0][:0]
        parts = [self._shards[i][max(a - i * size, 0) : b - i * size] for i in range(first, last + 1)]
        return np.concatenate(parts)

    def gather(self, begins: np.ndarray, length: int) -> np.ndarray:
        """Return begins (R,) -> (R, length): the `length` tokens from each beginning."""
        out = np.empty((len(begins), length), dtype=self.index.dtype)
        for row, begin in zip(out, begins.tolist()):
            row[:] = self.slice(begin, begin + length)
        return out

    def source(self, document: int) -> str:
        """Where document number `document` came from."""
        return self.provenance(document)["source"]

    def provenance(self, document: int) -> dict[str, str]:
        """Source, licence and language of one document."""
        if not 0 <= document < self.documents:
            raise IndexError(f"document {document} of {self.documents}")
        begin, end = (int(at) for at in self._lines[document : document + 2])
        path = self.folder / format.DOCUMENTS
        try:
            with path.open("rb") as file:
                file.seek(begin)
                record = json.loads(file.read(end - begin))
            return {name: str(record[name]) for name in ("source", "licence", "language")}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise TerakoyaError(str(path), f"is damaged at byte {begin} ({error})") from None

    def _sized(self) -> None:
        for file in self.index.files:
            path = self.folder / file.name
            if not path.is_file():
                raise TerakoyaError(str(path), "is missing", hint="build the shards anew")
            if (size := path.stat().st_size) != file.size:
                hint = "it was cut short or changed; build the shards anew"
                raise TerakoyaError(str(path), f"has {size} bytes instead of {file.size}", hint=hint)

    def _map(self, name: str, dtype: str) -> np.ndarray:
        # A plain view: slicing np.memmap itself costs several times as much.
        return np.memmap(self.folder / name, dtype=dtype, mode="r").view(np.ndarray)

    def _bounded(self, offsets: np.ndarray, name: str, end: int) -> None:
        if offsets[0] != 0 or offsets[-1] != end or bool((offsets[1:] <= offsets[:-1]).any()):
            raise TerakoyaError(str(self.folder / name), "is damaged: its offsets do not rise from 0 to the end")
