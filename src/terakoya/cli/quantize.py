"""terakoya quantize: the same model in fewer bits, and what that costs."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from terakoya import corpus
from terakoya.cli import show as screen
from terakoya.cli.folder import is_free, new_folder
from terakoya.cli.use import tokenizer_of
from terakoya.engine.compact import Kept, Rounded, checked
from terakoya.engine.engine import Engine
from terakoya.engine.request import Request
from terakoya.engine.sampling import Sampling
from terakoya.errors import TerakoyaError
from terakoya.eval.change import Change, compare
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.models import open_model
from terakoya.quant.calibrate import calibrate
from terakoya.quant.codecs import Codec, Int4, Int8, named
from terakoya.quant.linear import nbytes, quantise
from terakoya.tokenizer import Tokenizer
from terakoya.zoo import lineage
from terakoya.zoo.convert import Loaded, plain, save

LENGTH = 512  # tokens of a text for calibration
SPEED_TOKENS = 48


def quantize(args: argparse.Namespace) -> None:
    """Pack the weights of a model; print size, quality and speed before and after; write a folder with --out."""
    codec = None if args.to == "none" else named(args.to, args.group)
    if codec is None and (args.memory == "full" or args.out):
        raise TerakoyaError("--to", "none packs nothing", hint="it is for --memory int8 or fp8, without --out")
    if args.method != "rtn" and not isinstance(codec, Int4 | Int8):
        raise TerakoyaError(
            "--method", "calibrates int4 and int8 only", given=f"{args.method} --to {args.to}", allowed=["rtn"]
        )
    if args.method != "rtn" and not args.calibrate:
        raise TerakoyaError("--method", "needs --calibrate TEXT", given=args.method)
    if args.method == "rtn" and args.calibrate:
        raise TerakoyaError("--calibrate", "is for --method gptq or awq", given=args.calibrate)
    if args.out and not is_free(Path(args.out)):
        raise TerakoyaError(args.out, "exists already", hint="choose a new folder")
    loaded = replace(plain(open_model(args.model)), source=None)
    if not isinstance(loaded.model, Model) or loaded.family not in lineage.families():
        raise TerakoyaError(args.model, "has no weights to pack")
    tokenizer = tokenizer_of(loaded)
    texts = [d.text for d in corpus.read(Path(args.text))] if args.text else []
    packed = replace(loaded, model=copy.deepcopy(loaded.model))
    began = time.perf_counter()
    if codec is not None:
        _pack(packed.model, codec, table(args.table, codec), args, tokenizer)
    screen.console.print(f"[dim]packed in {time.perf_counter() - began:.0f} s[/dim]")
    kept = checked(args.memory)
    way = Packed if kept == "full" else partial(Rounded, kept=kept)
    change = None
    if texts:
        change = compare(loaded.model, packed.model, tokenizer, limited(texts, args.limit), reading=way)
    speeds = [] if args.no_speed else [speed(loaded), speed(packed, kept)]
    report(args, loaded.model, packed.model, change, speeds)
    if args.out:
        with new_folder(args.out) as folder:
            save(packed, folder)
        screen.console.print(f"written to {args.out}", markup=False)


def _pack(model: Model, codec: Codec, table: Codec | None, args: argparse.Namespace, tokenizer: Tokenizer) -> None:
    if args.method != "rtn":
        assert isinstance(codec, Int4 | Int8)
        found = [d.text for d in corpus.read(Path(args.calibrate))]
        texts = samples(tokenizer, found, args.tokens, min(LENGTH, model.spec.context))
        screen.console.print(f"[dim]calibrating on {sum(map(len, texts)):,} tokens of {args.calibrate}[/dim]")
        calibrate(model, texts, codec, args.method)
    quantise(model, codec, table=table)


def table(name: str, codec: Codec) -> Codec | None:
    """Return how token table and head are kept: int8, as the layers are (`same`), or as they are (`none`)."""
    return {"int8": Int8(), "same": codec, "none": None}[name]


def samples(tokenizer: Tokenizer, texts: Sequence[str], tokens: int, length: int) -> list[list[int]]:
    """Cut texts into runs of at most `length` tokens, one of each text in turn, until there are `tokens`."""
    prefix, _ = tokenizer.wrap()
    runs: list[list[int]] = []
    left, start = tokens, 0
    size = 8 * length  # characters that surely hold so many tokens
    while left > 0 and any(start < len(t) for t in texts):
        for text in texts:
            ids = [*prefix, *tokenizer.encode(text[start : start + size])][: min(length, left)]
            if left <= 1 or len(ids) < 2:
                continue
            runs.append(ids)
            left -= len(ids)
        start += size
    if not runs:
        raise TerakoyaError("--calibrate", "has no text of two tokens or more")
    return runs


def limited(texts: Iterable[str], limit: int) -> Iterable[str]:
    """Take an equal share of each text, `limit` bytes in all."""
    texts = list(texts)
    share = max(64, limit // max(len(texts), 1))
    for text in texts:
        piece = text.encode()[:share].decode("utf-8", "ignore")
        if limit <= 0:
            return
        limit -= len(piece.encode())
        yield piece


def speed(loaded: Loaded, kept: Kept = "full") -> tuple[float, str]:
    """Return tokens a second of one greedy answer through the engine, and who computed it."""
    tokenizer = tokenizer_of(loaded)
    prompt = (*tokenizer.wrap()[0], *tokenizer.encode("A school is a place where 寺子屋では"))
    how = Sampling(temperature=0, max_tokens=SPEED_TOKENS)
    with Engine(loaded, kept=kept, threaded=False, max_running=1, memory_bytes=256 << 20) as engine:
        engine.generate([Request(prompt=prompt, sampling=replace(how, max_tokens=4))])
        began = time.perf_counter()
        ((answer,),) = engine.generate([Request(prompt=prompt, sampling=how)])
        rate = len(answer.ids) / (time.perf_counter() - began)
        return rate, "native" if "by the native program" in engine.describe() else "PyTorch"


def report(
    args: argparse.Namespace, before: Model, after: Model, change: Change | None, speeds: Sequence[tuple[float, str]]
) -> None:
    """Print one row per model, and what changed."""
    rows = []
    count = sum(p.numel() for p in before.parameters())
    for i, (name, model) in enumerate((("as it was", before), (args.to, after))):
        size = nbytes(model)
        score = (change.before, change.after)[i] if change else None
        rows.append((
            name, f"{size / 1e6:,.1f}", f"{8 * size / count:.2f}",
            f"{score.bits_per_byte:.4f}" if score else "–",
            f"{speeds[i][0]:.1f} ({speeds[i][1]})" if speeds else "–",
        ))  # fmt: skip
    kept = "" if args.memory == "full" else f", keys and values in {args.memory}"
    title = f"{args.model}, {args.to} by {args.method}{kept}"
    screen.table(title, ("weights", "MB", "bits/weight", "bits/byte", "tokens/s"), rows)
    if change is not None:
        screen.console.print(
            f"bits per byte {change.worse:+.3%}, KL {change.divergence:.5f} nats/token, same likeliest token "
            f"{change.same:.1%} of {change.before.tokens:,} tokens of {args.text}", markup=False,
        )  # fmt: skip
    else:
        screen.console.print("[dim]give --text TEXT to see bits per byte and KL[/dim]")
