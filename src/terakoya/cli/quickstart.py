"""terakoya quickstart: from raw text to a small model of one's own, then a talk with a real one."""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from terakoya.cli import show as screen
from terakoya.cli.train import fit
from terakoya.cli.use import continuation, talk, tokenizer_of
from terakoya.cli.weigh import documents
from terakoya.data import Shards
from terakoya.engine.chat import Chat
from terakoya.engine.runner import fastest
from terakoya.engine.sampling import Sampling
from terakoya.errors import MissingExtra
from terakoya.eval.perplexity import compressed, uniform_bytes, unigram
from terakoya.models import open_model
from terakoya.tokenizer import Tokenizer
from terakoya.train.recipe import Budget, Corpus, Recipe, assign
from terakoya.train.run import Run, read_lines

REAL = "smollm2-135m-instruct"
QUESTIONS = ("What is a school? Answer in one sentence.", "Name three fruits.")
SAMPLE = Sampling(temperature=0.8, top_p=0.95, max_tokens=60, seed=1)


@dataclass(frozen=True)
class Result:
    """Held-out bits per byte of the model and of what simpler means reach on the same text."""

    model: float
    baselines: dict[str, float]


def quickstart(args: argparse.Namespace) -> None:
    """Run the five stations of the life of a model."""
    asked = Recipe(corpus=Corpus(args.corpus), budget=Budget(minutes=args.minutes))
    asked = assign(replace(asked, keep=replace(asked.keep, evaluate=100)), args.overrides)
    _station(1, "text to tokens", "文章からトークンへ")
    if not fit(Path(args.run), asked):
        screen.console.print(f"stopped; continue with: terakoya quickstart --run {args.run}")
        return
    _station(2, "what it learned", "何を学んだか")
    run = Run.open(Path(args.run))
    result = measure(run)
    report(run, result)
    _station(3, "what it writes", "何を書くか")
    samples(run)
    if args.no_chat:
        return
    _station(4, f"a real model: {REAL}", "本物のモデルと話す")
    meet(sys.stdin.isatty() and sys.stdout.isatty())


def measure(run: Run) -> Result:
    """Compare the run's last held-out score with baselines on the very same text."""
    tokenizer = Tokenizer.load(run.tokenizer)
    train, heldout = Shards.open(run.train, tokenizer.hash()), Shards.open(run.heldout, tokenizer.hash())
    text = "".join(documents(heldout, tokenizer)).encode()
    scored = [
        row["heldout_bits_per_byte"]
        for row in read_lines(run.folder / "metrics.jsonl")
        if "heldout_bits_per_byte" in row
    ]
    baselines = {
        "uniform bytes": uniform_bytes(),
        "unigram tokens": unigram(train, heldout),
        "zlib -9": compressed(text, "zlib"),
        "lzma -9e": compressed(text, "lzma"),
    }
    return Result(scored[-1], baselines)


def report(run: Run, result: Result) -> None:
    """Print and keep the comparison and the loss curve."""
    rows = [(name, f"{bits:.3f}", f"{bits / result.model:.2f}x") for name, bits in result.baselines.items()]
    rows.append(("this model", f"{result.model:.3f}", "1.00x"))
    note = "lower is better; compressors see the held-out text alone"
    screen.table("held-out bits per byte", ("how", "bits/byte", "of the model's"), rows, note)
    run.write_json("report.json", {"heldout_bits_per_byte": result.model, "baselines": result.baselines})
    try:
        screen.loss_curve(run.folder / "metrics.jsonl", run.folder / "loss.png", result.baselines)
        screen.console.print(f"loss curve: {run.folder / 'loss.png'}")
    except MissingExtra as missing:
        screen.console.print(f"no loss curve: {missing}")


def samples(run: Run) -> None:
    """Continue the beginnings of two held-out documents, and write from nothing."""
    loaded = open_model(str(run.folder))
    tokenizer = tokenizer_of(loaded)
    heldout = Shards.open(run.heldout, tokenizer.hash())
    openings = [text[:60] for text in itertools.islice(documents(heldout, tokenizer), 2)]
    pages = []
    for opening in (*openings, ""):
        written = "".join(continuation(loaded.model, tokenizer_of(loaded), opening, SAMPLE))
        pages.append(f"## {opening.strip() or '(from nothing)'}\n\n{opening}{written}\n")
        screen.console.print(f"[bold]{_plain(opening)}[/bold]{_plain(written)}\n[dim]──[/dim]")
    run.write("samples.md", "\n".join(pages))


def meet(talking: bool) -> None:
    """Open a chat with a real model; without a terminal ask it two questions."""
    loaded = open_model(REAL)
    chat = Chat(fastest(loaded, "fp32"), tokenizer_of(loaded))  # type: ignore[arg-type]
    talk(chat, Sampling(temperature=0.2, top_p=0.9, max_tokens=200, seed=0), () if talking else QUESTIONS)


def _station(number: int, en: str, ja: str) -> None:
    screen.console.rule(f"[bold]{number}[/bold] {en} · {ja}", align="left")


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
