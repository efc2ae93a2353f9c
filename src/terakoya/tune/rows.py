"""JSON rows from files: .jsonl, .jsonl.zst and .parquet, one file or a folder of them, here or on the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from terakoya.corpus.stream import decoded, lines, opened
from terakoya.errors import MissingExtra, TerakoyaError

SUFFIXES = (".jsonl", ".jsonl.zst", ".parquet")
HUB = "hf://datasets/"
HALF = re.compile("[\ud800-\udfff]")
Row = Mapping[str, Any]


def rows(source: Path) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) of a file, or of all such files below a folder in the order of their names."""
    if source.is_dir():
        found = sorted(p for p in source.rglob("*") if p.is_file() and p.name.lower().endswith(SUFFIXES))
        if not found:
            raise TerakoyaError(str(source), "holds no file of rows", allowed=SUFFIXES)
        for path in found:
            yield from _file(path)
        return
    if not source.exists():
        raise TerakoyaError(str(source), "does not exist")
    yield from _file(source)


def located(source: str) -> Path:
    """Return the file or folder of a source; `hf://datasets/OWNER/NAME[/PATH]` is fetched, or in the cache."""
    if not source.startswith("hf://"):
        return Path(source)
    owner, _, rest = source.removeprefix(HUB).partition("/")
    name, _, inside = rest.partition("/")
    if not source.startswith(HUB) or not owner or not name or ".." in inside.split("/"):
        raise TerakoyaError("data.source", given=source, allowed=f"{HUB}OWNER/NAME, or {HUB}OWNER/NAME/FILE")
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise MissingExtra("huggingface_hub", "hub") from None
    wanted = [inside, f"{inside.rstrip('/')}/*"] if inside else [f"*{suffix}" for suffix in SUFFIXES]
    try:
        folder = huggingface_hub.snapshot_download(f"{owner}/{name}", repo_type="dataset", allow_patterns=wanted)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise TerakoyaError(source, f"cannot be had from the Hub: {str(error).splitlines()[0]}") from None
    return Path(folder) / inside


def _file(path: Path) -> Iterator[tuple[str, Row]]:
    name = path.name.lower()
    if name.endswith(".parquet"):
        yield from _parquet(path)
    elif name.endswith((".jsonl", ".jsonl.zst")):
        yield from _json(path)
    else:
        raise TerakoyaError(str(path), "is not a kind of file that rows are read from", allowed=SUFFIXES)


def _json(path: Path) -> Iterator[tuple[str, Row]]:
    with opened(path) as file:
        for number, offset, line in lines(file, path):
            place = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(decoded(line, place, offset).removeprefix("\ufeff"))
            except (ValueError, RecursionError) as error:
                raise TerakoyaError(place, f"is not JSON ({error})") from None
            if b"\\u" in line and HALF.search(json.dumps(row, ensure_ascii=False)):
                raise TerakoyaError(place, "holds half of a surrogate pair, which is no text")
            if not isinstance(row, dict):
                raise TerakoyaError(place, "must be a JSON object", given=type(row).__name__)
            yield place, row


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "parquet") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", {k: v for k, v in row.items() if v is not None}
    except (pyarrow.ArrowException, OSError) as error:
        raise TerakoyaError(str(path), f"cannot be read as parquet ({error})") from None
