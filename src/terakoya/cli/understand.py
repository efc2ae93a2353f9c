"""terakoya fill, embed, classify, and translate for a transformer: models that read."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch.nn.functional as F

from terakoya import understand
from terakoya.cli import show as screen
from terakoya.errors import TerakoyaError
from terakoya.tune.heads.rewrite import attention


def fill(args: argparse.Namespace) -> None:
    """Print what may stand at each [MASK]."""
    _least("--top", args.top)
    found = understand.fill(understand.open(args.model), args.text, top=args.top)
    for number, guesses in enumerate(found, 1):
        rows = [[json.dumps(g.text, ensure_ascii=False), f"{g.probability:.4f}"] for g in guesses]
        screen.table(f"gap {number}" if len(found) > 1 else args.text, ["piece", "probability"], rows)


def embed(args: argparse.Namespace) -> None:
    """Print one JSON line per text, or how near the texts are to each other."""
    texts = args.texts or _lines()
    if args.near and len(texts) < 2:
        raise TerakoyaError("--near", "compares texts, and there is one", hint="give two or more")
    vectors = understand.embed(understand.open(args.model), texts)
    if not args.near:
        for text, vector in zip(texts, vectors.tolist(), strict=True):
            sys.stdout.write(json.dumps({"text": text, "vector": vector}, ensure_ascii=False) + "\n")
        return
    unit = F.normalize(vectors, dim=-1)
    pairs = sorted(combinations(range(len(texts)), 2), key=lambda ij: -float(unit[ij[0]] @ unit[ij[1]]))
    rows = [[f"{texts[i]} · {texts[j]}", f"{float(unit[i] @ unit[j]):.4f}"] for i, j in pairs]
    screen.table("cosine", ["texts", "cosine"], rows)


def classify(args: argparse.Namespace) -> None:
    """Print the labels of a text or a pair, likeliest first."""
    text = args.text if args.second is None else (args.text, args.second)
    (found,) = understand.classify(understand.open(args.model), [text])
    screen.table(args.text, ["label", "probability"], [[x.name, f"{x.probability:.4f}"] for x in found])


def translate(args: argparse.Namespace) -> None:
    """Translate a text with an encoder–decoder that `terakoya tune` has taught, and draw where it looked."""
    reading = understand.open(args.run)
    said = understand.translate(reading, [args.text], max_tokens=args.max_tokens, width=args.beam)[0]
    sys.stdout.write(said + "\n")
    if args.map:
        from terakoya.cli.translate import draw

        looks, source, target = attention(reading.model, reading.tokenizer, args.text, said)
        draw(looks.mean(0), source, target, Path(args.map))
        screen.console.print(f"attention map: {args.map}", markup=False)


def _lines() -> Sequence[str]:
    """Read one text a line from standard input."""
    try:
        lines = sys.stdin.buffer.read().decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise TerakoyaError("standard input", f"is not UTF-8 at byte {error.start}", hint="convert it first") from None
    if not any(line.strip() for line in lines):
        raise TerakoyaError("standard input", "has no text; give texts as arguments, or one a line")
    return [line for line in lines if line.strip()]


def _least(name: str, value: int) -> None:
    if value < 1:
        raise TerakoyaError(name, given=value, allowed="1 or more")
