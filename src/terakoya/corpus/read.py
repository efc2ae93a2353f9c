"""Read documents from a file or a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from terakoya.corpus.document import Document, Skipped
from terakoya.corpus.stream import decoded, lines, opened, whole
from terakoya.errors import MissingExtra, TerakoyaError

TEXTS = (".txt", ".md", ".rst", ".py", ".txt.zst")
RECORDS = (".jsonl", ".jsonl.zst")
SUFFIXES = (*TEXTS, *RECORDS, ".parquet")


def read(path: Path | str, skipped: list[Skipped] | None = None) -> Iterator[Document]:
    """Yield the documents of a file, or of all files below a folder in the order of their names.

    A text file is one document; JSON lines and parquet give one document a row, from the field "text". Hidden files
    are not looked at. Files of another kind and blank documents are passed over and noted in `skipped`. A path that
    does not exist, an explicitly named file of another kind, bytes that are not UTF-8, a row without text and a corpus
    without any document are errors.
    """
    path = Path(path)
    notes = skipped if skipped is not None else []
    if path.is_dir():
        return _nonempty(_folder(path, notes), path, notes)
    if not path.exists():
        raise TerakoyaError(str(path), "does not exist")
    if _kind(path) is None:
        raise TerakoyaError(str(path), "is not a kind of file that a corpus can be read from", allowed=SUFFIXES)
    return _nonempty(_file(path, path.name, notes), path, notes)


def _nonempty(documents: Iterator[Document], path: Path, skipped: list[Skipped]) -> Iterator[Document]:
    count = 0
    for document in documents:
        count += 1
        yield document
    if not count:
        raise TerakoyaError(str(path), f"holds no document ({len(skipped)} passed over)", allowed=SUFFIXES)


def _folder(root: Path, skipped: list[Skipped]) -> Iterator[Document]:
    base = root.resolve().name
    for relative in _below(root, base, skipped):
        if _kind(root / relative) is None:
            skipped.append(Skipped(f"{base}/{relative}", "unknown kind of file"))
        else:
            yield from _file(root / relative, f"{base}/{relative}", skipped)


def _below(root: Path, base: str, skipped: list[Skipped]) -> list[str]:
    """List the visible files below `root` as relative names with "/", sorted by code point on every machine."""
    found = []

    def failed(error: OSError) -> None:
        raise TerakoyaError(str(error.filename), f"cannot be read: {error.strerror}") from error

    for folder, folders, files in os.walk(root, onerror=failed):
        below = Path(folder).relative_to(root)
        links = [name for name in folders if (Path(folder) / name).is_symlink() and not name.startswith(".")]
        skipped += [Skipped(f"{base}/{(below / name).as_posix()}", "link to a folder") for name in sorted(links)]
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.startswith("."):
                continue
            if (Path(folder) / name).is_file():
                found.append((below / name).as_posix())
            else:
                skipped.append(Skipped(f"{base}/{(below / name).as_posix()}", "not a regular file"))
    return sorted(found)


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _file(path: Path, name: str, skipped: list[Skipped]) -> Iterator[Document]:
    kind = _kind(path)
    documents = _text if kind in TEXTS else _records if kind in RECORDS else _parquet
    for document in documents(path, name):
        if document.text.strip():
            yield document
        else:
            skipped.append(Skipped(document.source, "blank"))


def _text(path: Path, name: str) -> Iterator[Document]:
    with opened(path) as file:
        text = decoded(whole(file, path), str(path))
    # A byte order mark is a sign of the encoding, not text.
    yield Document(text.removeprefix("\ufeff"), name, language="code" if path.suffix == ".py" else "")


def _records(path: Path, name: str) -> Iterator[Document]:
    with opened(path) as file:
        for number, offset, line in lines(file, path):
            if line.strip():
                place = f"{path}:{number}"
                yield _document(_parsed(decoded(line, place, offset), place), place, f"{name}#{number}")


def _parsed(line: str, place: str) -> dict:
    try:
        record = json.loads(line.removeprefix("\ufeff"))
    except RecursionError:
        raise TerakoyaError(place, "is JSON nested too deeply") from None
    except ValueError as error:
        raise TerakoyaError(place, f"is not JSON ({error})") from None
    if not isinstance(record, dict):
        raise TerakoyaError(place, f"is a JSON {type(record).__name__}, not an object with a field 'text'")
    return record


def _document(record: dict, place: str, source: str) -> Document:
    text = record.get("text")
    if not isinstance(text, str):
        problem = "has no field 'text'" if "text" not in record else "has a field 'text' that is not a string"
        raise TerakoyaError(place, problem, hint=f"fields seen: {', '.join(map(str, sorted(record))) or 'none'}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TerakoyaError(place, f"holds half of a surrogate pair at character {error.start}") from None
    return Document(text, source, _first(record, "licence", "license"), _first(record, "language", "lang"))


def _first(record: dict, *names: str) -> str:
    return next((value for name in names if isinstance(value := record.get(name), str)), "")


def _parquet(path: Path, name: str) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "parquet") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            fields = file.schema_arrow.names
            if "text" not in fields:
                raise TerakoyaError(
                    str(path), "has no column 'text'", hint=f"columns seen: {', '.join(sorted(fields))}"
                )
            wanted = [field for field in ("text", "licence", "license", "language", "lang") if field in fields]
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                for record in batch.to_pylist():
                    number += 1
                    yield _document(record, f"{path}:{number}", f"{name}#{number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise TerakoyaError(str(path), f"cannot be read as parquet ({error})") from None
