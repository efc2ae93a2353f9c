"""terakoya tokenizer train, show, report."""

from __future__ import annotations

import argparse
from pathlib import Path

from terakoya.cli import show as screen
from terakoya.cli.folder import new_folder
from terakoya.tokenizer import Tokenizer, from_gguf, report, train
from terakoya.train.prepare import documents
from terakoya.train.recipe import Corpus
from terakoya.zoo.gguf import GGUF, is_gguf


def tokenizer(args: argparse.Namespace) -> None:
    """Dispatch the three actions."""
    {"train": _train, "show": _show, "report": _report}[args.action](args)


def open_tokenizer(name: str) -> Tokenizer:
    """Open a tokenizer: a run, a folder, tokenizer.json, a SentencePiece .model or a GGUF file."""
    path = Path(name)
    if path.is_file() and is_gguf(path):
        return from_gguf(GGUF.open(path).metadata)
    if (path / "recipe.toml").is_file():
        path = path / "tokenizer"
    return Tokenizer.load(path)


def _train(args: argparse.Namespace) -> None:
    with new_folder(args.out) as folder:
        texts = (d.text for d in documents(Corpus(args.corpus, limit=args.sample)))
        made = train(texts, args.type, args.vocab)
        made.save(folder)
    screen.console.print(f"{args.type}: {made.vocab_size:,} pieces in {args.out}", markup=False)
    screen.console.print(str(report(made)), markup=False)


def _show(args: argparse.Namespace) -> None:
    found = open_tokenizer(args.tokenizer)
    ids = found.encode(args.text)
    rows = [(_visible(found.token_bytes(i)), str(i), found.token_bytes(i).hex(" ")) for i in ids]
    screen.table(
        f"{len(ids)} tokens, {len(args.text.encode()) / max(len(ids), 1):.2f} bytes each",
        ("piece", "id", "bytes"),
        rows,
    )


def _visible(piece: bytes) -> str:
    text = piece.decode("utf-8", "backslashreplace").replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text).replace("[", r"\[")


def _report(args: argparse.Namespace) -> None:
    found = open_tokenizer(args.tokenizer)
    screen.console.print(
        f"{found.name}: {found.vocab_size:,} pieces, {len(found.specials)} control tokens", markup=False
    )
    screen.console.print(str(report(found)), markup=False)


__all__ = ["open_tokenizer", "tokenizer"]
