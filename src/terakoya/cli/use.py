"""terakoya generate, chat, eval, convert: use a model."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from terakoya import corpus
from terakoya.cli import show as screen
from terakoya.cli.beside import opened as beside
from terakoya.cli.folder import new_folder
from terakoya.data import Shards
from terakoya.engine.chat import Chat, Reply
from terakoya.engine.generate import generate as continued
from terakoya.engine.native import NativeModel
from terakoya.engine.runner import NativeRunner, described, runner
from terakoya.engine.sampling import Sampling
from terakoya.engine.stretch import stretched
from terakoya.errors import TerakoyaError
from terakoya.eval.masked import pseudo
from terakoya.eval.perplexity import score
from terakoya.models import open_model
from terakoya.tokenizer import Tokenizer
from terakoya.train.run import Run
from terakoya.zoo import convert as files
from terakoya.zoo.config_json import in_their_words
from terakoya.zoo.convert import Loaded


def sampling(args: argparse.Namespace) -> Sampling:
    """Read the sampling flags."""
    return Sampling(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        typical=args.typical,
        repetition=args.repetition,
        presence=args.presence,
        frequency=args.frequency,
        max_tokens=args.max_tokens,
        stop=tuple(args.stop),
        seed=args.seed,
    )


def generate(args: argparse.Namespace) -> None:
    """Continue a text on standard output, or answer a file of prompts."""
    how = sampling(args)
    if (args.prompt is None) == (args.batch is None):
        raise TerakoyaError("generate", "needs a PROMPT or --batch FILE, and not both")
    if args.batch is not None:
        from terakoya.cli.batch import batch

        if args.image:
            raise TerakoyaError("--image", "goes with a PROMPT, not with --batch")
        batch(args, how)
        return
    text = _stdin() if args.prompt == "-" else args.prompt
    loaded = opened(args)
    if args.image:
        from terakoya.cli import see

        if args.draft is not None:
            raise TerakoyaError("--draft", "cannot guess about pictures", given=args.draft)
        pieces = see.continuation(*ready(args, loaded), text, args.image, args.model, how)
    elif args.draft is not None or loaded.spec.sort == "encoder-decoder":
        from terakoya.cli.batch import answered

        pieces = answered(args, loaded, text, how)
    else:
        pieces = continuation(*ready(args, loaded), text, how)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise TerakoyaError("standard input", f"is not UTF-8 at byte {error.start}", hint="convert it first") from None


def opened(args: argparse.Namespace) -> Loaded:
    """Open the model that was named, its positions scaled where that is asked for."""
    loaded = beside(args.model) or open_model(args.model, packed=args.by != "torch")
    return loaded if args.rope is None else stretched(loaded, args.rope)


def ready(args: argparse.Namespace, loaded: Loaded | None = None) -> tuple[Any, Tokenizer]:
    """Open the model that was named, for who computes soonest, and say in one line who that is."""
    loaded = opened(args) if loaded is None else loaded
    found = runner(loaded, by=args.by, weights=args.weights)
    sys.stderr.write(f"{described(found)} · context {loaded.spec.context:,}\n")
    model = NativeModel(found.native) if isinstance(found, NativeRunner) else found.model
    return model, tokenizer_of(loaded)


def continuation(model: Any, tokenizer: Tokenizer, text: str, how: Sampling) -> Iterator[str]:
    """Yield the continuation of a text as it comes."""
    prefix, _ = tokenizer.wrap()
    ids = [*prefix, *tokenizer.encode(text)]
    yield from (token.text for token in continued(model, tokenizer, ids, how))


def tokenizer_of(loaded: Loaded) -> Tokenizer:
    """Return the model's tokenizer; an error where the folder has none."""
    if loaded.tokenizer is None:
        raise TerakoyaError("model", "has no tokenizer beside it", allowed="a folder with tokenizer.json")
    return loaded.tokenizer


def chat(args: argparse.Namespace) -> None:
    """Talk in the terminal, or ask given questions and exit."""
    how = sampling(args)
    if args.draft is not None:
        _aided(args, how)
        return
    model, tokenizer = ready(args)
    if args.image:
        from terakoya.cli import see

        talk(see.chat(model, tokenizer, args.image, args.model, args.system), how, args.ask)
        return
    talk(Chat(model, tokenizer, system=args.system), how, args.ask)


def _aided(args: argparse.Namespace, how: Sampling) -> None:
    """Talk through the engine, with a smaller model that guesses ahead."""
    from terakoya.cli.batch import engine_of
    from terakoya.engine.aided import Aided

    if args.image:
        raise TerakoyaError("--draft", "cannot guess about pictures", given=args.draft)
    with engine_of(args, opened(args), max_running=1) as engine:
        sys.stderr.write(engine.describe() + "\n")
        talk(Aided(engine, system=args.system), how, args.ask)


def talk(chat: Chat, how: Sampling, questions: Iterable[str] = ()) -> None:
    """Ask the questions, or read them from the terminal until an empty line, /exit or the end of input."""
    questions = list(questions)
    for question in questions or _typed():
        if question == "/reset":
            chat.reset()
            continue
        if questions:
            screen.console.print(f"[bold]>[/bold] {_plain(question)}")
        try:
            _answer(chat.say(question, how))
        except TerakoyaError as error:
            if questions:
                raise
            screen.console.print(f"[red]{_plain(str(error))}[/red]")


def _answer(reply: Reply) -> None:
    began = time.perf_counter()
    if reply.notice:
        screen.console.print(f"[dim]({reply.notice})[/dim]")
    try:
        for piece in reply:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:  # end this answer, not the conversation
        reply.close()
    sys.stdout.write("\n")
    rate = reply.tokens / max(time.perf_counter() - began, 1e-9)
    right, made = reply.guesses
    guessed = f", {right} of {made} guesses right" if made else ""
    screen.console.print(f"[dim]{reply.tokens} tokens, {rate:.1f} tokens/s{guessed}[/dim]")


def _typed() -> Iterator[str]:
    screen.console.print(
        "[dim]an empty line or /exit ends, /reset begins anew · 空行か /exit で終了、/reset で最初から[/dim]"
    )
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line in ("", "/exit"):
            return
        yield line


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


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


def convert(args: argparse.Namespace) -> None:
    """Write a model as a Hugging Face folder or as a GGUF file, packed weights as numbers first."""
    if args.to == "gguf":
        _to_gguf(args)
        return
    with new_folder(args.out) as folder:
        loaded = files.plain(open_model(args.model))
        files.save(loaded, folder, dtype=getattr(torch, args.dtype))
    count = sum(p.numel() for p in loaded.model.parameters())
    opens = "" if loaded.config or in_their_words(loaded.spec, loaded.family) else ", which terakoya alone can open"
    screen.console.print(f"{loaded.family}: {count:,} parameters in {args.out}{opens}", markup=False)


def _to_gguf(args: argparse.Namespace) -> None:
    from terakoya.zoo.gguf_model import save_gguf

    out = Path(args.out)
    if out.exists():
        raise TerakoyaError(str(out), "exists already", hint="choose a new file")
    if not out.parent.is_dir():
        raise TerakoyaError(str(out.parent), "is no folder")
    kinds = save_gguf(open_model(args.model), out, args.type)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    screen.console.print(f"{out.stat().st_size / 1e6:,.1f} MB in {out}: {told} tensors", markup=False)
