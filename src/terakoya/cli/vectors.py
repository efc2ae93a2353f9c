"""terakoya vectors train, neighbours, analogy, export."""

from __future__ import annotations

import argparse
from pathlib import Path

from terakoya.cli import show as screen
from terakoya.cli.folder import is_free, new_folder
from terakoya.errors import TerakoyaError
from terakoya.train.prepare import documents
from terakoya.train.recipe import Corpus
from terakoya.vectors.subword import Subwords, read_parts
from terakoya.vectors.table import Found, open_vectors
from terakoya.vectors.train import Epoch, Settings, learn
from terakoya.vectors.vocabulary import read
from terakoya.vectors.words import sentences


def vectors(args: argparse.Namespace) -> None:
    """Dispatch the four actions."""
    {"train": _train, "neighbours": _neighbours, "analogy": _analogy, "export": _export}[args.action](args)


def _train(args: argparse.Namespace) -> None:
    settings = Settings(
        method=args.method, dim=args.dim, window=args.window, negative=args.negative, epochs=args.epochs,
        sample=args.sample, rate=args.rate, seed=args.seed, threads=args.threads,
    )  # fmt: skip
    subwords = Subwords(args.min_n, args.max_n, args.buckets) if args.subwords or args.parts else None
    parts = read_parts(Path(args.parts)) if args.parts else {}
    if not is_free(Path(args.out)):  # before minutes of work
        raise TerakoyaError(args.out, "exists already", hint="choose a new folder")
    texts = (d.text for d in documents(Corpus(args.corpus, limit=args.limit)))
    vocabulary, text = read(sentences(texts, args.split), args.min_count)
    screen.console.print(
        f"{len(vocabulary.words):,} words seen {args.min_count} times or more; {len(text.ids):,} in all", markup=False
    )

    def watch(seen: Epoch) -> None:
        screen.console.print(f"epoch {seen.number}/{seen.epochs}: {seen.words_per_second:,.0f} words/s", markup=False)

    with new_folder(args.out) as folder:
        learn(settings, vocabulary, text, subwords, parts, watch).save(folder)
    screen.console.print(f"vectors in {args.out}; try: terakoya vectors neighbours {args.out} WORD", markup=False)


def _neighbours(args: argparse.Namespace) -> None:
    _list(f"nearest to {args.word}", open_vectors(Path(args.vectors)).neighbours(args.word, args.count))


def _analogy(args: argparse.Namespace) -> None:
    found = open_vectors(Path(args.vectors)).analogy(args.a, args.b, args.c, args.count)
    _list(f"{args.a} : {args.b} = {args.c} : ?", found)


def _list(title: str, found: list[Found]) -> None:
    rows = [(f.word.replace("[", r"\["), f"{f.cosine:.3f}") for f in found]
    screen.console.print(title, markup=False)
    screen.table("", ("word", "cosine"), rows)


def _export(args: argparse.Namespace) -> None:
    if Path(args.out).exists():
        raise TerakoyaError(args.out, "exists already", hint="choose a new file")
    found = open_vectors(Path(args.vectors))
    found.export(Path(args.out), binary=args.format == "binary")
    screen.console.print(f"{len(found.words):,} vectors in {args.out}", markup=False)
