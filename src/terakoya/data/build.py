"""Turn documents into token shards: all of them or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from terakoya.corpus import Document
from terakoya.data import format
from terakoya.data.shards import Shards
from terakoya.errors import TerakoyaError

_CHUNK_BYTES = 2**22  # text handed to the tokenizer at a time
_CHUNK_DOCUMENTS = 1024


class Encoder(Protocol):
    """What `build` needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    def encode_batch(self, texts: list[str], /) -> list[list[int]]: ...
    def wrap(self) -> tuple[Sequence[int], Sequence[int]]: ...
    def hash(self) -> str: ...
    def token_bytes(self, id: int, /) -> bytes: ...


def build(
    documents: Iterable[Document], tokenizer: Encoder, folder: Path | str, *, shard_tokens: int = 2**27
) -> Shards:
    """Encode `documents` into a new folder of shards and open it.

    Written beside `folder`, flushed to the disk and renamed, so a folder of that name is always whole; equal documents
    and tokenizer give equal bytes. The folder must not exist. Each document becomes prefix + tokens + suffix.
    """
    folder = Path(folder)
    if shard_tokens < 1:
        raise TerakoyaError("shard_tokens", given=shard_tokens, allowed="a whole number of tokens, 1 or more")
    if folder.exists():
        raise TerakoyaError(str(folder), "exists already", hint="remove it, or build into another folder")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        with _writing(folder):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            writer = _Writer(partial, folder, tokenizer, shard_tokens)
        with closing(writer):
            for chunk in _chunks(documents):
                writer.add(chunk)
            writer.finish()
        with _writing(folder):
            _synced(partial)
            partial.rename(folder)
            _synced(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Shards.open(folder)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say in one line what the system could not write."""
    try:
        yield
    except OSError as error:
        hint = "nothing was left behind; free some space or choose another folder"
        raise TerakoyaError(str(folder), f"cannot be written: {error.strerror or error}", hint=hint) from error


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= _CHUNK_BYTES or len(chunk) >= _CHUNK_DOCUMENTS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _synced(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Writer:
    """The files of one folder while they grow."""

    def __init__(self, partial: Path, folder: Path, tokenizer: Encoder, shard_tokens: int) -> None:
        self._partial, self._folder, self._tokenizer, self._shard_tokens = partial, folder, tokenizer, shard_tokens
        self._files: list[format.File] = []
        self._shard: _Out | None = None
        self._open: list[_Out] = []
        self._texts = self._out(format.DOCUMENTS)
        self._starts, self._lines = array("q", [0]), array("q", [0])
        self._tokens = self._text_bytes = self._token_bytes = 0
        prefix, suffix = tokenizer.wrap()
        self._prefix, self._suffix = tuple(map(int, prefix)), tuple(map(int, suffix))
        self._vocab = int(tokenizer.vocab_size)
        self._dtype = "<u2" if self._vocab <= 2**16 else "<u4"
        special = {*self._prefix, *self._suffix}
        lengths = (0 if i in special else len(tokenizer.token_bytes(i)) for i in range(self._vocab))
        self._lengths = np.fromiter(lengths, dtype="<i4", count=self._vocab)

    def add(self, documents: list[Document]) -> None:
        for document in documents:
            self._text_bytes += _utf8_length(document)
        encoded = self._tokenizer.encode_batch([document.text for document in documents])
        for document, ids in zip(documents, encoded, strict=True):
            self._document(document, ids)

    def _document(self, document: Document, ids: Sequence[int]) -> None:
        wrapped = np.array([*self._prefix, *ids, *self._suffix], dtype=np.int64)
        if not len(wrapped) or wrapped.min() < 0 or wrapped.max() >= self._vocab:
            problem = (
                f"was encoded to ids outside 0 to {self._vocab - 1}" if len(wrapped) else "was encoded to no token"
            )
            raise TerakoyaError(document.source, problem, hint="the tokenizer is at fault")
        self._write(wrapped.astype(self._dtype))
        self._tokens += len(wrapped)
        self._starts.append(self._tokens)
        self._token_bytes += int(self._lengths[wrapped].sum(dtype=np.int64))
        record = {"source": document.source, "licence": document.licence, "language": document.language}
        line = json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n"
        self._lines.append(self._lines[-1] + len(line))
        with _writing(self._folder):
            self._texts.write(line)

    def _write(self, tokens: np.ndarray) -> None:
        while len(tokens):
            with _writing(self._folder):
                if self._shard is None:
                    self._shard = self._out(format.Index.shard_name(len(self._files)))
                room = self._shard_tokens - self._shard.size // tokens.itemsize
                self._shard.write(tokens[:room].tobytes())
                tokens = tokens[room:]
                if self._shard.size == self._shard_tokens * tokens.itemsize:
                    self._finish(self._shard)
                    self._shard = None

    def finish(self) -> None:
        if len(self._starts) == 1:
            raise TerakoyaError(str(self._folder), "there is no document to build from")
        with _writing(self._folder):
            if self._shard is not None:
                self._finish(self._shard)
            self._finish(self._texts)
            for name, values in ((format.STARTS, self._starts), (format.LINES, self._lines)):
                self._side(name, np.array(values, dtype="<i8"))
            self._side(format.TOKEN_BYTES, self._lengths)
            data, _ = format.dump(self._index())
            index = self._out(format.INDEX)
            index.write(data)
            index.close()

    def close(self) -> None:
        """Let go of the files; after `finish` there is nothing left to do."""
        for out in self._open:
            out.abandon()

    def _index(self) -> format.Index:
        return format.Index(
            tokenizer=self._tokenizer.hash(),
            vocab=self._vocab,
            prefix=self._prefix,
            suffix=self._suffix,
            tokens=self._tokens,
            documents=len(self._starts) - 1,
            text_bytes=self._text_bytes,
            token_bytes=self._token_bytes,
            shard_tokens=self._shard_tokens,
            files=tuple(self._files),
        )

    def _side(self, name: str, values: np.ndarray) -> None:
        out = self._out(name)
        out.write(values.tobytes())
        self._finish(out)

    def _out(self, name: str) -> _Out:
        out = _Out(self._partial / name)
        self._open = [other for other in self._open if not other.closed] + [out]
        return out

    def _finish(self, out: _Out) -> None:
        out.close()
        self._files.append(format.File(out.name, out.size, out.digest.hexdigest()))


class _Out:
    """A file being written, its length and its checksum."""

    def __init__(self, path: Path) -> None:
        self.name, self.size, self.digest = path.name, 0, hashlib.sha256()
        self._file: BinaryIO = path.open("wb")

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)

    @property
    def closed(self) -> bool:
        return self._file.closed

    def abandon(self) -> None:
        with suppress(OSError):  # the file is about to be removed; what it could not hold was reported before
            self._file.close()

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _utf8_length(document: Document) -> int:
    if not document.text:
        raise TerakoyaError(document.source, "is an empty document", hint="leave it out")
    try:
        return len(document.text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise TerakoyaError(document.source, f"holds half of a surrogate pair at character {error.start}") from None
