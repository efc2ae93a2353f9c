"""terakoya generate --batch: many prompts at once, one JSON line each."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from terakoya.cli import show as screen
from terakoya.cli.use import tokenizer_of
from terakoya.engine.engine import Engine
from terakoya.engine.request import Request
from terakoya.engine.sampling import Sampling
from terakoya.errors import TerakoyaError
from terakoya.models import open_model
from terakoya.tokenizer import Tokenizer, render
from terakoya.tokenizer.chat import conversation
from terakoya.zoo.convert import Loaded

KEYS = ("id", "prompt", "messages")


def batch(args: argparse.Namespace, how: Sampling) -> None:
    """Answer every line of a file; answers go to standard output, in order."""
    file = args.batch
    rows = list(read(Path(file)))
    loaded = open_model(args.model, packed=args.by != "torch")
    requests = [Request(_ids(f"{file}:{n}", row, loaded), how) for n, row in rows]
    began, tokens = time.perf_counter(), 0
    with Engine(loaded, weights=args.weights, by=args.by) as engine:
        sys.stderr.write(engine.describe() + "\n")
        for (n, row), [done] in zip(rows, engine.generate(requests), strict=True):
            found = {"id": row.get("id", n), "text": done.text, "finish": done.finish, "usage": asdict(done.usage)}
            if done.error is not None:
                found["error"] = str(done.error)
            sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
            tokens += len(done.ids)
    rate = tokens / max(time.perf_counter() - began, 1e-9)
    screen.console.print(f"[dim]{len(rows)} answers, {tokens} tokens, {rate:.1f} tokens/s[/dim]")


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the lines of a batch: (number, object); blank lines are skipped, a wrong one is named."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TerakoyaError(str(path), f"cannot be read: {error}") from None
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise TerakoyaError(f"{path}:{n}", "is no JSON") from None
        if not isinstance(row, dict) or set(row) - set(KEYS) or ("prompt" in row) == ("messages" in row):
            raise TerakoyaError(f"{path}:{n}", "must be an object with prompt or messages, and perhaps an id")
        yield n, row


def _ids(place: str, row: dict[str, Any], loaded: Loaded) -> tuple[int, ...]:
    tokenizer: Tokenizer = tokenizer_of(loaded)
    if "messages" in row:
        return tuple(render(tokenizer, conversation(f"{place} messages", row["messages"]), answer=True).ids)
    if not isinstance(row["prompt"], str):
        raise TerakoyaError(f"{place} prompt", "must be text", given=type(row["prompt"]).__name__)
    return (*tokenizer.wrap()[0], *tokenizer.encode(row["prompt"]))
