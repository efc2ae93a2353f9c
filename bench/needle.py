"""Does a model read on past the length it was trained on? Bits per byte at 1, 2, 4 times of it, by each scaling.

    terakoya quickstart --no-chat                                # a model of 256 tokens, in two minutes
    python bench/needle.py runs/quickstart                       # on the text that the run held out

For each length, pieces of held-out text of that many tokens are read, and their last sixteenth (at least 32 tokens)
is scored: tokens that have the whole piece before them. The scored tokens are the same at every length, so a row says
what the more of context is worth, or what it costs. "none" leaves the positions as they are.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from terakoya import corpus
from terakoya.cli.weigh import documents
from terakoya.data import Shards
from terakoya.engine.stretch import stretched
from terakoya.model.context import Packed
from terakoya.models import open_model
from terakoya.train.run import Run
from terakoya.zoo.convert import Loaded

SCALINGS = ("linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True)
class Reach:
    """What one scaling came to at one length."""

    how: str
    times: int  # of the trained length
    bits: float  # per byte of the scored tokens
    tokens: int  # scored


@torch.inference_mode()
def bits(loaded: Loaded, pieces: Sequence[Sequence[int]], scored: int) -> tuple[float, int]:
    """Return bits per byte of the last `scored` tokens of each piece, and how many they are."""
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    nats, size = 0.0, 0
    for ids in pieces:
        x = torch.tensor(ids)
        logits = loaded.model.head(loaded.model(x[:-1], Packed([len(x) - 1]))[-scored:]).float()
        nats += torch.nn.functional.cross_entropy(logits, x[-scored:], reduction="sum").item()
        size += sum(len(tokenizer.token_bytes(id)) for id in ids[-scored:])
    return nats / math.log(2) / max(size, 1), scored * len(pieces)


def cut(loaded: Loaded, texts: Sequence[str], longest: int, most: int) -> list[list[int]]:
    """Return up to `most` pieces of `longest` + 1 tokens."""
    assert loaded.tokenizer is not None
    found: list[list[int]] = []
    for text in texts:
        ids = loaded.tokenizer.encode(text)
        found += [ids[i : i + longest + 1] for i in range(0, len(ids) - longest, longest)]
        if len(found) >= most:
            break
    return found[:most]


def table(
    loaded: Loaded, texts: Sequence[str], times: Sequence[int], scalings: Sequence[str] = SCALINGS, pieces: int = 16
) -> list[Reach]:
    """Measure every scaling at every length; pieces end at the same places whatever their length."""
    trained = loaded.spec.context
    whole = cut(loaded, texts, trained * max(times) - 1, pieces)
    if not whole:
        raise SystemExit(f"the text has no piece of {trained * max(times):,} tokens")
    scored = max(32, trained // 16)
    rows = []
    for how in ("none", *scalings):
        for n in times:
            model = stretched(loaded, f"{how}:{n}")
            found, count = bits(model, [ids[-trained * n :] for ids in whole], scored)
            rows.append(Reach(how, n, found, count))
    return rows


def main() -> None:
    """Print the table as Markdown."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model")
    p.add_argument("--text", help="held-out text: a file or a folder (default: what the run held out)")
    p.add_argument("--times", type=int, nargs="+", default=[1, 2, 4])
    p.add_argument("--pieces", type=int, default=16)
    args = p.parse_args()
    loaded = open_model(args.model)
    if args.text:
        texts = [d.text for d in corpus.read(Path(args.text))]
    else:
        assert loaded.tokenizer is not None
        texts = list(documents(Shards.open(Run.open(Path(args.model)).heldout), loaded.tokenizer))
    rows = table(loaded, texts, args.times, pieces=args.pieces)
    print(f"trained on {loaded.spec.context:,} tokens; {rows[0].tokens:,} tokens scored in each field\n")
    print("| bits per byte |" + "".join(f" {n} × |" for n in args.times))
    print("|---|" + "---|" * len(args.times))
    for how in dict.fromkeys(r.how for r in rows):
        print(f"| {how} |" + "".join(f" {r.bits:.3f} |" for r in rows if r.how == how))


if __name__ == "__main__":
    main()
