"""Objectives side by side: one stack, the same parameters, the same text, the same FLOPs; then JNLI.

    python bench/objectives.py --text ../shared/data/pretrain --jnli ../shared/data/eval/jnli.jsonl --out runs/bench

For each objective: the held-out score beside its trivial baseline, and JNLI with the model frozen (probe: logistic
regression on the means u and v of both sentences, |u - v| and u * v) and fine-tuned from there, with 95 % intervals
(Wilson). Results go to OUT/results.jsonl and weights to OUT/weights; what stands there is not run again, so that a long
comparison can be done in parts (--only mlm --only rtd; --no-jnli first, JNLI later).
"untrained" is the same network with its first weights; "overlaps" is no network: JNLI from what two sentences share.

The settings are those with which three minutes are enough. 1024 pieces: of 4096, most have been seen too seldom by then
to be told from others. A rotary base of 100: that of 10,000 is for thousands of tokens, and a row has 96. Whether two
halves were swapped is seen in 32 tokens, of which there are three times as many rows; whether they belong together is
seen by the words they share, and takes 128.

Two views of one text are alike before anything is learnt, so a contrast is also scored with its first weights; AdamW at
a low rate improves them, while Muon, or AdamW at ten times the rate, first undoes them. Entities are the most frequent
words of two or more kanji or three or more katakana; their baseline knows how often each stands in the training text.

The baseline of an objective whose answers hold marks (spans, UL2) is given the marks for nothing: "baseline_loss". What
frequencies alone can do must also say where a gap ends; "blind_loss" counts that too.

FLOPs of a step: 6 per weight of the layers at work and token read (generator and further modules included), and 6 V D
per token that is scored; attention's own products are left out, they are the same for all.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from terakoya import corpus
from terakoya.corpus import Document
from terakoya.data import Batch, Loader, Shards
from terakoya.data import build as build_shards
from terakoya.model import spec
from terakoya.model.build import Init, build, initialise
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.tokenizer import train as train_tokenizer
from terakoya.train.loop import bare
from terakoya.train.objectives import (
    Bart,
    Causal,
    Contrast,
    Distil,
    Entity,
    Fim,
    Mlm,
    Mtp,
    Nsp,
    Permute,
    Plan,
    Prefix,
    Rtd,
    Sop,
    Spans,
    Task,
    Taught,
    Ul2,
)
from terakoya.train.objectives.entity import RESERVED
from terakoya.train.objectives.rows import Rich, laid
from terakoya.train.objectives.signs import Signs
from terakoya.train.optim import AdamW, Muon, Optimizer
from terakoya.train.recipe import Rows
from terakoya.train.schedule import Cosine, factor
from terakoya.train.step import step
from terakoya.tune.heads.head import Head, attach, vectors
from terakoya.tune.heads.kinds import Classify
from terakoya.tune.heads.work import Headed, Item, Source, forward, measured

GAPS = Mlm(share=0.3, mask=1.0, random=0.0)  # twice as many as in ELECTRA's paper: more of what is to be found
PLANS: dict[str, Plan] = {
    "causal": Causal(), "prefix": Prefix(), "fim": Fim(), "mtp": Mtp(), "mlm": Mlm(), "mlm-words": Mlm(unit="script"),
    "mlm-static": Mlm(copies=10), "nsp": Nsp(pool="segments"), "nsp-cls": Nsp(), "sop": Sop(), "rtd": Rtd(),
    "rtd-gaps": Rtd(weight=20.0, mlm=GAPS), "rtd-tied": Rtd(tied=True, weight=5.0, mlm=GAPS), "permute": Permute(),
    "spans": Spans(), "t5": Spans(), "ul2": Ul2(), "bart": Bart(), "distil": Distil("mlm"),
    "contrast": Contrast(), "crops": Contrast(views="crops", dropout=0.0),
}  # fmt: skip
LEFTWARD = ("causal", "fim", "mtp", "prefix", "spans", "ul2", "bart")  # stacks that write: causal attention
DOUBLE = ("t5",)  # an encoder and a decoder, of half the layers each
THETA = 100.0  # of the rotary positions
SHORTER = 3  # rows of swapped halves are so much shorter, and there are so many more of them
RIDGE = 0.3  # weight of the squares of a probe
LOW = 1e-4  # rate of a contrast
FOLLOWS = Rows(24, 128)  # of halves that may come from two texts
WORDS, NAMES = re.compile(r"[一-龠々]{2,4}|[ァ-ヴー]{3,}"), 256  # what stands for entities, and how many


@dataclass(frozen=True)
class Ground:
    """What all objectives share."""

    tokenizer: Tokenizer
    train: Shards
    heldout: Shards
    counts: np.ndarray  # of the training tokens
    rows: Rows  # of a step
    names: Counter[str]  # entities, and how often each stands in the training text

    def plan(self, name: str) -> Plan:
        return Entity(tuple(self.names), share=0.5) if name == "entity" else PLANS[name]

    def shape(self, plan: Plan) -> Rows:
        """Return the rows of a step: about as many tokens for all but one."""
        match plan:
            case Nsp():
                return FOLLOWS
            case Sop():
                return Rows(self.rows.count * SHORTER, self.rows.context // SHORTER)
            case _:
                return self.rows


def texts(folder: Path, limit: int, names: str) -> Iterator[Document]:
    for path in sorted(folder.glob(names)):
        for document in corpus.read(path):
            if limit <= 0:
                return
            limit -= len(document.text.encode())
            yield document


def ground(args: argparse.Namespace) -> Ground:
    """Train one tokenizer with every mark, and cut the text once."""
    out, folder = Path(args.out), Path(args.text)
    if not (out / "tokenizer").exists():
        marks = dict.fromkeys(m for plan in PLANS.values() for m in plan.marks)
        sample = (d.text for d in texts(folder, 4_000_000, "ja_aozora.train.*"))
        train_tokenizer(sample, "unigram", args.vocab, ("<|endoftext|>", *marks)).save(out / "tokenizer")
    tokenizer = Tokenizer.load(out / "tokenizer")
    for name, limit, files in (("train", args.bytes, "ja_aozora.train.*"), ("heldout", 300_000, "ja_aozora.heldout.*")):
        if not (out / name).exists():
            build_shards(texts(folder, limit, files), tokenizer, out / name)
    train, heldout = (Shards.open(out / name, tokenizer.hash()) for name in ("train", "heldout"))
    counts = np.bincount(np.asarray(train.slice(0, train.tokens)), minlength=tokenizer.vocab_size)
    found = Counter(m[0] for d in texts(folder, args.bytes, "ja_aozora.train.*") for m in WORDS.finditer(d.text))
    return Ground(
        tokenizer, train, heldout, counts, Rows(args.rows, args.context), Counter(dict(found.most_common(NAMES)))
    )


def stack(vocab: int, name: str) -> spec.Model:
    """One stack for all: pre-norm, rotary, gated; or its layers shared out to an encoder and a decoder."""
    attention = spec.Attention(heads=4, causal=name in LEFTWARD, position=spec.Rope(THETA))
    norm, ffn = spec.RMSNorm(), spec.MLP(352, act="silu", gated=True)
    block, dim, depth, context = spec.pre(norm, attention, ffn), 128, 4, 512
    if name == "entity":  # LUKE's attention; where an entity is named is told by learnt positions
        block = spec.pre(norm, replace(attention, position=None, aware=True), ffn)
        embed = spec.Embed(position=spec.Learned(), entities=spec.Entities(NAMES + RESERVED, 48))
        return spec.Model(vocab, dim, depth, context, blocks=(block,), embed=embed)
    if name not in DOUBLE:
        return spec.Model(vocab, dim, depth, context, blocks=(block,))
    encoder = spec.Model(vocab, dim, depth // 2, context, blocks=(block,), head=spec.Head(scores="nothing"))
    block = spec.pre(norm, replace(attention, causal=True), spec.Cross(4), ffn)
    embed = spec.Embed(shared=True)
    return spec.Model(vocab, dim, depth // 2, context, blocks=(block,), embed=embed, encoder=encoder)


def weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def flops(model: Model, batch: Batch, plan: Plan) -> float:
    """Estimate the FLOPs of a step on an arranged batch."""
    body, extra = weights(model.layers), 0
    table = 6.0 * model.spec.vocab * model.spec.dim
    scored = float((batch.weights != 0).sum())
    beside = dict(model.named_children()).get("extra")
    if isinstance(plan, Rtd) and beside is not None:
        extra = body if plan.tied else weights(beside.get_submodule("generator.layers"))
        scored = float((batch["hidden"] != 0).sum()) if isinstance(batch, Rich) else scored
    elif isinstance(plan, Mtp) and beside is not None:
        extra, scored = weights(beside), scored * (1 + plan.ahead)
    elif isinstance(plan, Distil):
        return (6 + 2) * body * len(batch.tokens) + table * len(batch.tokens) * (1 + 1 / 3)
    elif isinstance(plan, Contrast):
        scored = 0.0
    if model.encoder is not None and isinstance(batch, Rich):
        return 6.0 * (body * len(batch.tokens) + weights(model.encoder.layers) * len(batch["source"])) + table * scored
    return 6.0 * (body + extra) * len(batch.tokens) + table * scored


def kept(name: str, g: Ground, args: argparse.Namespace) -> Model:
    """Return what an earlier run has made of the stack, without what its objective put beside it."""
    place = Path(args.out) / "weights" / f"{name}.safetensors"
    if not place.exists():
        sys.exit(f"{place} is missing: run --only {name} first")
    model = build(stack(g.tokenizer.vocab_size, name))
    state = load_file(place)
    with torch.no_grad():
        for key, p in model.named_parameters():
            p.copy_(state[key])
    return model


def pause(place: Path, model: Model, optimizer: Optimizer, at: tuple[float, int, float]) -> None:
    """Keep all that the rest of a training needs; `at`: FLOPs, steps and seconds so far."""
    state = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    state |= {f"optimizer/{name}": t.contiguous() for name, t in optimizer.state().items()}
    save_file(state | {"at": torch.tensor(at, dtype=torch.float64)}, place)


@torch.no_grad()
def resume(place: Path, model: Model, optimizer: Optimizer) -> tuple[float, int, float]:
    """Take up what `pause` has kept: -> FLOPs, steps and seconds so far."""
    state = load_file(place)
    for name, p in model.named_parameters():
        p.copy_(state[f"model/{name}"])
    optimizer.load({n.removeprefix("optimizer/"): t for n, t in state.items() if n.startswith("optimizer/")})
    spent, done, used = state["at"].tolist()
    return spent, int(done), used


def pretrained(name: str, g: Ground, args: argparse.Namespace) -> tuple[Model, Task, dict[str, Any]]:
    """Train until the FLOPs are spent, or to the end of a slice."""
    plan, seed = g.plan(name), args.seed
    s = stack(g.tokenizer.vocab_size, name)
    task = plan.task(g.tokenizer, s, seed)
    if isinstance(task, Taught):
        task.teach(kept("mlm", g, args), g.tokenizer)
    model = initialise(task.joined(build(s)), seed, Init())
    gentle = AdamW(LOW, (0.9, 0.98), weight_decay=0.01)
    usual = Muon() if args.optim == "muon" else replace(gentle, lr=args.lr)
    optimizer = Optimizer(model, gentle if isinstance(plan, Contrast) else usual)
    loader = Loader(g.train, rows=g.shape(plan).count, context=g.shape(plan).context, seed=seed)
    first = {"first_weights": heldout(task, model, g, plan)} if isinstance(plan, Contrast) else {}
    place = Path(args.out) / "weights" / f"{name}.safetensors"
    half = place.with_suffix(".part")
    place.parent.mkdir(exist_ok=True)
    spent, done, used = resume(half, model, optimizer) if half.exists() else (0.0, 0, 0.0)
    began, budget = time.process_time(), args.gflops * 1e9
    each = flops(model, task.arrange(loader.batch(0), 0), plan)
    steps = max(1, int(budget / each))
    plan_of_rates = Cosine(warmup=0.1, final=0.1)
    while spent < budget:
        batch = task.arrange(loader.batch(done), done)
        step(model, [batch], task.loss, optimizer, factor=factor(plan_of_rates, min(done, steps - 1), steps))
        spent, done = spent + flops(model, batch, plan), done + 1
        if args.slice and time.process_time() - began > args.slice and spent < budget:
            pause(half, model, optimizer, (spent, done, used + time.process_time() - began))
            sys.exit(f"{name}: {spent / 1e9:.0f} of {args.gflops:.0f} GFLOP; run again to go on")
    save_file({key: p.detach() for key, p in bare(model).named_parameters()}, place)
    known = {"steps": done, "gflops": spent / 1e9, "cpu_seconds": used + time.process_time() - began}
    return model, task, known | first


@torch.inference_mode()
def heldout(task: Task, model: Model, g: Ground, plan: Plan) -> dict[str, float]:
    """Score the objective on held-out text, beside what knowing only frequencies would give."""
    p = (g.counts + 1.0) / (g.counts + 1.0).sum()
    ordinary = Signs(g.tokenizer).special
    sums, weight, blind, marks, pieces, unnamed = dict[str, float](), 0.0, 0.0, 0.0, 0, np.zeros(2)
    shape = g.shape(plan)
    loader = Loader(g.heldout, rows=shape.count, context=shape.context, seed=0)
    for i, batch in enumerate(loader.evaluate(spread=task.compares)):
        arranged = task.arrange(batch, -1 - i)
        found = task.loss(model, arranged)
        weight, pieces = weight + arranged.weight, pieces + len(arranged.cu) - 1
        for key, value in {"loss": found.loss.item(), **found.metrics}.items():
            sums[key] = sums.get(key, 0.0) + value
        if isinstance(plan, Entity):
            unnamed += _by_frequency(arranged, g.names)
        named = arranged.weights.numpy() != 0
        targets = arranged.targets.numpy()[named]
        text = ~ordinary[targets]
        counted = arranged.weights.numpy()[named]
        blind += float(-(np.log(p[targets]) * counted * text).sum())  # marks are given away
        marks += float(counted[~text].sum())
        if i >= 24 and not isinstance(plan, Entity):  # there are few entities
            break
    said = {key: value / weight for key, value in sums.items()} | {"pieces": float(pieces)}
    if isinstance(plan, Entity):
        nats, right = (unnamed / weight).tolist()
        said |= {"baseline_entity_loss": nats, "baseline_entity_accuracy": right}
    return said | _baselines(plan, said, blind / weight, marks / weight, pieces / weight)


def _baselines(plan: Plan, said: dict[str, float], blind: float, marks: float, pieces: float) -> dict[str, float]:
    """Return what needs no network: `blind` nats of a unigram, shares of marks and of pieces in what is scored."""
    match plan:
        case Rtd():
            gone = said["replaced"]
            return {"baseline_accuracy": 1 - gone, "baseline_rtd_loss": _entropy(gone)}
        case Nsp() | Sop():
            return {"baseline_pair_accuracy": 0.5, "baseline_mlm_loss": blind}
        case Contrast():
            return {"baseline_retrieval": 1 / said["texts"]}
        case Distil():
            return {"baseline_text_loss": blind}
        case Entity():
            return {"baseline_mlm_loss": blind}
        case Mtp():  # no module guesses the first token of a row
            return {"baseline_next_loss": blind, "baseline_ahead_1_loss": blind * (1 - pieces)}
        case _:
            return {"baseline_loss": blind, "blind_loss": blind + _entropy(marks)}


def _by_frequency(batch: Batch, names: Counter[str]) -> np.ndarray:
    """Score the hidden entities of a step by how often each name stands in the training text: nats, and hits."""
    assert isinstance(batch, Rich)
    answer, asked = batch["answer"].numpy() - RESERVED, batch["asked"].numpy()
    p = np.array(list(names.values())) + 1.0
    return np.array([-(np.log(p / p.sum())[answer] * asked).sum(), ((answer == p.argmax()) * asked).sum()])


def _entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p) if 0 < p < 1 else 0.0


def carrier(name: str, model: Model) -> Model:
    """Return what a head is put on: the stack, or the encoder of two."""
    if name not in DOUBLE:
        return model
    assert model.encoder is not None
    return model.encoder


def jnli(model: Model, g: Ground, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Teach a head three quarters of JNLI, then the model too (Kumar 2022, LP-FT), and score the rest after each."""
    work = pairs(g, args)
    fitted(model, attach(model, work.card, args.seed), work)
    majority = {"majority": _majority(work)}
    found = {"probe": work.look(model, "cpu") | majority}
    optimizer = Optimizer(model, AdamW(lr=args.tune, betas=(0.9, 0.999), weight_decay=0.01))
    steps = work.steps_per_epoch * args.epochs
    rates = Cosine(warmup=0.1, final=0.0)
    for i in range(steps):
        step(model, [work.batch(i)], work.loss, optimizer, factor=factor(rates, i, steps))
    return found | {"tuned": work.look(model, "cpu") | majority}


def fitted(model: Model, head: Head, work: Headed) -> None:
    """Fit the head to vectors that stay as they are: logistic regression on numbers that were brought to one scale."""
    assert isinstance(head.out, nn.Linear) and isinstance(work.kind, Classify)
    seen, answers = [], []
    with torch.no_grad():
        for first in range(0, len(work.train), 64):
            batch = laid([item.pieces for item in work.train[first : first + 64]])
            hidden, ctx = forward(model, batch)
            seen.append(vectors(model, hidden, ctx, work.kind.pool))
            answers.append(batch["answer"].long())
    w, bias = logistic(torch.cat(seen), torch.cat(answers), len(work.card.labels), RIDGE)
    with torch.no_grad():
        head.out.weight.copy_(w.T)
        head.out.bias.copy_(bias)


def logistic(x: torch.Tensor, y: torch.Tensor, classes: int, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit classes to numbers brought to one scale: x (N, F), y (N,) -> weights (F, C) and bias (C,) for x as it is."""
    mean, spread = x.mean(0), x.std(0) + 1e-6
    x = (x - mean) / spread
    w, bias = torch.zeros(x.shape[1], classes, requires_grad=True), torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([w, bias], max_iter=100, line_search_fn="strong_wolfe")

    def lost() -> torch.Tensor:
        solver.zero_grad()
        value = F.cross_entropy(x @ w + bias, y) + ridge * w.square().sum()
        value.backward()
        return value

    solver.step(lost)
    w = (w / spread[:, None]).detach()
    return w, bias.detach() - mean @ w


def overlaps(g: Ground, args: argparse.Namespace) -> dict[str, float]:
    """Classify JNLI by no network: lengths, and shares of characters and of their pairs that both sentences have."""
    work = pairs(g, args)

    def told_of(items: list[Item]) -> torch.Tensor:
        return torch.tensor([_shared(*item.example.texts[:2]) for item in items])

    labels = work.card.labels
    y = torch.tensor([labels.index(str(item.example.answer)) for item in work.train])
    w, bias = logistic(told_of(work.train), y, len(labels), 1e-3)
    said = [labels[i] for i in (told_of(work.heldout) @ w + bias).argmax(-1).tolist()]
    return measured(work.kind, said, [item.example for item in work.heldout]) | {"majority": _majority(work)}


def _shared(a: str, b: str) -> list[float]:
    found = [float(len(a)), float(len(b))]
    for x, y in (({*a}, {*b}), ({*pairwise(a)}, {*pairwise(b)})):
        found += [len(x & y) / max(len(x), 1), len(x & y) / max(len(y), 1), 2 * len(x & y) / max(len(x) + len(y), 1)]
    return found


def pairs(g: Ground, args: argparse.Namespace) -> Headed:
    data = Source(source=args.jnli, holdout=0.25)
    return Headed(Classify(pool="pair"), data, Rows(count=32, context=256), g.tokenizer, 0)


def _majority(work: Headed) -> float:
    answers = [item.example.answer for item in work.heldout]
    return max(answers.count(label) for label in work.card.labels) / len(answers)


def one(name: str, g: Ground, args: argparse.Namespace, row: dict[str, Any]) -> dict[str, Any]:
    """Do for one objective what has not been done."""
    if name == "overlaps":
        return row | {"probe": overlaps(g, args), "parameters": 0}
    if "parameters" not in row:
        if name == "untrained":
            model = initialise(build(stack(g.tokenizer.vocab_size, name)), args.seed, Init())
            (Path(args.out) / "weights").mkdir(exist_ok=True)
            save_file(
                {key: p.detach() for key, p in model.named_parameters()}, Path(args.out) / f"weights/{name}.safetensors"
            )
        else:
            model, task, known = pretrained(name, g, args)
            row |= known | {"heldout": heldout(task, model, g, g.plan(name))}
        row["parameters"] = weights(bare(model))
    return row if args.no_jnli else row | jnli(carrier(name, kept(name, g, args)), g, args)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", required=True, help="folder with ja_aozora.*.jsonl.zst")
    p.add_argument("--jnli", required=True, help="jnli.jsonl")
    p.add_argument("--out", required=True, help="folder for tokenizer, shards and results.jsonl")
    p.add_argument("--only", action="append", default=[], help="run this one; may be repeated")
    p.add_argument("--gflops", type=float, default=3000.0, help="of training, each (default 3000)")
    p.add_argument("--bytes", type=int, default=8_000_000, help="of training text (default 8,000,000)")
    p.add_argument("--vocab", type=int, default=1024, help="pieces of the tokenizer (default 1024)")
    p.add_argument("--rows", type=int, default=16, help="of a step (default 16)")
    p.add_argument("--context", type=int, default=96, help="tokens of a row (default 96)")
    p.add_argument("--optim", choices=["muon", "adamw"], default="muon", help="of pretraining (default muon)")
    p.add_argument("--lr", type=float, default=2e-3, help="of adamw (default 2e-3)")
    p.add_argument("--no-jnli", action="store_true", help="leave JNLI for later")
    p.add_argument("--epochs", type=int, default=1, help="of JNLI, fine-tuned after the head is fitted (default 1)")
    p.add_argument("--tune", type=float, default=3e-4, help="rate of these epochs (default 3e-4)")
    p.add_argument("--slice", type=float, help="stop after so many CPU seconds of training; the next run goes on")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    g = ground(args)
    path = out / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows: dict[str, dict[str, Any]] = {row["objective"]: row for row in map(json.loads, lines)}  # the last one counts
    for name in args.only or ["overlaps", "untrained", *PLANS, "entity"]:
        row = rows.get(name, {"objective": name, "vocab": g.tokenizer.vocab_size})
        if "parameters" in row and (args.no_jnli or "tuned" in row):
            continue
        rows[name] = one(name, g, args, row)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[name]) + "\n")
        told(rows[name])


def told(row: dict[str, Any]) -> None:
    """Print what is known of one objective."""
    said = " ".join(f"{k}={v:.3f}" for k, v in row.get("heldout", {}).items())
    print(f"{row['objective']:11} {row.get('steps', 0):5} steps {row.get('cpu_seconds', 0):5.0f} s  {said}", flush=True)
    shares = [f"{how} {row[how]['accuracy']:.3f} [{row[how]['accuracy_low']:.3f}, {row[how]['accuracy_high']:.3f}]"
              for how in ("probe", "tuned") if how in row]  # fmt: skip
    if shares:
        print(f"{'':11} JNLI {'  '.join(shares)}  majority {row['probe']['majority']:.3f}", flush=True)


if __name__ == "__main__":
    main()
