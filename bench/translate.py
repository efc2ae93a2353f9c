"""Japanese to English from nothing, on the parallel documentation: chrF beside that of copying, and an attention map.

    python bench/translate.py --pairs ../shared/data/sft/parallel_pydocs_ja_en.jsonl.zst --minutes 8 --map map.png

A Transformer of 3 + 3 layers, 192 wide, learns for so many minutes of CPU time; then held-out pairs are translated.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from terakoya.cli.translate import draw
from terakoya.model import spec
from terakoya.model.build import Init, build, initialise
from terakoya.tokenizer import train
from terakoya.train.objectives.signs import CLS, SEP
from terakoya.train.optim import AdamW, Muon, Optimizer
from terakoya.train.recipe import Rows
from terakoya.train.schedule import Cosine, factor
from terakoya.train.step import step
from terakoya.tune.heads.examples import examples
from terakoya.tune.heads.head import attach
from terakoya.tune.heads.kinds import Translate
from terakoya.tune.heads.rewrite import attention, rewrite
from terakoya.tune.heads.work import Headed, Source
from terakoya.tune.rows import rows


def network(vocab: int, dim: int, depth: int, context: int) -> spec.Model:
    """Pre-norm, rotary, one token table for both sides and the head."""
    heads, ffn, norm = dim // 32, spec.MLP(dim * 8 // 3, act="silu", gated=True), spec.RMSNorm()
    seen = spec.Attention(heads, causal=False, position=spec.Rope())
    encoder = spec.Model(vocab, dim, depth, context, (spec.pre(norm, seen, ffn),), head=spec.Head(scores="nothing"))
    block = spec.pre(norm, replace(seen, causal=True), spec.Cross(heads), ffn)
    return spec.Model(vocab, dim, depth, context, (block,), embed=spec.Embed(shared=True), encoder=encoder)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pairs", required=True)
    p.add_argument("--minutes", type=float, default=8.0, help="of CPU time for training (default 8)")
    p.add_argument("--vocab", type=int, default=6000)
    p.add_argument("--dim", type=int, default=192)
    p.add_argument("--depth", type=int, default=3)
    p.add_argument("--rows", type=int, default=48, help="pairs a step (default 48)")
    p.add_argument("--context", type=int, default=64, help="tokens of a side at most; longer pairs are left out")
    p.add_argument("--scored", type=int, default=400, help="held-out pairs to translate (default 400)")
    p.add_argument("--optim", choices=["muon", "adamw"], default="adamw", help="(default adamw)")
    p.add_argument("--lr", type=float, default=2e-3, help="of adamw (default 2e-3)")
    p.add_argument("--map", help="draw where the model looked, as a PNG")
    args = p.parse_args()
    kind = Translate(scored=args.scored)
    texts = (t for x in examples(rows(Path(args.pairs)), kind) for t in (*x.texts, *x.answers))
    tokenizer = train(texts, "unigram", args.vocab, ("<|endoftext|>", CLS, SEP))
    data = Source(source=args.pairs, holdout=0.02, overlong="drop")
    work = Headed(kind, data, Rows(count=args.rows, context=args.context), tokenizer, 0)
    for note in work.notes:
        print(note)
    model = initialise(build(network(tokenizer.vocab_size, args.dim, args.depth, args.context + 1)), 0, Init())
    attach(model, work.card, 0)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    optimizer = Optimizer(model, Muon() if args.optim == "muon" else AdamW(args.lr, (0.9, 0.98), weight_decay=0.01))
    began, seconds, done, rates = time.process_time(), args.minutes * 60, 0, Cosine(warmup=0.05, final=0.02)
    while (spent := time.process_time() - began) < seconds:  # the schedule follows the clock
        share = factor(rates, int(1000 * spent / seconds), 1000)
        seen = step(model, [work.batch(done)], work.loss, optimizer, factor=share)
        done += 1
        if done % 50 == 0:
            print(f"step {done}  loss {seen.loss:.3f}  {spent:.0f} s", flush=True)
    print(f"{done} steps, {done / work.steps_per_epoch:.1f} epochs, {seconds:.0f} s of CPU time")
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
