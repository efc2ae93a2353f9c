"""Training speed against a plain GPT-2 in transformers with AdamW, eager and compiled: same data, shape and dtype.

    python bench/train.py [--shape A|B] [--rounds 7] [--steps 4] [--no-compile]

Every contender runs in a process of its own (the allocator's settings are per process); rounds are interleaved, so that
what else the machine does hits all alike. Prints medians, ratios, and the share of the matrix-product peak measured in
the same rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

SHAPES = {  # layers, width, heads, vocabulary, context, rows
    "A": (4, 256, 4, 8192, 256, 16),
    "B": (6, 384, 6, 65, 256, 16),
}


def ours(shape: tuple[int, ...], compiled: bool) -> Callable[[], None]:
    import torch

    from terakoya import device
    from terakoya.config import override
    from terakoya.data import Batch
    from terakoya.model.build import build, initialise
    from terakoya.train.objective import causal
    from terakoya.train.optim import AdamW, Optimizer
    from terakoya.train.step import step
    from terakoya.zoo import lineage

    layers, width, heads, vocab, context, rows = shape
    device.keep_memory()
    changes = {"dim": width, "depth": layers, "attention.heads": heads, "mlp.hidden": 4 * width, "vocab": vocab}
    model = initialise(build(override(lineage.base("gpt2"), changes | {"context": context})), 0)
    if compiled:
        for layer in model.layers:
            layer.compile()
    optimizer = Optimizer(model, AdamW())
    x = torch.randint(0, vocab, (rows, context + 1), generator=torch.Generator().manual_seed(0))
    cu = torch.arange(0, rows * context + 1, context, dtype=torch.int32)
    positions = torch.arange(context).repeat(rows)
    batch = Batch(x[:, :-1].reshape(-1), x[:, 1:].reshape(-1), torch.ones(rows * context), cu, positions)
    return lambda: void(step(model, [batch], causal, optimizer, factor=1.0))


def theirs(shape: tuple[int, ...], compiled: bool) -> Callable[[], None]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, width, heads, vocab, context, rows = shape
    config = GPT2Config(
        vocab_size=vocab, n_positions=context, n_embd=width, n_layer=layers, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    forward = torch.compile(model) if compiled else model
    x = torch.randint(0, vocab, (rows, context), generator=torch.Generator().manual_seed(0))

    def run() -> None:
        optimizer.zero_grad()
        loss = forward(input_ids=x, labels=x).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return run


def peak(shape: tuple[int, ...], compiled: bool) -> Callable[[], None]:
    import torch

    a = torch.randn(1024, 1024)
    return lambda: [torch.mm(a, a) for _ in range(40)] and None


CONTENDERS = {
    "terakoya": (ours, False),
    "hf": (theirs, False),
    "terakoya-compiled": (ours, True),
    "hf-compiled": (theirs, True),
}


def void(_: object) -> None:
    """Drop a result."""


def worker(name: str, shape: str) -> None:
    """Serve `steps` requests from standard input: run so many steps, answer with the median seconds of one."""
    make, compiled = CONTENDERS.get(name, (peak, False))
    run = make(SHAPES[shape], compiled)
    for _ in range(3):
        run()
    print("ready", flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            tick = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - tick)
        print(json.dumps(seconds), flush=True)


def flops(shape: tuple[int, ...]) -> float:
    """FLOPs of one step: 6 per matrix weight and token, causal attention at half its square."""
    layers, width, _, vocab, context, rows = shape
    weights = layers * 12 * width * width + vocab * width
    return rows * context * (6 * weights + 12 * layers * width * context / 2)


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--shape", choices=SHAPES, default="A")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--no-compile", action="store_true")
    p.add_argument("--worker")
    args = p.parse_args()
    if args.worker:
        worker(args.worker, args.shape)
        return
    names = [n for n in CONTENDERS if not (args.no_compile and "compiled" in n)] + ["peak"]
    command = [sys.executable, __file__, "--shape", args.shape, "--worker"]
    procs = {
        n: subprocess.Popen([*command, n], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for n in names
    }
    for name, proc in procs.items():
        assert proc.stdout and proc.stdout.readline() == "ready\n", name
    seconds: dict[str, list[float]] = {n: [] for n in names}
    for _ in range(args.rounds):
        for name, proc in procs.items():
            assert proc.stdin and proc.stdout
            proc.stdin.write(f"{args.steps}\n")
            proc.stdin.flush()
            seconds[name] += json.loads(proc.stdout.readline())
    for proc in procs.values():
        proc.communicate()
    report(args.shape, {n: statistics.median(s) for n, s in seconds.items()})


def report(shape: str, median: dict[str, float]) -> None:
    layers, width, _, vocab, context, rows = SHAPES[shape]
    best = 40 * 2 * 1024**3 / median.pop("peak")
    print(f"shape {shape}: {layers} x {width}, context {context}, vocabulary {vocab}, {rows} rows, fp32")
    print(f"measured peak {best / 1e9:.0f} GFLOP/s; floor {flops(SHAPES[shape]) / best * 1e3:.0f} ms a step")
    rivals = [s for n, s in median.items() if n.startswith("hf")]
    for name, s in median.items():
        share = flops(SHAPES[shape]) / s / best
        print(
            f"{name:18s} {s * 1e3:7.0f} ms/step {rows * context / s:8,.0f} tokens/s {share:5.0%} of peak"
            f"   {min(rivals) / s:5.2f}x the best of transformers"
        )


if __name__ == "__main__":
    main()
