"""terakoya eval: how well a model knows a text."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from terakoya import corpus
from terakoya.cli import show as screen
from terakoya.cli.use import tokenizer_of
from terakoya.data import Shards
from terakoya.errors import TerakoyaError
from terakoya.eval.masked import pseudo
from terakoya.eval.perplexity import score
from terakoya.models import open_model
from terakoya.tokenizer import Tokenizer
from terakoya.train.run import Run
from terakoya.zoo.convert import Loaded


def eval(args: argparse.Namespace) -> None:
    """Print perplexity and bits per byte."""
    if args.limit < 1:
        raise TerakoyaError("--limit", given=args.limit, allowed="1 or more bytes")
    loaded = open_model(args.model)
    tokenizer = tokenizer_of(loaded)
    if args.text:
        texts, place = (d.text for d in corpus.read(Path(args.text))), args.text
    elif (Path(args.model) / "data" / "heldout").exists():
        run = Run.open(Path(args.model))
        texts, place = documents(Shards.open(run.heldout, tokenizer.hash(), verify=True), tokenizer), str(run.heldout)
    else:
        raise TerakoyaError("eval", "needs a text", hint="give --text PATH")
    if loaded.spec.sort == "encoder":
        _masked(loaded, tokenizer, args, _limited(texts, args.limit))
        return
    began = time.perf_counter()
    found = score(loaded.model, tokenizer, _limited(texts, args.limit), window=args.window)
    seconds = time.perf_counter() - began
    head = ("text", "bytes", "tokens", "nats/token", "perplexity", "bits/byte", "tokens/s")
    row = (
        place, f"{found.bytes:,}", f"{found.tokens:,}", f"{found.nats / found.tokens:.4f}", f"{found.perplexity:.2f}",
        f"{found.bits_per_byte:.4f}", f"{found.tokens / seconds:,.0f}",
    )  # fmt: skip
    screen.table(f"{args.model}", head, [row])


def _masked(loaded: Loaded, tokenizer: Tokenizer, args: argparse.Namespace, texts: Iterable[str]) -> None:
    found = pseudo(loaded.model, tokenizer, texts, window=args.window)
    head = ("pseudo-log-likelihood", "bytes", "tokens", "nats/token", "pseudo-perplexity")
    per = f"{found.nats / found.tokens:.4f}"
    row = ("each token hidden in turn", f"{found.bytes:,}", f"{found.tokens:,}", per, f"{found.perplexity:.2f}")
    note = "not a likelihood: it sees both sides of each token, so it does not compare with a decoder's perplexity"
    screen.table(f"{args.model}", head, [row], note)


def documents(shards: Shards, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the texts of shards."""
    ends = [*shards.starts[1:], shards.tokens]
    for begin, end in zip(shards.starts, ends, strict=True):
        yield tokenizer.decode(shards.slice(int(begin), int(end)).tolist())


def _limited(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        if limit <= 0:
            return
        data = text.encode()
        if len(data) > limit:
            screen.console.print(f"[dim]scored the first {limit:,} bytes of what is left; raise --limit for more[/dim]")
            text = data[:limit].decode("utf-8", "ignore")
        limit -= len(data)
        yield text
