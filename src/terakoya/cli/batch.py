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
from terakoya.engine.stretch import stretched
from terakoya.errors import TerakoyaError
from terakoya.models import open_model
from terakoya.tokenizer import Tokenizer, render
from terakoya.tokenizer.chat import conversation
from terakoya.train.objectives.signs import Signs
from terakoya.zoo.convert import Loaded

KEYS = ("id", "prompt", "messages")


def batch(args: argparse.Namespace, how: Sampling) -> None:
    """Answer every line of a file; answers go to standard output, in order."""
    file = args.batch
    rows = list(read(Path(file)))
    loaded = open_model(args.model, packed=args.by != "torch")
    loaded = loaded if args.rope is None else stretched(loaded, args.rope)
    requests = [Request(_ids(f"{file}:{n}", row, loaded), how) for n, row in rows]
    began, tokens = time.perf_counter(), 0
    with engine_of(args, loaded) as engine:
        sys.stderr.write(engine.describe() + "\n")
        for (n, row), [done] in zip(rows, engine.generate(requests), strict=True):
            found = {"id": row.get("id", n), "text": done.text, "finish": done.finish, "usage": asdict(done.usage)}
            if done.error is not None:
                found["error"] = str(done.error)
            sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
            tokens += len(done.ids)
    rate = tokens / max(time.perf_counter() - began, 1e-9)
    screen.console.print(f"[dim]{len(rows)} answers, {tokens} tokens, {rate:.1f} tokens/s{_guesses(engine)}[/dim]")


def engine_of(args: argparse.Namespace, loaded: Loaded, max_running: int = 64) -> Engine:
    """Return the engine of a model as the command line asks for it."""
    draft = None if args.draft is None else open_model(args.draft, packed=args.by != "torch")
    return Engine(loaded, weights=args.weights, by=args.by, draft=draft, max_running=max_running)


def _guesses(engine: Engine) -> str:
    counts = engine.counts
    return f", {counts.accepted} of {counts.proposed} guesses right" if counts.proposed else ""


def answered(args: argparse.Namespace, loaded: Loaded, text: str, how: Sampling) -> Iterator[str]:
    """Yield an answer as it comes, through the engine: the continuation of a text, or what is written from it."""
    with engine_of(args, loaded, max_running=1) as engine:
        sys.stderr.write(engine.describe() + "\n")
        for delta in engine.submit(_asked(loaded, text, how)):
            yield delta.text
            if delta.error is not None:
                raise delta.error
        if told := _guesses(engine):
            sys.stderr.write(f"{told.removeprefix(', ')}\n")


def _asked(loaded: Loaded, text: str, how: Sampling) -> Request:
    tokenizer = tokenizer_of(loaded)
    if loaded.spec.sort != "encoder-decoder":
        return Request((*tokenizer.wrap()[0], *tokenizer.encode(text)), how)
    signs = Signs(tokenizer)
    start = loaded.config.get("decoder_start_token_id")
    start = start if isinstance(start, int) else signs.start
    before, after = signs.source
    source = (*before, *tokenizer.encode(text), *after)
    return Request((start,), how, source=source, stop_ids=frozenset({signs.end}))


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
