"""Objectives side by side: one stack, the same parameters, the same text, the same FLOPs; then JNLI.

    python bench/objectives.py --text ../shared/data/pretrain --jnli ../shared/data/eval/jnli.jsonl --out runs/bench

For each objective: the held-out score beside its trivial baseline, and JNLI with the model frozen (linear probe) and
fine-tuned, with 95 % intervals (Wilson). Results go to OUT/results.jsonl; what stands there is not run again, so that a
long comparison can be done in parts (--only mlm --only rtd). "untrained" is the same network with its first weights.

FLOPs of a step: 6 per weight of the layers at work and token read (generator and further modules included), and 6 V D
per token that is scored; attention's own products are left out, they are the same for all.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from terakoya.train.objectives.rows import Rich
from terakoya.train.objectives.signs import Signs
from terakoya.train.optim import AdamW, Muon, Optimizer
from terakoya.train.recipe import Rows
from terakoya.train.schedule import Cosine, factor
from terakoya.train.step import step
from terakoya.tune.heads.head import attach
from terakoya.tune.heads.kinds import Classify
from terakoya.tune.heads.work import Headed, Source

PLANS: dict[str, Plan] = {
    "causal": Causal(), "prefix": Prefix(), "fim": Fim(), "mtp": Mtp(), "mlm": Mlm(), "mlm-words": Mlm(unit="script"),
    "mlm-static": Mlm(copies=10), "nsp": Nsp(), "sop": Sop(), "rtd": Rtd(), "permute": Permute(), "spans": Spans(),
    "ul2": Ul2(), "bart": Bart(), "contrast": Contrast(), "crops": Contrast(views="crops"), "distil": Distil("mlm"),
}  # fmt: skip
LEFTWARD = ("causal", "fim", "mtp", "prefix", "spans", "ul2", "bart")  # stacks that write: causal attention


@dataclass(frozen=True)
class Ground:
    """What all objectives share."""

    tokenizer: Tokenizer
    train: Shards
    heldout: Shards
    counts: np.ndarray  # of the training tokens
    rows: Rows  # of a step


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
    return Ground(tokenizer, train, heldout, counts, Rows(args.rows, args.context))


def stack(vocab: int, causal: bool) -> spec.Model:
    """One stack for all: pre-norm, rotary, gated."""
    attention = spec.Attention(heads=4, causal=causal, position=spec.Rope())
    block = spec.pre(spec.RMSNorm(), attention, spec.MLP(352, act="silu", gated=True))
    return spec.Model(vocab, dim=128, depth=4, context=512, blocks=(block,))


def weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def flops(model: Model, batch: Batch, plan: Plan) -> float:
    """Estimate the FLOPs of a step on an arranged batch."""
    body, extra = weights(model.layers), 0
    table = 6.0 * model.spec.vocab * model.spec.dim
    scored = float((batch.weights != 0).sum())
    beside = dict(model.named_children()).get("extra")
    if isinstance(plan, Rtd) and beside is not None:
        extra = weights(beside.get_submodule("generator.layers"))
        scored = float((batch["hidden"] != 0).sum()) if isinstance(batch, Rich) else scored
    elif isinstance(plan, Mtp) and beside is not None:
        extra, scored = weights(beside), scored * (1 + plan.ahead)
    elif isinstance(plan, Distil):
        return (6 + 2) * body * len(batch.tokens) + table * len(batch.tokens) * (1 + 1 / 3)
    elif isinstance(plan, Contrast):
        scored = 0.0
    return 6.0 * (body + extra) * len(batch.tokens) + table * scored


def pretrained(name: str, g: Ground, args: argparse.Namespace) -> tuple[Model, Task, dict[str, Any]]:
    """Train until the FLOPs are spent."""
    plan, seed = PLANS[name], args.seed
    s = stack(g.tokenizer.vocab_size, name in LEFTWARD)
    task = plan.task(g.tokenizer, s, seed)
    if isinstance(task, Taught):
        task.teach(pretrained("mlm", g, args)[0], g.tokenizer)
    model = initialise(task.joined(build(s)), seed, Init())
    optimizer = Optimizer(model, Muon() if args.optim == "muon" else AdamW(args.lr, (0.9, 0.98), weight_decay=0.01))
    loader = Loader(g.train, rows=g.rows.count, context=g.rows.context, seed=seed)
    spent, done, began = 0.0, 0, time.process_time()
    budget = args.gflops * 1e9
    first = flops(model, task.arrange(loader.batch(0), 0), plan)
    steps = max(1, int(budget / first))
    plan_of_rates = Cosine(warmup=0.1, final=0.1)
    while spent < budget:
        batch = task.arrange(loader.batch(done), done)
        step(model, [batch], task.loss, optimizer, factor=factor(plan_of_rates, min(done, steps - 1), steps))
        spent, done = spent + flops(model, batch, plan), done + 1
    told = {"steps": done, "gflops": spent / 1e9, "cpu_seconds": time.process_time() - began}
    return model, task, told


@torch.inference_mode()
def heldout(task: Task, model: Model, g: Ground, plan: Plan) -> dict[str, float]:
    """Score the objective on held-out text, beside what knowing only frequencies would give."""
    p = (g.counts + 1.0) / (g.counts + 1.0).sum()
    ordinary = Signs(g.tokenizer).special
    sums, weight, blind = dict[str, float](), 0.0, 0.0
    for i, batch in enumerate(Loader(g.heldout, rows=g.rows.count, context=g.rows.context, seed=0).evaluate()):
        arranged = task.arrange(batch, -1 - i)
        found = task.loss(model, arranged)
        weight += arranged.weight
        for key, value in {"loss": found.loss.item(), **found.metrics}.items():
            sums[key] = sums.get(key, 0.0) + value
        named = arranged.weights.numpy() != 0
        targets = arranged.targets.numpy()[named]
        text = ~ordinary[targets]
        blind += float(-(np.log(p[targets]) * arranged.weights.numpy()[named] * text).sum())  # marks are given away
        if i >= 24:
            break
    said = {key: value / weight for key, value in sums.items()}
    match plan:
        case Rtd():
            said["baseline_accuracy"] = 1 - said["replaced"]
            said["baseline_rtd_loss"] = _entropy(said["replaced"])
        case Nsp() | Sop():
            said |= {"baseline_pair_accuracy": 0.5, "baseline_mlm_loss": blind / weight}
        case Contrast():
            said["baseline_retrieval"] = weight / sums["texts"]
        case Distil():
            said["baseline_text_loss"] = blind / weight
        case Mtp():
            said["baseline_ahead"] = blind / weight
        case _:
            said["baseline_loss"] = blind / weight
    return said


def _entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p) if 0 < p < 1 else 0.0


def jnli(model: Model, g: Ground, args: argparse.Namespace, probe: bool) -> dict[str, float]:
    """Teach a head on three quarters of JNLI and score the rest."""
    data = Source(source=args.jnli, holdout=0.25)
    work = Headed(Classify(), data, Rows(count=32, context=256), g.tokenizer, 0)
    attach(model, work.card, args.seed)
    if probe:
        for name, p in model.named_parameters():
            p.requires_grad_(name.startswith("extra."))
    optimizer = Optimizer(model, AdamW(lr=1e-2 if probe else 1e-3, betas=(0.9, 0.999), weight_decay=0.01))
    steps = work.steps_per_epoch * args.epochs
    rates = Cosine(warmup=0.1, final=0.0)
    for i in range(steps):
        step(model, [work.batch(i)], work.loss, optimizer, factor=factor(rates, i, steps))
    return work.look(model, "cpu") | {"majority": _majority(work)}


def _majority(work: Headed) -> float:
    answers = [item.example.answer for item in work.heldout]
    return max(answers.count(label) for label in work.card.labels) / len(answers)


def one(name: str, g: Ground, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one objective."""
    row: dict[str, Any] = {"objective": name, "vocab": g.tokenizer.vocab_size}
    if name == "untrained":
        model = initialise(build(stack(g.tokenizer.vocab_size, False)), args.seed, Init())
    else:
        model, task, told = pretrained(name, g, args)
        row |= told | {"heldout": heldout(task, model, g, PLANS[name])}
    plain = bare(model)
    row["parameters"] = weights(plain)
    state = {n: p.detach().clone() for n, p in plain.named_parameters()}
    for how in () if args.no_jnli else ("probe", "tuned"):
        again = build(replace(plain.spec))
        again.load_state_dict(state, strict=False)
        again.head.weight = again.embed.token.weight
        row[how] = jnli(again, g, args, how == "probe")
    return row


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", required=True, help="folder with ja_aozora.*.jsonl.zst")
    p.add_argument("--jnli", required=True, help="jnli.jsonl")
    p.add_argument("--out", required=True, help="folder for tokenizer, shards and results.jsonl")
    p.add_argument("--only", action="append", default=[], help="run this one; may be repeated")
    p.add_argument("--gflops", type=float, default=6000.0, help="of training, each (default 6000)")
    p.add_argument("--bytes", type=int, default=8_000_000, help="of training text (default 8,000,000)")
    p.add_argument("--vocab", type=int, default=4096)
    p.add_argument("--rows", type=int, default=16, help="of a step (default 16)")
    p.add_argument("--context", type=int, default=96, help="tokens of a row (default 96)")
    p.add_argument("--optim", choices=["muon", "adamw"], default="muon", help="of pretraining (default muon)")
    p.add_argument("--lr", type=float, default=2e-3, help="of adamw (default 2e-3)")
    p.add_argument("--no-jnli", action="store_true", help="leave JNLI out")
    p.add_argument("--epochs", type=int, default=3, help="of JNLI (default 3)")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    g = ground(args)
    path = out / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    for name in args.only or ["untrained", *PLANS]:
        if any(row["objective"] == name for row in rows):
            continue
        rows.append(one(name, g, args))
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    for row in rows:
        said = " ".join(f"{k}={v:.3f}" for k, v in row.get("heldout", {}).items())
        print(f"{row['objective']:11} {row.get('steps', 0):5} steps {row.get('cpu_seconds', 0):5.0f} s  {said}")
        shares = [f"{how} {row[how]['accuracy']:.3f} [{row[how]['accuracy_low']:.3f}, {row[how]['accuracy_high']:.3f}]"
                  for how in ("probe", "tuned") if how in row]  # fmt: skip
        if shares:
            print(f"{'':11} JNLI {'  '.join(shares)}  majority {row['probe']['majority']:.3f}")


if __name__ == "__main__":
    main()
