"""Japanese to English from nothing, on the parallel documentation: chrF beside that of copying, and an attention map.

    python bench/translate.py --pairs ../shared/data/sft/parallel_pydocs_ja_en.jsonl.zst --minutes 9 --map map.png

A Transformer of 2 + 2 layers, 128 wide, learns for so many minutes of CPU time; then held-out pairs are translated.
Small and with Muon, because ten minutes of one core are few: 3 + 3 layers 192 wide do not see all pairs once. Pairs of
about the same length stand in one step, so that those of equal length share one call of attention.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from terakoya.cli.translate import draw
from terakoya.model import spec
from terakoya.model.build import Init, build, initialise
from terakoya.tokenizer import train
from terakoya.train.objectives.rows import Rich, laid
from terakoya.train.objectives.signs import CLS, SEP
from terakoya.train.optim import AdamW, Muon, Optimizer
from terakoya.train.recipe import Rows
from terakoya.train.schedule import Stable, factor
from terakoya.train.step import step
from terakoya.tune.heads.examples import examples
from terakoya.tune.heads.head import attach
from terakoya.tune.heads.kinds import Translate
from terakoya.tune.heads.rewrite import attention, rewrite
from terakoya.tune.heads.work import Headed, Item, Source
from terakoya.tune.rows import rows


def network(vocab: int, dim: int, depth: int, context: int) -> spec.Model:
    """Pre-norm, rotary, one token table for both sides and the head."""
    heads, ffn, norm = dim // 32, spec.MLP(dim * 8 // 3, act="silu", gated=True), spec.RMSNorm()
    seen = spec.Attention(heads, causal=False, position=spec.Rope())
    encoder = spec.Model(vocab, dim, depth, context, (spec.pre(norm, seen, ffn),), head=spec.Head(scores="nothing"))
    block = spec.pre(norm, replace(seen, causal=True), spec.Cross(heads), ffn)
    return spec.Model(vocab, dim, depth, context, (block,), embed=spec.Embed(shared=True), encoder=encoder)


def batches(items: Sequence[Item], size: int, seed: int) -> Iterator[Rich]:
    """Deal pairs for ever: steps of about `size` target tokens, made of neighbours in length among 50 steps' pairs."""
    lengths = [(len(i.pieces[0].tokens), int(i.pieces[0].more["length"][0])) for i in items]
    mean = sum(a for a, _ in lengths) / len(lengths)
    epoch = 0
    while True:
        rng = np.random.default_rng([seed, epoch])
        order, some, steps = rng.permutation(len(items)).tolist(), int(50 * size / mean), list[list[int]]()
        for first in range(0, len(order), some):
            held = 0
            for i in sorted(order[first : first + some], key=lengths.__getitem__):
                if held + lengths[i][0] > size or not held:
                    steps.append([])
                    held = 0
                steps[-1].append(i)
                held += lengths[i][0]
        yield from (laid([items[i].pieces for i in steps[n]]) for n in rng.permutation(len(steps)))
        epoch += 1


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pairs", required=True)
    p.add_argument("--minutes", type=float, default=9.0, help="of CPU time for training (default 9)")
    p.add_argument("--vocab", type=int, default=4000)
    p.add_argument("--dim", type=int, default=128)
    p.add_argument("--depth", type=int, default=2, help="layers of either half (default 2)")
    p.add_argument("--tokens", type=int, default=864, help="of targets in a step (default 864)")
    p.add_argument("--context", type=int, default=64, help="tokens of a side at most; longer pairs are left out")
    p.add_argument("--scored", type=int, default=400, help="held-out pairs to translate (default 400)")
    p.add_argument("--optim", choices=["muon", "adamw"], default="muon", help="(default muon)")
    p.add_argument("--lr", type=float, default=2e-3, help="of adamw (default 2e-3)")
    p.add_argument("--map", help="draw where the model looked, as a PNG")
    args = p.parse_args()
    kind = Translate(scored=args.scored)
    texts = [t for x in examples(rows(Path(args.pairs)), kind) for t in (*x.texts, *x.answers)]
    some = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:20_000].tolist()]
    tokenizer = train(some, "unigram", args.vocab, ("<|endoftext|>", CLS, SEP))
    data = Source(source=args.pairs, holdout=0.02, overlong="drop")
    work = Headed(kind, data, Rows(count=32, context=args.context), tokenizer, 0)
    for note in work.notes:
        print(note)
    model = initialise(build(network(tokenizer.vocab_size, args.dim, args.depth, args.context + 1)), 0, Init())
    attach(model, work.card, 0)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    optimizer = Optimizer(model, Muon() if args.optim == "muon" else AdamW(args.lr, (0.9, 0.98), weight_decay=0.01))
    began, seconds, rates = time.process_time(), args.minutes * 60, Stable(warmup=0.03, decay=0.6, final=0.0)
    done, pairs, losses = 0, 0, list[float]()
    for batch in batches(work.train, args.tokens, 0):
        if (spent := time.process_time() - began) >= seconds:
            break
        share = factor(rates, int(1000 * spent / seconds), 1000)  # the schedule follows the clock
        losses.append(step(model, [batch], work.loss, optimizer, factor=share).loss)
        done, pairs = done + 1, pairs + len(batch["length"])
        if done % 200 == 0:
            print(f"step {done}  loss {sum(losses[-200:]) / 200:.3f}  {spent:.0f} s", flush=True)
    print(f"{done} steps, {pairs / len(work.train):.1f} epochs, {seconds:.0f} s of CPU time")
    found = work.look(model, "cpu")
    print(f"chrF {found['chrf']:.2f}; of copying the source {found['chrf_of_copying']:.2f}")
    shown = [item.example for item in work.heldout[:8]]
    said = rewrite(model, tokenizer, [x.texts[0] for x in shown])
    for x, text in zip(shown, said, strict=True):
        print(f"  {x.texts[0]}\n    said   {text}\n    wanted {x.answers[0]}")
    if args.map:
        best = min(shown, key=lambda x: abs(len(x.texts[0]) - 24))
        looks, source, target = attention(model, tokenizer, best.texts[0], best.answers[0])
        draw(looks.mean(0), source, target, Path(args.map))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
