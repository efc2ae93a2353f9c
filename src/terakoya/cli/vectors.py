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
from terakoya.vectors.train import Epoch, Settings, check, learn
from terakoya.vectors.vocabulary import read
from terakoya.vectors.words import sentences


def vectors(args: argparse.Namespace) -> None:
    """Dispatch the four actions."""
    {"train": _train, "neighbours": _neighbours, "analogy": _analogy, "export": _export}[args.action](args)


def _train(args: argparse.Namespace) -> None:
    named = {"negative": args.negative, "sample": args.sample}
    given = {name: value for name, value in named.items() if value is not None}
    if args.method == "glove" and given:
        raise TerakoyaError(f"--{next(iter(given))}", "goes with skipgram and cbow, not with glove")
    settings = Settings(
        method=args.method, dim=args.dim, window=args.window, epochs=args.epochs, rate=args.rate, seed=args.seed,
        threads=args.threads, **given,
    )  # fmt: skip
    subwords = _subwords(args)
    check(settings, subwords)
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


def _subwords(args: argparse.Namespace) -> Subwords | None:
    """Read how words come apart; a Japanese word is short, and so are its parts."""
    options = {"--min-n": args.min_n, "--max-n": args.max_n, "--buckets": args.buckets}
    if not args.subwords and not args.parts:
        for option, value in options.items():
            if value is not None:
                raise TerakoyaError(option, "is for words in parts", given=value, hint="add --subwords")
        return None
    usual = Subwords(1, 3) if args.split in ("ja", "chars") else Subwords()
    shortest, longest, buckets = options.values()
    return Subwords(
        usual.shortest if shortest is None else shortest,
        usual.longest if longest is None else longest,
        usual.buckets if buckets is None else buckets,
    )


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
