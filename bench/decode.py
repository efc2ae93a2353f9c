"""Decoding and prefill on the CPU: the native program, transformers, and llama.cpp where it is installed.

    python bench/decode.py [--model smollm2-135m-instruct] [--batches 1 4 16] [--contexts 128 1024] [--rounds 3]
                           [--tokens 24] [--only ours llama transformers] [--threads 2]

Rounds are interleaved, so that what else the machine does hits all alike; each figure is the median and the best of all
steps. `ours` decodes batch 1 through `terakoya.engine.generate.generate` (sampling and detokenising included) and
larger batches through `Native.step`. llama.cpp is used through llama-cpp-python on the same GGUF file, set
OMP_WAIT_POLICY=active for its best. The roofline is the time to read the weights once, at the speed at which the same
threads read them in the same round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from terakoya.engine.generate import generate
from terakoya.engine.native import Native, NativeModel
from terakoya.engine.sampling import Sampling
from terakoya.models import find
from terakoya.zoo.convert import Loaded, load, save

Steps = list[float]  # seconds of each


def timed(step: Callable[[int], object], count: int) -> Steps:
    out = []
    for number in range(count):
        began = time.perf_counter()
        step(number)
        out.append(time.perf_counter() - began)
    return out


def prompt(loaded: Loaded, count: int) -> list[int]:
    assert loaded.tokenizer is not None
    text = "The history of schools begins long before the first of them had a name or a roof. " * (count // 8 + 4)
    return loaded.tokenizer.encode(text)[:count]


class Ours:
    """The native program."""

    def __init__(self, loaded: Loaded, weights: Any, threads: int) -> None:
        self.loaded, self.native = loaded, Native.lower(loaded, weights, threads)
        self.model = NativeModel(self.native)
        self.torch_threads = 1  # what PyTorch still does is small, and its threads spin where ours work

    def decode(self, batch: int, context: int, tokens: int) -> Steps:
        """Return the seconds per step, after a prompt of `context` tokens in each of `batch` sequences."""
        ids = prompt(self.loaded, context)
        if batch == 1:
            return self.public(ids, tokens)
        slots = [self.native.slot() for _ in range(batch)]
        for slot in slots:
            self.native.step(ids, [slot], [len(ids)])
        new = [ids[-1]] * batch

        def step(_: int) -> None:
            nonlocal new
            new = self.native.step(new, slots, [1] * batch).argmax(-1).tolist()

        return timed(step, tokens)

    def public(self, ids: list[int], tokens: int) -> Steps:
        assert self.loaded.tokenizer is not None
        sampling = Sampling(temperature=0, max_tokens=tokens + 1, min_tokens=tokens + 1)
        answer = generate(self.model, self.loaded.tokenizer, ids, sampling)  # type: ignore[arg-type]
        next(answer)
        return timed(lambda _: next(answer), tokens)

    def prefill(self, count: int) -> Steps:
        ids, slot = prompt(self.loaded, count), self.native.slot()
        return timed(lambda _: self.native.step(ids, [slot], [count]), 1)

    def roofline(self) -> float:
        return self.native.program.weights.nbytes / max(self.native.program.read_speed(4) for _ in range(3))


class Transformers:
    """`generate` in fp32 with its own cache."""

    def __init__(self, loaded: Loaded) -> None:
        from transformers import AutoModelForCausalLM

        self.loaded, self.torch_threads = loaded, torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder:
            save(loaded, Path(folder))
            self.model = AutoModelForCausalLM.from_pretrained(folder).eval()

    @torch.inference_mode()
    def generate(self, batch: int, context: int, tokens: int) -> Steps:
        """Return the seconds to each token, the first with the prompt."""
        ids, seen = torch.tensor([prompt(self.loaded, context)] * batch), [time.perf_counter()]

        def note(*_: object) -> bool:
            seen.append(time.perf_counter())
            return False

        self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
            stopping_criteria=[note],
        )  # fmt: skip
        return [b - a for a, b in pairwise(seen)]

    def decode(self, batch: int, context: int, tokens: int) -> Steps:
        return self.generate(batch, context, min(tokens, 8) + 1)[1:]

    def prefill(self, count: int) -> Steps:
        return self.generate(1, count, 1)


class Llama:
    """llama.cpp through llama-cpp-python's low-level calls."""

    def __init__(self, loaded: Loaded, path: Path, threads: int, batch: int, context: int) -> None:
        import llama_cpp as c

        self.c, self.loaded, self.torch_threads = c, loaded, 1
        c.llama_backend_init()
        params = c.llama_model_default_params()
        self.model = c.llama_model_load_from_file(str(path).encode(), params)
        setting = c.llama_context_default_params()
        setting.n_ctx, setting.n_batch, setting.n_ubatch, setting.n_seq_max = batch * (context + 128), 1024, 512, batch
        setting.n_threads = setting.n_threads_batch = threads
        self.context = c.llama_init_from_model(self.model, setting)
        assert self.context, "llama.cpp gives no context"
        self.rows = c.llama_batch_init(1024, 0, 1)

    def feed(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """Run (token, position, sequence, whether logits are wanted)."""
        b = self.rows
        b.n_tokens = len(tokens)
        for n, (token, position, sequence, wanted) in enumerate(tokens):
            b.token[n], b.pos[n], b.n_seq_id[n] = token, position, 1
            b.seq_id[n][0], b.logits[n] = sequence, int(wanted)
        assert self.c.llama_decode(self.context, b) == 0

    def clear(self) -> None:
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)

    def decode(self, batch: int, context: int, tokens: int) -> Steps:
        ids = prompt(self.loaded, context)
        self.clear()
        for sequence in range(batch):
            self.feed([(t, n, sequence, n + 1 == context) for n, t in enumerate(ids)])

        def step(n: int) -> None:
            self.feed([(ids[n % context], context + n, s, True) for s in range(batch)])
            for s in range(batch):  # what a sampler would look at
                self.c.llama_get_logits_ith(self.context, s)[0]

        return timed(step, tokens)

    def prefill(self, count: int) -> Steps:
        ids = prompt(self.loaded, count)
        self.clear()

        def step(_: int) -> None:
            self.feed([(t, n, 0, n + 1 == count) for n, t in enumerate(ids)])
            self.c.llama_get_logits_ith(self.context, count - 1)[0]

        return timed(step, 1)


def report(title: str, times: dict[str, Steps], work: int, bound: float | None) -> None:
    ours = statistics.median(times["ours"]) if "ours" in times else None
    for name, values in times.items():
        middle, best = statistics.median(values), min(values)
        line = f"{title}  {name:<13}{work / middle:8.1f} tokens/s (best {work / best:7.1f})"
        if ours is not None and name != "ours":
            line += f"   ours is {middle / ours:5.2f} times as fast"
        if bound is not None and name == "ours":
            line += f"   {100 * bound / middle:3.0f} % of the roofline (best {100 * bound / best:3.0f} %)"
        print(line, flush=True)


def interleaved(
    contenders: dict[str, Any], run: Callable[[Any], Steps], rounds: int, bound: Callable[[], float] | None
) -> tuple[dict[str, Steps], float | None]:
    times: dict[str, Steps] = {name: [] for name in contenders}
    bounds = []
    for number in range(rounds + 1):
        for name, contender in contenders.items():
            torch.set_num_threads(contender.torch_threads)
            taken = run(contender)
            if number:  # the first is to warm up
                times[name] += taken
        if bound:
            bounds.append(bound())
    return times, min(bounds) if bounds else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--contexts", type=int, nargs="*", default=[128, 1024])
    parser.add_argument("--prefills", type=int, nargs="*", default=[32, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", default="gguf", help="gguf (as in the file), int4, int8 or fp32")
    parser.add_argument("--only", nargs="*", default=["ours", "llama", "transformers"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    path = find(given.model)
    loaded = load(path)
    contenders: dict[str, Any] = {}
    if "ours" in given.only:
        contenders["ours"] = Ours(loaded, path if given.weights == "gguf" else given.weights, given.threads)
        print(contenders["ours"].native)
    if "llama" in given.only:
        try:
            batch, context = max([1, *given.batches]), max([1, *given.contexts, *given.prefills])
            contenders["llama.cpp"] = Llama(loaded, path, given.threads, batch, context)
        except ImportError:
            print("llama-cpp-python is not installed: left out")
    if "transformers" in given.only:
        contenders["transformers"] = Transformers(loaded)
    bound = contenders["ours"].roofline if "ours" in contenders else None
    for count in given.prefills:
        times, _ = interleaved(contenders, lambda c, n=count: c.prefill(n), given.rounds, None)
        report(f"prefill {count:>5}          ", times, count, None)
    for context in given.contexts:
        for batch in given.batches:
            run = lambda c, b=batch, n=context: c.decode(b, n, given.tokens)
            times, floor = interleaved(contenders, run, given.rounds, bound)
            report(f"batch {batch:>3} context {context:>5}", times, batch, floor if batch == 1 else None)


if __name__ == "__main__":
    main()
