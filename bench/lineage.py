"""A century in one picture: every generation on the same Japanese text at equal parameters, FLOPs and seconds.

    python bench/lineage.py CORPUS [--flops 6e12] [--seconds 20] [--only gpt lstm …] [--out docs/lineage.png]

Transformers are built with the same depth, width and vocabulary and a tied head, and the width of their FFN is chosen
so that all have the same number of parameters, the experts of a mixture included; where there is no FFN (RNN, LSTM,
GRU, Mamba) the width of the model is chosen, at the depth that the family was born with. All train by the same recipe
and are scored on the same held-out text: once after equal FLOPs, once after equal seconds of one processor core
(processor time, so what else the machine does changes little). The n-gram model has no FLOPs to speak of: it counts as
many tokens as GPT reads with its FLOPs, and in the seconds all the text it can. Tokens per second of training and
generation (batch of one, from a prompt of 16) are of one core too. Results are kept by family in the .json file beside
the picture: `--only` measures some anew and leaves the others.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from terakoya import config, device
from terakoya.data import Loader, Shards
from terakoya.engine.generate import complete
from terakoya.engine.sampling import Sampling
from terakoya.model import spec
from terakoya.model.build import count, parameters
from terakoya.model.model import Model
from terakoya.ngram.counts import count as count_ngrams
from terakoya.ngram.model import NGram
from terakoya.ngram.run import evaluate as score_ngrams
from terakoya.tokenizer import Tokenizer
from terakoya.train import loop
from terakoya.train.objective import causal
from terakoya.train.optim import Optimizer
from terakoya.train.prepare import prepare_data
from terakoya.train.recipe import Recipe, Rows, resolve
from terakoya.train.run import Run
from terakoya.train.schedule import factor
from terakoya.train.step import step
from terakoya.zoo import lineage

GENERATIONS = (
    "ngram", "rnn", "lstm", "gru", "gpt", "gpt2", "gpt-j", "gpt-neox", "bloom", "rwkv", "llama", "mistral", "mamba",
    "mixtral", "gemma2", "mamba2", "qwen3", "olmo2", "transformer-xl", "sparse-transformer", "reformer",
    "linear-attention", "s4", "s4d", "h3", "hyena", "retnet", "jamba", "recurrentgemma", "gated-deltanet", "rwkv7",
)  # fmt: skip
SCALE = (128, 4, 32)  # width, depth, head width
BORN_DEEP = {"rnn": 1, "lstm": 2, "gru": 2}  # without a residual stream four layers would not learn
ROWS = Rows(8, 256)
ORDER = 5
KEEP = 20  # steps between two looks that a killed training goes on from


def shaped(name: str, vocab: int, context: int, parameters: int) -> spec.Model:
    """Return the family at the common scale, its FFN (or else itself) as wide as makes `parameters`."""
    width, depth, head = SCALE

    def sized(dim: int) -> spec.Model:
        s = lineage.rescale(lineage.base(name), dim, BORN_DEEP.get(name, depth), head)
        return config.override(replace(s, vocab=vocab, context=context), {"head.tied": True})

    s = sized(width)  # a head of its own would be most of so small a model
    if config.select(s, "mlp"):
        return _fitted(lambda n: config.override(s, {"mlp.hidden": 8 * n}), 4096, parameters)
    step = {"rwkv": head, "rwkv7": head, "mamba2": 16}.get(name, 8)  # of widths that its heads allow
    return _fitted(lambda n: sized(step * n), 512 // step, parameters)


def _fitted(at: Any, high: int, parameters: int) -> spec.Model:
    low = 1
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if count(at(middle)) < parameters else (low, middle)
    return min((at(n) for n in (max(1, low - 1), low)), key=lambda m: abs(count(m) - parameters))


def _keep(path: Path, model: Model, optimizer: Optimizer, done: int, seconds: float) -> None:
    """Write where a training stands, so that one that was killed goes on from there."""
    tensors = {f"model/{n}": p.detach().contiguous() for n, p in parameters(model).items()}
    tensors |= {f"optimizer/{n}": t.contiguous() for n, t in optimizer.state().items()}
    partial = path.with_suffix(".partial")
    save_file(tensors | {"at": torch.tensor([done, seconds], dtype=torch.float64)}, partial)
    partial.replace(path)


@torch.no_grad()
def _resumed(path: Path, model: Model, optimizer: Optimizer) -> tuple[int, float]:
    """Take up a training where it stood; return the steps done and the seconds they took."""
    held = load_file(path)
    for name, p in parameters(model).items():
        p.copy_(held[f"model/{name}"])
    optimizer.load({n.partition("/")[2]: t for n, t in held.items() if n.startswith("optimizer/")})
    return int(held["at"][0]), float(held["at"][1])


class Bench:
    """The text, and how to train and score on it."""

    def __init__(self, folder: Path, parameters: int) -> None:
        device.keep_memory()
        self.train, self.heldout = (Shards.open(folder / "data" / side) for side in ("train", "heldout"))
        self.tokenizer = Tokenizer.load(folder / "tokenizer")
        self.folder, self.parameters = folder, parameters
        self.place = device.choose("cpu")

    def shape(self, name: str) -> spec.Model:
        return shaped(name, len(self.train.token_bytes), ROWS.context, self.parameters)

    def steps(self, s: spec.Model, flops: float) -> int:
        return int(flops / (loop.flops_per_token(s, ROWS.context) * ROWS.count * ROWS.context))

    def learn(
        self, name: str, s: spec.Model, steps: int, whole: int | None = None, kept: Path | None = None
    ) -> tuple[Model, float]:
        """Train for `steps` of a schedule of `whole`; return the model and the seconds of one core."""
        recipe = resolve(replace(Recipe(), model=s, family=name, rows=ROWS), s.vocab)
        loader = Loader(self.train, rows=ROWS.count, context=ROWS.context, seed=0)
        model, optimizer = loop.fresh(recipe, self.place)
        first, before = _resumed(kept, model, optimizer) if kept and kept.exists() else (0, 0.0)
        began = time.process_time()
        for i in range(first, steps):
            rate = factor(recipe.schedule, i, whole or steps)
            step(model, [loader.batch(i)], causal, optimizer, factor=rate, clip=recipe.clip)
            if kept and (i % KEEP == KEEP - 1 or i == steps - 1):
                _keep(kept, model, optimizer, i + 1, before + time.process_time() - began)
        return model, before + time.process_time() - began

    def network(self, name: str, flops: float, seconds: float) -> dict[str, Any]:
        s = self.shape(name)
        row: dict[str, Any] = {"family": name, "born": lineage.family(name).born, "parameters": count(s)}
        if flops:
            steps = self.steps(s, flops)
            kept = self.folder / f"{name}-{count(s)}-{steps}.safetensors"
            model, spent = self.learn(name, s, steps, kept=kept)
            row |= {"steps": steps, "tokens_per_second": steps * ROWS.count * ROWS.context / spent}
            row |= {"bits_per_byte": loop.evaluate(model, self.heldout, ROWS, self.place)}
            row |= {"generated_per_second": self.speed(model)}
            kept.unlink()
        if seconds:
            self.learn(name, s, 2, 100)  # the first step is slow
            steps = max(8, int(seconds / (self.learn(name, s, 6, 100)[1] / 6)))
            model, spent = self.learn(name, s, steps)
            row |= {"seconds": spent, "seconds_steps": steps}
            row |= {"seconds_bits_per_byte": loop.evaluate(model, self.heldout, ROWS, self.place)}
            row |= {"tokens_per_second": steps * ROWS.count * ROWS.context / spent}
            row.setdefault("generated_per_second", self.speed(model))
        return row

    def ngrams(self, flops: float, seconds: float) -> dict[str, Any]:
        limit = self.steps(self.shape("gpt"), flops) * ROWS.count * ROWS.context
        row: dict[str, Any] = {"family": "ngram", "born": lineage.nodes()["ngram"].born}
        for key, tokens in (("", limit), ("seconds_", self.train.tokens)):
            tokens = min(tokens, self.train.tokens)
            starts = np.asarray(self.train.starts)
            starts = np.append(starts[starts < tokens], tokens)
            began = time.process_time()
            model = NGram(count_ngrams(self.train.slice(0, tokens), starts, len(self.train.token_bytes), ORDER))
            spent = time.process_time() - began
            row |= {f"{key}tokens": tokens, f"{key}bits_per_byte": score_ngrams(model, self.heldout, ROWS)}
            row |= {f"{key}parameters": model.size, f"{key}tokens_per_second": tokens / spent}
        row |= {"seconds": spent, "generated_per_second": self.speed(model)}
        return row

    def speed(self, model: Model, tokens: int = 64) -> float:
        """Return tokens of one answer per second of one core."""
        prompt = self.train.slice(0, 16).tolist()
        how = Sampling(temperature=0, max_tokens=tokens, min_tokens=tokens)
        complete(model, self.tokenizer, prompt, replace(how, max_tokens=4, min_tokens=4))
        began = time.process_time()
        done = complete(model, self.tokenizer, prompt, how)
        return done.tokens / (time.process_time() - began)


def draw(results: list[dict[str, Any]], out: Path) -> None:
    """Draw bits per byte, a line per generation in the order of birth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.9 + 0.3 * len(results)), layout="constrained")
    axes = figure.subplots()
    names = [f"{lineage.nodes()[r['family']].title or r['family']}  {r['born'][:4]}" for r in results]
    for key, label, mark, colour in (
        ("bits_per_byte", "equal FLOPs", "o", "#1f5fa8"), ("seconds_bits_per_byte", "equal seconds", "D", "#b5382a"),
    ):  # fmt: skip
        have = [(r[key], i) for i, r in enumerate(results) if key in r]
        if have:
            axes.plot(*zip(*have, strict=True), mark, color=colour, label=label)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set(xlabel="held-out bits per byte (less is better)")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(out, dpi=130)


def told(r: dict[str, Any]) -> str:
    """Return one line on a row."""
    number = lambda key, form: format(r[key], form) if key in r else "-"
    return (
        f"{r['born']:8s} {r['family']:10s} {number('parameters', ',d'):>10s} parameters  equal FLOPs: "
        f"{number('bits_per_byte', '.4f')} bits/byte, {number('tokens_per_second', ',.0f')} tokens/s; equal seconds: "
        f"{number('seconds_bits_per_byte', '.4f')} ({number('seconds', '.0f')} s); generates "
        f"{number('generated_per_second', ',.0f')} tokens/s"
    )


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("corpus")
    p.add_argument("--flops", type=float, default=6e12, help="0: leave these figures as they are")
    p.add_argument("--seconds", type=float, default=20.0, help="of one core; 0: leave these figures as they are")
    p.add_argument("--parameters", type=int, default=1_900_000)
    p.add_argument("--only", nargs="+", default=list(GENERATIONS), metavar="FAMILY")
    p.add_argument("--out", type=Path, default=Path("docs/lineage.png"))
    p.add_argument("--work", type=Path, default=Path("runs/lineage-bench"))
    p.add_argument("--limit", type=int, default=12_000_000, help="bytes of text")
    args = p.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe()
    recipe = replace(recipe, corpus=replace(recipe.corpus, source=args.corpus, limit=args.limit))
    prepare_data(Run.create(args.work, recipe), recipe, print)
    bench, store = Bench(args.work, args.parameters), args.out.with_suffix(".json")
    kept = {r["family"]: r for r in json.loads(store.read_text(encoding="utf-8"))} if store.exists() else {}
    for name in args.only:
        found = (
            bench.ngrams(args.flops or 6e12, args.seconds)
            if name == "ngram"
            else bench.network(name, args.flops, args.seconds)
        )
        kept[name] = kept.get(name, {}) | found
        print(told(kept[name]), flush=True)
        rows = sorted(kept.values(), key=lambda r: r["born"])
        store.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        draw(rows, args.out)


if __name__ == "__main__":
    main()
