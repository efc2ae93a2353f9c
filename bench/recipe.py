"""Time to a held-out score: our default recipe against a plain GPT-2 in transformers with AdamW and a tuned rate.

    python bench/recipe.py [--seconds 120] [--corpus python-stdlib]

The rival trains for `--seconds` at each of several learning rates, with a cosine to zero over exactly that time; its
best final held-out score is the target. Ours then trains for growing shares of that time, its schedule fitted to each,
until it reaches the target. Same tokenizer and shards, fp32; evaluation is not timed. The rival is 4 x 256 with rows of
256 tokens, 16 a step; each contender runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RATES = (1e-3, 2e-3, 4e-3)
SHARES = (0.25, 0.33, 0.4, 0.5, 0.67, 0.85, 1.0)


def rival(folder: Path, seconds: float, rate: float) -> dict[str, float]:
    """Train transformers' GPT-2 and score it on the held-out shards."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from terakoya.data import Loader, Shards

    train, heldout = Shards.open(folder / "data" / "train"), Shards.open(folder / "data" / "heldout")
    vocab, context, rows = len(train.token_bytes), 256, 16
    config = GPT2Config(
        vocab_size=vocab, n_positions=context, n_embd=256, n_layer=4, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    loader, step, spent = Loader(train, rows=rows, context=context, seed=0), 0, 0.0
    while spent < seconds:
        tick = time.perf_counter()
        batch = loader.batch(step)
        factor = min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * min(1.0, spent / seconds)))
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        optimizer.zero_grad()
        logits = model(input_ids=batch.tokens.view(rows, context)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, spent = step + 1, spent + time.perf_counter() - tick
    model.eval()
    nats, size = 0.0, 0
    with torch.inference_mode():
        for batch in Loader(heldout, rows=rows, context=context, seed=0).evaluate():
            begin = 0
            for end in batch.row_ends:
                logits = model(input_ids=batch.tokens[begin:end][None]).logits[0]
                losses = torch.nn.functional.cross_entropy(logits, batch.targets[begin:end], reduction="none")
                nats += (losses * batch.weights[begin:end]).sum().item()
                begin = end
            size += batch.bytes
    return {"bits_per_byte": nats / math.log(2) / size, "steps": step, "seconds": spent}


def ours(folder: Path, seconds: float) -> dict[str, float]:
    """Train our default recipe for the time and score it on the same shards."""
    from terakoya import device
    from terakoya.data import Loader, Shards
    from terakoya.train import loop
    from terakoya.train.objective import causal
    from terakoya.train.recipe import Recipe, resolve
    from terakoya.train.schedule import factor
    from terakoya.train.step import step

    device.keep_memory()
    train, heldout = Shards.open(folder / "data" / "train"), Shards.open(folder / "data" / "heldout")
    recipe, place = resolve(Recipe(), len(train.token_bytes)), device.choose("cpu")
    loader = Loader(train, rows=recipe.rows.count, context=recipe.rows.context, seed=0)
    model, optimizer = loop.fresh(recipe, place)
    throwaway = loop.fresh(recipe, place)
    trial = []
    for i in range(6):
        tick = time.perf_counter()
        step(throwaway[0], [loader.batch(i)], causal, throwaway[1], factor=0.1)
        trial.append(time.perf_counter() - tick)
    steps = max(2, int(seconds / sorted(trial[1:])[2]))
    spent = 0.0
    for i in range(steps):
        tick = time.perf_counter()
        rate = factor(recipe.schedule, i, steps)
        step(model, [loader.batch(i)], causal, optimizer, factor=rate, clip=recipe.clip)
        spent += time.perf_counter() - tick
    return {"bits_per_byte": loop.evaluate(model, heldout, recipe.rows, place), "steps": steps, "seconds": spent}


def prepare(corpus: str) -> Path:
    """Make tokenizer and shards once."""
    from dataclasses import replace

    from terakoya.train.prepare import prepare_data
    from terakoya.train.recipe import Recipe
    from terakoya.train.run import Run

    recipe = Recipe()
    recipe = replace(recipe, corpus=replace(recipe.corpus, source=corpus))
    run = Run.create(Path(tempfile.mkdtemp()) / "run", recipe)
    prepare_data(run, recipe, print)
    return run.folder


def alone(*arguments: object) -> dict[str, float]:
    """Run one contender in a process of its own."""
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def said(found: dict[str, float]) -> str:
    """One line of a result."""
    return f"{found['bits_per_byte']:.4f} bits/byte after {found['seconds']:.0f} s, {found['steps']} steps"


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--seconds", type=float, default=120)
    p.add_argument("--corpus", default="python-stdlib")
    p.add_argument("--one", nargs="+")
    args = p.parse_args()
    if args.one:
        who, folder, seconds, *rate = args.one
        found = (
            rival(Path(folder), float(seconds), float(rate[0]))
            if who == "rival"
            else ours(Path(folder), float(seconds))
        )
        print(json.dumps(found))
        return
    folder = prepare(args.corpus)
    scores = {rate: alone("rival", folder, args.seconds, rate) for rate in RATES}
    for rate, found in scores.items():
        print(f"GPT-2, AdamW {rate:g}: {said(found)}")
    target = min(found["bits_per_byte"] for found in scores.values())
    for share in SHARES:
        found = alone("ours", folder, args.seconds * share)
        print(
            f"terakoya: {said(found)}",
            flush=True,
        )
        if found["bits_per_byte"] <= target:
            print(f"target {target:.4f} reached in {found['seconds'] / args.seconds:.2f}x the time")
            return
    print(f"target {target:.4f} not reached")


if __name__ == "__main__":
    main()
