"""terakoya tokenizer train, extend, show, report."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from terakoya.cli import show as screen
from terakoya.cli.folder import new_folder
from terakoya.corpus import Document
from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Tokenizer, from_gguf, report, train
from terakoya.train.prepare import documents, sides
from terakoya.train.recipe import Corpus
from terakoya.zoo.gguf import GGUF, is_gguf


def tokenizer(args: argparse.Namespace) -> None:
    """Dispatch the actions."""
    {"train": _train, "extend": _extend, "show": _show, "report": _report}[args.action](args)


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


def _extend(args: argparse.Namespace) -> None:
    """Add pieces learnt from a corpus to a model, and say what they do to text that neither has seen."""
    from terakoya.eval.perplexity import score
    from terakoya.models import open_model
    from terakoya.tokenizer.extend import extend
    from terakoya.tune.vocabulary import grown
    from terakoya.zoo import convert

    loaded = open_model(args.model)
    if loaded.tokenizer is None:
        raise TerakoyaError(args.model, "has no tokenizer to extend")
    learn, kept = sides(Corpus(args.corpus, limit=args.sample), seed=0)
    unseen = _some(kept, args.measure)
    made = extend(loaded.tokenizer, (d.text for d in learn), args.pieces)
    larger = grown(loaded, made)
    with new_folder(args.out) as folder:
        convert.save(larger, folder)
    assert larger.tokenizer is not None
    rows = []
    for name, side in (("before", loaded), ("after", larger)):
        assert side.tokenizer is not None
        seen = score(side.model, side.tokenizer, unseen)
        length = sum(len(t.encode()) for t in unseen) / sum(len(side.tokenizer.encode(t)) for t in unseen)
        rows.append((name, f"{side.tokenizer.vocab_size:,}", f"{length:.3f}", f"{seen.bits_per_byte:.4f}"))
    size = sum(len(t.encode()) for t in unseen)
    screen.table(f"{size:,} bytes of text not learnt from", ("", "pieces", "bytes/token", "bits/byte"), rows)
    screen.console.print(
        f"{len(made.parts):,} pieces added; {args.out} is a model: teach it to use them with "
        f"terakoya tune vocab model={args.out} data.source=TEXTS",
        markup=False,
    )


def _some(found: Iterable[Document], size: int) -> list[str]:
    """The beginnings of documents, about `size` bytes in all."""
    out: list[str] = []
    for document in found:
        if size <= 0:
            break
        text = document.text.encode()[: min(size, 4000)].decode("utf-8", "ignore")
        out += [text] if text else []
        size -= len(text.encode())
    if not out:
        raise TerakoyaError("corpus", "holds too little text to keep some for measuring")
    return out


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
