"""What a folder of token shards holds, and how its index is read without trust.

index.json         what stands here: counts, tokenizer, and length and SHA-256 of every other file
tokens-00000.bin   token ids, uint16 or uint32 little endian, documents end to end
starts.bin         int64 (documents + 1): where each document starts in the stream, and the end of the last
token_bytes.bin    int32 (vocab): UTF-8 bytes of each token, 0 for special ones
documents.jsonl    one line a document: source, licence, language
lines.bin          int64 (documents + 1): byte offsets of those lines
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from terakoya.errors import TerakoyaError

INDEX = "index.json"
STARTS, TOKEN_BYTES, DOCUMENTS, LINES = "starts.bin", "token_bytes.bin", "documents.jsonl", "lines.bin"
SIDE = (STARTS, TOKEN_BYTES, DOCUMENTS, LINES)
KIND = "terakoya token shards 1"
_MAX_INDEX = 2**24


@dataclass(frozen=True)
class File:
    """A file of the folder: name, length in bytes, SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """Everything that index.json says. `text_bytes` counts the documents' UTF-8, `token_bytes` the tokens'."""

    tokenizer: str
    vocab: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    tokens: int
    documents: int
    text_bytes: int
    token_bytes: int
    shard_tokens: int
    files: tuple[File, ...]

    @property
    def dtype(self) -> str:
        return "<u2" if self.vocab <= 2**16 else "<u4"

    @property
    def width(self) -> int:
        return 2 if self.vocab <= 2**16 else 4

    @property
    def shards(self) -> int:
        return -(-self.tokens // self.shard_tokens)

    @staticmethod
    def shard_name(number: int) -> str:
        return f"tokens-{number:05}.bin"


def dump(index: Index) -> tuple[bytes, str]:
    """Return the bytes of index.json and the fingerprint inside: a hash of all else, so of every byte of data."""
    body = {"kind": KIND, **asdict(index)}
    fingerprint = _hash(body)
    return (json.dumps({**body, "fingerprint": fingerprint}, sort_keys=True, indent=1) + "\n").encode(), fingerprint


def load(path: Path) -> tuple[Index, str]:
    """Read index.json and return it with its fingerprint; anything unexpected in it is one clear error."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_INDEX + 1)
        body = json.loads(data.decode("utf-8")) if len(data) <= _MAX_INDEX else None
        fingerprint = body.pop("fingerprint", None) if isinstance(body, dict) else None
        found = _hash(body)
    except FileNotFoundError:
        raise TerakoyaError(str(path), "is missing", hint="this is not a folder of token shards") from None
    except OSError as error:
        raise TerakoyaError(str(path), f"cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise TerakoyaError(str(path), f"is not an index of token shards ({type(error).__name__}: {error})") from None
    if not isinstance(body, dict) or body.get("kind") != KIND:
        raise TerakoyaError(str(path), "is not an index of token shards", allowed=f"kind {KIND!r}")
    if not isinstance(fingerprint, str) or fingerprint != found:
        raise TerakoyaError(
            str(path), "is damaged: it does not match its own fingerprint", hint="build the shards anew"
        )
    try:
        return _index(body), fingerprint
    except (TypeError, ValueError, KeyError) as error:
        raise TerakoyaError(str(path), f"is not a sound index ({error})") from None


def _hash(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _index(body: dict) -> Index:
    unknown = set(body) ^ {"kind", *(field.name for field in fields(Index))}
    if unknown:
        raise ValueError(f"fields missing or unknown: {', '.join(sorted(unknown))}")
    count = {name: _whole(body[name], name, 1) for name in ("vocab", "tokens", "documents", "shard_tokens")}
    count |= {name: _whole(body[name], name, 0) for name in ("text_bytes", "token_bytes")}
    files = tuple(File(_word(f["name"]), _whole(f["size"], "size", 0), _word(f["sha256"])) for f in body["files"])
    prefix, suffix = (tuple(_whole(i, name, 0) for i in body[name]) for name in ("prefix", "suffix"))
    index = Index(_word(body["tokenizer"]), prefix=prefix, suffix=suffix, files=files, **count)
    if index.shards != len(files) - len(SIDE) or {file.name: file.size for file in files} != _sizes(index):
        raise ValueError("its files do not fit its counts")
    return index


def _sizes(index: Index) -> dict[str, int]:
    """The length that each file must have, in bytes; that of documents.jsonl is free."""
    sizes = {index.shard_name(i): index.width * index.shard_tokens for i in range(index.shards)}
    sizes[index.shard_name(index.shards - 1)] -= index.width * (index.shards * index.shard_tokens - index.tokens)
    sizes |= {STARTS: 8 * (index.documents + 1), LINES: 8 * (index.documents + 1), TOKEN_BYTES: 4 * index.vocab}
    return sizes | {file.name: file.size for file in index.files if file.name == DOCUMENTS}


def _whole(value: object, name: str, least: int) -> int:
    if type(value) is not int or not least <= value < 2**62:
        raise ValueError(f"{name} is {value!r:.40}")
    return value


def _word(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not a string")
    return value
