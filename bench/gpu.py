"""Decoding and prefill on a GPU through the Engine: kernels and recordings, kernels alone, and the generic path.

    python bench/gpu.py MODEL [--dtype bfloat16] [--batches 1 4 16 64] [--contexts 128 1024] [--tokens 64] [--pack int4]

Each contender answers the same prompts, greedy; a first round, which compiles and records, is not counted. Printed are
tokens per second of whole steps (scheduler, sampling and text included), and what each is of the generic path.
It has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

import torch

from terakoya.engine.engine import Engine
from terakoya.engine.request import Request
from terakoya.engine.runner import TorchRunner
from terakoya.engine.sampling import Sampling
from terakoya.models import open_model
from terakoya.quant.codecs import named
from terakoya.quant.linear import quantise
from terakoya.zoo.convert import Loaded

CONTENDERS = ("recorded", "kernels", "generic")


def engine_of(loaded: Loaded, kind: str, room: int, batch: int) -> Engine:
    shapes = TorchRunner(loaded.model).shapes()
    need = sum(s.bytes for s in shapes.values()) * (room + 64) * batch
    engine = Engine(loaded, memory_bytes=need, threaded=False, max_running=batch, max_tokens_per_step=2048)
    if kind == "kernels":
        engine.runner.graphs = None  # type: ignore[union-attr]
    if kind == "generic":
        engine.runner = TorchRunner(loaded.model)
    return engine


def measured(engine: Engine, batch: int, context: int, tokens: int) -> tuple[float, float]:
    """Return the tokens per second that are read, and that are written."""
    rng, speeds = random.Random(0), (0.0, 0.0)
    for _ in range(2):
        vocab = engine.model.spec.vocab
        prompts = [tuple(rng.randrange(vocab) for _ in range(context)) for _ in range(batch)]
        how = Sampling(temperature=0, max_tokens=tokens)
        handles = [engine.submit(Request(p, how, ignore_end=True)) for p in prompts]
        torch.cuda.synchronize()
        begin = time.perf_counter()
        while (
            engine.counts.drawn == 0 or any(c.said == 0 for c in engine.scheduler.running) or engine.scheduler.waiting
        ):
            engine.step()
        torch.cuda.synchronize()
        middle, drawn = time.perf_counter(), engine.counts.drawn
        while engine.step():
            pass
        torch.cuda.synchronize()
        end = time.perf_counter()
        assert all(done.finish == "length" for handle in handles for done in handle.result())
        speeds = (batch * context / (middle - begin), (engine.counts.drawn - drawn) / (end - middle))
    return speeds


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("model")
    ask.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    ask.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    ask.add_argument("--contexts", type=int, nargs="+", default=[128, 1024])
    ask.add_argument("--tokens", type=int, default=64)
    ask.add_argument("--pack", help="int4, int8 or fp8")
    given = ask.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA device here")
    loaded = open_model(given.model)
    if given.pack:
        quantise(loaded.model, named(given.pack))
    loaded.model.to("cuda", getattr(torch, given.dtype))
    print(
        f"{torch.cuda.get_device_name()} · torch {torch.__version__} · {given.model} · {given.dtype} {given.pack or ''}"
    )
    for context in given.contexts:
        for batch in given.batches:
            found = {}
            for kind in CONTENDERS:
                with engine_of(loaded, kind, context + given.tokens, batch) as engine:
                    if (batch, context) == (given.batches[0], given.contexts[0]):
                        print(engine.describe())
                    found[kind] = measured(engine, batch, context, given.tokens)
            for kind, (read, wrote) in found.items():
                base = found["generic"]
                ratio = f"{read / base[0]:.1f} × and {wrote / base[1]:.1f} × of generic"
                print(f"batch {batch} context {context} {kind}: read {read:,.0f}/s, written {wrote:,.0f}/s, {ratio}")


if __name__ == "__main__":
    main()
