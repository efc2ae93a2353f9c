"""ULMFiT's three stages on real text: whose passage is this? (Howard & Ruder 2018, arXiv:1801.06146)

    python bench/ulmfit.py GENERAL TARGET HELDOUT [--steps 200] [--tune 80] [--epochs 24] [--by adamw|ntasgd]

GENERAL, TARGET and HELDOUT are JSON lines with `text` and, but for GENERAL, `author`. An AWD-LSTM learns GENERAL (with
AdamW: in so few steps NT-ASGD gets little further than the frequencies of words), then the target's passages with
slanted triangles and rates by layer, then a classifier on a few labelled passages of each of five authors, a group more
at every epoch; it is scored on passages of the authors' other works. Beside it stand the same classifier without the
second stage and from random weights, with as many steps on labels.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import torch
import zstandard
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from terakoya import device
from terakoya.data import Loader, Shards
from terakoya.data.batch import Batch
from terakoya.model.awd import AwdLstm, AwdPlan, Classifier, Drops
from terakoya.model.build import Init, initialise
from terakoya.model.context import Packed
from terakoya.tokenizer import Tokenizer
from terakoya.train.objective import causal
from terakoya.train.optim import AdamW, Optimizer
from terakoya.train.prepare import prepare_data
from terakoya.train.recipe import Recipe
from terakoya.train.run import Run
from terakoya.train.step import step
from terakoya.train.ulmfit import NtAsgd, NtAsgdPlan, awd, discriminative, groups, slanted, unfreeze

AUTHORS = ("岡本綺堂", "牧野信一", "夢野久作", "寺田寅彦", "戸坂潤")
LENGTH, ROWS = 96, 16  # tokens of a passage, passages of a batch
DROPS = Drops(word=0.02, input=0.1, layer=0.1, output=0.1, weight=0.2)
Passage = tuple[list[int], int]


def works(path: Path) -> Iterator[tuple[str, str]]:
    with path.open("rb") as raw:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), encoding="utf-8"):
            record = json.loads(line)
            yield record["author"], record["text"]


def passages(path: Path, tokenizer: Tokenizer, each: int) -> list[Passage]:
    """Return `each` passages of every author, from as many works as there are."""
    rng, found = random.Random(0), list[Passage]()
    texts: dict[str, list[str]] = {a: [] for a in AUTHORS}
    for author, text in works(path):
        if author in texts and len(text) > 1000:
            texts[author].append(text)
    for label, author in enumerate(AUTHORS):
        for i in range(each):
            text = texts[author][i % len(texts[author])]
            at = rng.randrange(0, len(text) - 500)
            found.append((tokenizer.encode(text[at : at + 500])[:LENGTH], label))
    rng.shuffle(found)
    return found


def batch(texts: list[list[int]]) -> Batch:
    """Lay passages end to end as a language model's rows."""
    lengths = [len(t) - 1 for t in texts]
    return Batch(
        torch.tensor([i for t in texts for i in t[:-1]]), torch.tensor([i for t in texts for i in t[1:]]),
        torch.ones(sum(lengths)), torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        torch.cat([torch.arange(n) for n in lengths]),
    )  # fmt: skip


@torch.inference_mode()
def nats(model: AwdLstm, batches: list[Batch]) -> float:
    return sum(causal(model, b).loss.item() for b in batches) / sum(b.weight for b in batches)


def general(model: AwdLstm, source: Shards, steps: int, held: list[Batch], by: str, kept: Path) -> None:
    """Stage one: a language model of the general text; one that was killed goes on where `kept` stands."""
    loader = Loader(source, rows=ROWS, context=128, seed=0)
    slow = NtAsgd(model, NtAsgdPlan(lr=10.0)) if by == "ntasgd" else None
    optimizer, first = slow or Optimizer(model, AdamW(lr=4e-3, weight_decay=0.0)), 0
    if kept.exists():
        first = resumed(kept, model, optimizer)
    for k in range(first, steps):
        model.noise.begin(0, k)
        rate = 1.0 if slow else slanted(k, steps)
        step(model, [loader.batch(k)], awd, optimizer, factor=rate, clip=0.25)  # type: ignore[arg-type]
        model.noise.end()
        if slow and k % 10 == 9:
            slow.observe(nats(model, held[:2]))
        if k % 20 == 19 or k == steps - 1:
            tensors = {f"model/{n}": p.detach().contiguous() for n, p in model.named_parameters()}
            tensors |= {f"optimizer/{n}": t.contiguous() for n, t in optimizer.state().items()}
            save_file(tensors | {"at": torch.tensor(k + 1)}, kept.with_suffix(".partial"))
            kept.with_suffix(".partial").replace(kept)
    if slow:
        slow.swap()


@torch.no_grad()
def resumed(kept: Path, model: AwdLstm, optimizer: Optimizer | NtAsgd) -> int:
    """Take up stage one where it stood; return the steps done."""
    held = load_file(kept)
    for name, p in model.named_parameters():
        p.copy_(held[f"model/{name}"])
    optimizer.load({n.removeprefix("optimizer/"): t for n, t in held.items() if n.startswith("optimizer/")})
    return int(held["at"])


def tuned(model: AwdLstm, texts: list[list[int]], steps: int) -> None:
    """Stage two: the language model of the target's text, without labels."""
    optimizer = Optimizer(model, AdamW(lr=4e-3, weight_decay=0.0), discriminative(groups(model)))
    rng = random.Random(1)
    for k in range(steps):
        model.noise.begin(1, k)
        step(model, [batch(rng.sample(texts, ROWS))], awd, optimizer, factor=slanted(k, steps), clip=0.25)
        model.noise.end()


def classified(
    model: AwdLstm, seen: list[Passage], unseen: list[Passage], epochs: int, gradual: bool
) -> tuple[float, float]:
    """Stage three: train the classifier; return its share of right answers on what it saw and on what it did not."""
    model = copy.deepcopy(model)
    torch.manual_seed(0)
    head = Classifier(model.plan.dim, len(AUTHORS))
    model.add_module("classifier", head)
    order, rng = groups(model), random.Random(2)
    gains = discriminative(order) if gradual else {}
    optimizer = Optimizer(model, AdamW(lr=1e-2 if gradual else 4e-3, weight_decay=0.0), gains)
    per = len(seen) // ROWS
    for k in range(epochs * per):
        if k % per == 0:
            unfreeze(model, order, k // per if gradual else len(order))
            rng.shuffle(seen)
        part = seen[k % per * ROWS :][:ROWS]
        model.noise.begin(2, k)
        loss = cross_entropy(scores(model, head, part), torch.tensor([y for _, y in part]))
        model.noise.end()
        optimizer.zero()
        loss.backward()
        optimizer.step(slanted(k, epochs * per))
    head.eval()
    return right(model, head, seen), right(model, head, unseen)


def scores(model: AwdLstm, head: Classifier, part: list[Passage]) -> torch.Tensor:
    ctx = Packed([len(t) for t, _ in part])
    return head(model(torch.tensor([i for t, _ in part for i in t]), ctx), ctx, model.noise)


@torch.inference_mode()
def right(model: AwdLstm, head: Classifier, passages: list[Passage]) -> float:
    hits = 0
    for a in range(0, len(passages), 50):
        part = passages[a : a + 50]
        hits += int((scores(model, head, part).argmax(1) == torch.tensor([y for _, y in part])).sum())
    return hits / len(passages)


def written(folder: Path, tokenizer: Tokenizer, sides: dict[str, list[Passage]]) -> None:
    """Write the passages as rows of text and label, for `terakoya tune` with a head on another model."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, side in sides.items():
        rows = [{"text": tokenizer.decode(ids), "label": AUTHORS[label]} for ids, label in side]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("general")
    p.add_argument("target", type=Path)
    p.add_argument("heldout", type=Path)
    p.add_argument("--steps", type=int, default=200)
    p.add_argument("--tune", type=int, default=80)
    p.add_argument("--epochs", type=int, default=24)
    p.add_argument("--labelled", type=int, default=20, help="passages of each author")
    p.add_argument("--by", default="adamw", choices=["adamw", "ntasgd"], help="what stage one learns with")
    p.add_argument("--examples", type=Path, help="write the passages there, and do nothing else")
    p.add_argument("--limit", type=int, default=12_000_000, help="bytes of general text")
    p.add_argument("--work", type=Path, default=Path("runs/ulmfit-bench"))
    args = p.parse_args()
    torch.set_num_threads(1)
    device.keep_memory()
    recipe = Recipe()
    recipe = replace(recipe, corpus=replace(recipe.corpus, source=args.general, limit=args.limit))
    tokenizer = prepare_data(Run.create(args.work, recipe), recipe, print)
    source = Shards.open(args.work / "data" / "train")
    seen, unseen = passages(args.target, tokenizer, args.labelled), passages(args.heldout, tokenizer, 60)
    if args.examples:
        written(args.examples, tokenizer, {"seen": seen, "unseen": unseen})
        return
    texts = [t for t, _ in passages(args.target, tokenizer, 400)]
    held = [batch([t for t, _ in unseen[a : a + 50]]) for a in range(0, len(unseen), 50)]
    model = AwdLstm(AwdPlan(128, 256, 2, DROPS), len(source.token_bytes))
    initialise(model, 0, Init(std=0.05))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters; {len(seen)} passages with labels", flush=True)

    def told(name: str, model: AwdLstm, gradual: bool = True) -> None:
        began = time.process_time()
        loss, (own, other) = nats(model, held), classified(model, list(seen), unseen, args.epochs, gradual)
        spent = time.process_time() - began
        print(f"{name:30s} {loss:.3f} nats/token; right {own:.3f} seen, {other:.3f} unseen ({spent:.0f} s)", flush=True)

    fresh, began = copy.deepcopy(model), time.process_time()
    kept = args.work / f"general-{args.by}-{args.steps}.safetensors"
    general(model, source, args.steps, held, args.by, kept)
    print(f"the general text: {time.process_time() - began:.0f} s of one core", flush=True)
    told("random weights", fresh, gradual=False)
    told("the general language model", model)
    began = time.process_time()
    tuned(model, texts, args.tune)
    print(f"the target's text: {time.process_time() - began:.0f} s of one core", flush=True)
    told("and the target's", model)


if __name__ == "__main__":
    main()
