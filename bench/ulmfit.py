"""ULMFiT's three stages on real text, by the verbs: whose passage is this? (Howard & Ruder 2018, arXiv:1801.06146)

    python bench/ulmfit.py GENERAL TARGET HELDOUT [--labelled 20] [--draws 3] [--work runs/ulmfit] [--examples]

GENERAL is a text, TARGET and HELDOUT are JSON lines with `text` and `author`. Into the work folder go the five authors'
works of TARGET (text.jsonl), for each draw a few labelled passages of them (seen-N.jsonl), and passages of their other
works from HELDOUT (unseen.jsonl). recipes/awd-ja-nano.toml learns GENERAL, awd-ja-target.toml goes on with the works,
head-ulmfit.toml learns the labels; it is scored on the other works. Beside it stand the same classifier without the
second stage, and on random weights, all layers of which learn from the start. What is there already is used again; with
--examples the texts are written, and nothing else is done.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import torch
import zstandard

from terakoya.cli.main import main as terakoya
from terakoya.train.run import read_lines

AUTHORS = ("岡本綺堂", "牧野信一", "夢野久作", "寺田寅彦", "戸坂潤")
LENGTH = 200  # characters of a passage
UNSEEN = 60  # passages of each author's other works
AT_ONCE = ("gradual=false", "decay=1", "optim.lr=4e-3", "budget.epochs=8")
RECIPES = Path(__file__).parents[1] / "recipes"


def works(path: Path) -> Iterator[dict[str, str]]:
    """Yield what the five authors wrote."""
    with path.open("rb") as raw:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), encoding="utf-8"):
            record = json.loads(line)
            if record["author"] in AUTHORS and len(record["text"]) > 1000:
                yield {"text": record["text"], "label": record["author"]}


def passages(found: list[dict[str, str]], each: int, seed: int) -> list[dict[str, str]]:
    """Return `each` passages of every author, from as many works as there are."""
    rng, out = random.Random(seed), list[dict[str, str]]()
    for author in AUTHORS:
        texts = [work["text"] for work in found if work["label"] == author]
        rng.shuffle(texts)
        for i in range(each):
            text = texts[i % len(texts)]
            at = rng.randrange(0, len(text) - LENGTH)
            out.append({"text": text[at : at + LENGTH], "label": author})
    rng.shuffle(out)
    return out


def written(path: Path, rows: list[dict[str, str]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def trained(verb: str, recipe: str, run: Path, *overrides: str) -> dict[str, float]:
    """Run a recipe to its end, unless that was done; return what the last look saw."""
    terakoya([verb, str(RECIPES / f"{recipe}.toml"), "--run", str(run), *overrides])
    last = list(read_lines(run / "metrics.jsonl"))[-1]
    if not any(name.startswith("heldout_") for name in last):
        raise SystemExit(f"{run} was stopped; the same command goes on with it")
    return last


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("general")
    p.add_argument("target", type=Path)
    p.add_argument("heldout", type=Path)
    p.add_argument("--labelled", type=int, default=20, help="passages of each author")
    p.add_argument("--draws", type=int, default=3, help="draws of the labelled passages")
    p.add_argument("--work", type=Path, default=Path("runs/ulmfit"))
    p.add_argument("--examples", action="store_true", help="write the texts, and do nothing else")
    args = p.parse_args()
    torch.set_num_threads(1)
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    target = list(works(args.target))
    written(work / "text.jsonl", target)
    written(work / "unseen.jsonl", passages(list(works(args.heldout)), UNSEEN, 0))
    for draw in range(args.draws):
        written(work / f"seen-{draw}.jsonl", passages(target, args.labelled, draw))

    if args.examples:
        return

    source = f"corpus.source={args.general}"
    trained("train", "awd-ja-nano", work / "random", source, "budget.steps=1", "keep.evaluate=0", "keep.save=0")
    trained("train", "awd-ja-nano", work / "general", source)
    text = f"corpus.source={work / 'text.jsonl'}"
    trained("train", "awd-ja-target", work / "target", text, f"start={work / 'general'}")
    sides = {
        "random weights, all layers at once": ("random", AT_ONCE),
        "the general text": ("general", ()),
        "and the target's": ("target", ()),
    }
    for name, (model, how) in sides.items():
        found = []
        for draw in range(args.draws):
            data = (f"data.source={work / f'seen-{draw}.jsonl'}", f"data.heldout={work / 'unseen.jsonl'}")
            run = work / f"head-{model}-{draw}"
            found.append(trained("tune", "head-ulmfit", run, f"model={work / model}", *data, *how, f"seed={draw}"))
        right = [row["heldout_accuracy"] for row in found]
        bounds = " ".join(f"[{row['heldout_accuracy_low']:.3f}, {row['heldout_accuracy_high']:.3f}]" for row in found)
        print(f"{name:34s} {mean(right):.3f} right, {min(right):.3f} to {max(right):.3f}; each {bounds}", flush=True)


if __name__ == "__main__":
    main()
