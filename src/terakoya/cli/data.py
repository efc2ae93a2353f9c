"""terakoya data build, show, synth."""

from __future__ import annotations

import argparse
from pathlib import Path

from terakoya import config
from terakoya.cli import show as screen
from terakoya.cli.tokenizer import open_tokenizer
from terakoya.data import Loader, Shards, build
from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Tokenizer
from terakoya.train.prepare import documents
from terakoya.train.recipe import Corpus, Recipe
from terakoya.train.run import Run


def data(args: argparse.Namespace) -> None:
    """Dispatch the actions."""
    {"build": _build, "show": _show, "synth": _synth}[args.action](args)


def _synth(args: argparse.Namespace) -> None:
    from terakoya.cli.synth import synth

    synth(args)


def _build(args: argparse.Namespace) -> None:
    shards = build(documents(Corpus(args.corpus)), open_tokenizer(args.tokenizer), Path(args.out))
    screen.console.print(
        f"{shards.documents:,} documents, {shards.text_bytes / 1e6:.1f} MB, {shards.tokens:,} tokens in {args.out}"
    )


def _show(args: argparse.Namespace) -> None:
    run = Run.open(Path(args.run))
    if not run.resolved.exists():
        raise TerakoyaError(str(run.folder), "has not begun to train", hint=f"terakoya train {run.folder}")
    resolved = config.load_file(Recipe, run.resolved)
    if not 1 <= args.step <= (resolved.budget.steps or 1):
        raise TerakoyaError("--step", given=args.step, allowed=f"1 to {resolved.budget.steps}")
    if args.rows < 0:
        raise TerakoyaError("--rows", given=args.rows, allowed="0 (all) or more")
    tokenizer = Tokenizer.load(run.tokenizer)
    shards = Shards.open(run.train, tokenizer.hash(), verify=True)
    loader = Loader(shards, rows=resolved.rows.count, context=resolved.rows.context, seed=resolved.seed)
    for span in loader.documents(args.step - 1):
        if args.rows and span.row >= args.rows:
            screen.console.print(f"… {resolved.rows.count - args.rows} more rows; --rows 0 shows all", markup=False)
            return
        place = f"row {span.row}  {span.source}  document {span.document}, tokens {span.start} to {span.stop}"
        screen.console.print(f"[bold]── {place.replace('[', chr(92) + '[')}[/bold]")
        screen.console.out(tokenizer.decode(span.tokens.tolist(), specials=True), highlight=False)
