"""terakoya generate, chat: use a model. Nothing is imported that the first token would wait for in vain."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from terakoya.engine.chat import Chat, Reply
from terakoya.engine.generate import generate as continued
from terakoya.engine.native import NativeModel
from terakoya.engine.runner import NativeRunner, described, runner
from terakoya.engine.sampling import Sampling
from terakoya.engine.stretch import stretched
from terakoya.errors import TerakoyaError
from terakoya.models import open_model
from terakoya.tokenizer import Tokenizer
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
    loaded = _adapted(args.model) or open_model(args.model, packed=args.by != "torch")
    return loaded if args.rope is None else stretched(loaded, args.rope)


def _adapted(name: str) -> Loaded | None:
    """Open a run as base and adapter where it has no model of its own."""
    if not (Path(name).expanduser() / "recipe.toml").is_file():
        return None
    from terakoya.cli.beside import opened

    return opened(name)


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


def spoken(args: argparse.Namespace) -> Loaded:
    """Open the model that was named, its turns written as `--template` says."""
    loaded = opened(args)
    if args.template is None:
        return loaded
    return replace(loaded, tokenizer=tokenizer_of(loaded).with_template(args.template))


def chat(args: argparse.Namespace) -> None:
    """Talk in the terminal, or ask given questions and exit."""
    how = sampling(args)
    if args.draft is not None:
        _aided(args, how)
        return
    model, tokenizer = ready(args, spoken(args))
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
    with engine_of(args, spoken(args), max_running=1) as engine:
        sys.stderr.write(engine.describe() + "\n")
        talk(Aided(engine, system=args.system), how, args.ask)


def talk(chat: Chat, how: Sampling, questions: Iterable[str] = ()) -> None:
    """Ask the questions, or read them from the terminal until an empty line, /exit or the end of input."""
    from terakoya.cli import show as screen

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
    from terakoya.cli import show as screen

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
    from terakoya.cli import show as screen

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
