"""A century in one picture: every generation at equal parameters and equal FLOPs on the same Japanese text.

    python bench/lineage.py CORPUS [--flops 1e13] [--out docs/lineage.png]

Each family is built with the same depth, width and vocabulary and a tied head; the width of its FFN is chosen so that
all have the same number of parameters, the experts of a mixture included. All train by the same recipe for the same
FLOPs and are scored on the same held-out text. FLOPs, not seconds, bound the runs, so what else the machine does
changes no score.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from terakoya import config, device
from terakoya.data import Loader, Shards
from terakoya.model import spec
from terakoya.model.build import count
from terakoya.train import loop
from terakoya.train.objective import causal
from terakoya.train.prepare import prepare_data
from terakoya.train.recipe import Recipe, Rows, resolve
from terakoya.train.run import Run
from terakoya.train.schedule import factor
from terakoya.train.step import step
from terakoya.zoo import lineage

GENERATIONS = (
    "gpt", "gpt2", "gpt-j", "gpt-neox", "bloom", "llama", "mistral", "mixtral", "gemma2", "qwen3", "olmo2",
)  # fmt: skip
SCALE = (128, 4, 32)  # width, depth, head width


def shaped(name: str, vocab: int, context: int, parameters: int) -> spec.Model:
    """Return the family at the common scale, its FFN as wide as makes `parameters`."""
    s = replace(lineage.rescale(lineage.base(name), *SCALE), vocab=vocab, context=context)
    s = config.override(s, {"head.tied": True})  # a head of its own would be most of so small a model

    def at(hidden: int) -> spec.Model:
        return config.override(s, {"mlp.hidden": hidden})

    low, high = 1, 4096
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if count(at(8 * middle)) < parameters else (low, middle)
    return min((at(8 * h) for h in (max(1, low - 1), low)), key=lambda m: abs(count(m) - parameters))


def run(name: str, folder: Path, flops: float, parameters: int) -> dict[str, Any]:
    """Train one generation and score it."""
    device.keep_memory()
    train, heldout = Shards.open(folder / "data" / "train"), Shards.open(folder / "data" / "heldout")
    rows, place = Rows(8, 256), device.choose("cpu")
    s = shaped(name, len(train.token_bytes), rows.context, parameters)
    recipe = resolve(replace(Recipe(), model=s, family=name, rows=rows), s.vocab)
    steps = int(flops / (loop.flops_per_token(s, rows.context) * rows.count * rows.context))
    loader = Loader(train, rows=rows.count, context=rows.context, seed=0)
    model, optimizer = loop.fresh(recipe, place)
    began = time.perf_counter()
    for i in range(steps):
        rate = factor(recipe.schedule, i, steps)
        step(model, [loader.batch(i)], causal, optimizer, factor=rate, clip=recipe.clip)
    seconds = time.perf_counter() - began
    bits = loop.evaluate(model, heldout, rows, place)
    return {
        "family": name, "born": lineage.family(name).born, "parameters": count(s), "steps": steps,
        "tokens_per_second": steps * rows.count * rows.context / seconds, "bits_per_byte": bits,
    }  # fmt: skip


def draw(results: list[dict[str, Any]], out: Path) -> None:
    """Draw bits per byte against the year."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    years = [int(r["born"][:4]) + (int(r["born"][5:7]) - 0.5) / 12 for r in results]
    bits = [r["bits_per_byte"] for r in results]
    axes.plot(years, bits, "o", color="#1f5fa8")
    for i, (year, r) in enumerate(zip(years, results, strict=True)):
        title = lineage.family(r["family"]).title or r["family"]
        offset = (0, 7 if i % 2 else -14)
        axes.annotate(
            title, (year, r["bits_per_byte"]), textcoords="offset points", xytext=offset, ha="center", fontsize=9
        )
    axes.margins(0.08, 0.15)
    axes.set(xlabel="born", ylabel="held-out bits per byte")
    figure.savefig(out, dpi=130)


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("corpus")
    p.add_argument("--flops", type=float, default=1e13)
    p.add_argument("--parameters", type=int, default=1_900_000)
    p.add_argument("--out", type=Path, default=Path("docs/lineage.png"))
    p.add_argument("--work", type=Path, default=Path("runs/lineage-bench"))
    p.add_argument("--limit", type=int, default=12_000_000, help="bytes of text")
    args = p.parse_args()
    recipe = Recipe()
    recipe = replace(recipe, corpus=replace(recipe.corpus, source=args.corpus, limit=args.limit))
    prepare_data(Run.create(args.work, recipe), recipe, print)
    results = []
    for name in GENERATIONS:
        results.append(run(name, args.work, args.flops, args.parameters))
        r = results[-1]
        print(
            f"{r['born']}  {name:10s} {r['parameters']:9,d} parameters {r['steps']:5d} steps "
            f"{r['tokens_per_second']:8,.0f} tokens/s  {r['bits_per_byte']:.4f} bits/byte",
            flush=True,
        )
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    draw(results, args.out)


if __name__ == "__main__":
    main()
