"""terakoya data synth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from terakoya.cli import show as screen
from terakoya.errors import TerakoyaError
from terakoya.models import open_model
from terakoya.tune.formats import Talk, examples
from terakoya.tune.questions import asked
from terakoya.tune.rows import rows as read
from terakoya.tune.sieve import Limits, Sieve
from terakoya.tune.synth import Plan, pairs, rows
from terakoya.tune.writers import Endpoint, Own, Writer


def synth(args: argparse.Namespace) -> None:
    """Let a model write examples into a new file; it appears when all is written."""
    out = Path(args.out)
    if out.exists():
        raise TerakoyaError(str(out), "exists already", hint="choose a new file")
    plan = Plan(args.way, args.lang, args.count, args.tokens, args.temperature, seed=args.seed)
    known = (text for name in args.benchmark for _, row in read(Path(name)) for text in texts(row))
    sieve = Sieve(Limits(language=plan.language), known)
    writer = _writer(args)
    made, partial = 0, out.with_name(f".{out.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for row in _rows(plan, writer, Path(args.seeds), sieve):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                made += 1
        if made:
            partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    counts = ", ".join(f"{n:,} {why}" for why, n in sieve.counts.most_common())
    if not made:
        raise TerakoyaError(args.writer, f"wrote nothing that could be kept ({counts or 'no answers'})")
    screen.console.print(f"{made:,} rows in {out}, written by {writer.name} ({counts})", markup=False)


def _rows(plan: Plan, writer: Writer, seeds: Path, sieve: Sieve) -> Iterator[dict[str, Any]]:
    found = read(seeds)
    if plan.way != "prefer":
        return rows(plan, writer, list(dict.fromkeys(asked(place, row) for place, row in found)), sieve)
    talks = (e.messages for e in examples(found, None) if isinstance(e, Talk))
    return pairs(plan, writer, list(dict.fromkeys(talks)), sieve)


def _writer(args: argparse.Namespace) -> Writer:
    if args.writer.startswith(("http://", "https://")):
        return Endpoint(args.writer, args.name, args.key)
    return Own(args.writer, open_model(args.writer).continuing())


def texts(row: Mapping[str, Any]) -> Iterator[str]:
    """Every text in a row, however deep."""
    for value in row.values():
        stack: list[Any] = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                yield item
            elif isinstance(item, Mapping):
                stack += item.values()
            elif isinstance(item, list | tuple):
                stack += item
