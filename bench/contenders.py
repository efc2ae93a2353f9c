"""What bench/decode.py compares: each in a process of its own, asked by lines of JSON.

    python bench/contenders.py KIND FILE THREADS ROOM BATCH

`KIND`: ours (terakoya's Engine), llama (llama-cpp-python), wheel (xllamacpp), transformers, or static (the same with
a compiled static cache). Every answer is a list of seconds, but for `about`: words. The prompts of one batch and
context are the same in every round, and what was read of them is kept (by ours and the wheel in the prefix cache, by
llama and transformers in the cache that is cut back), so that only the first round, which is not counted, reads them.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

VOCAB = 40_000  # prompts are of ids below: every model here has them
Steps = list[float]  # seconds of each


def prompts(batch: int, count: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(100, VOCAB) for _ in range(count)] for _ in range(batch)]


class Ours:
    """terakoya's engine: scheduler, sampling and text included."""

    def __init__(self, file: str, threads: int, room: int, batch: int) -> None:
        from terakoya.engine.engine import Engine
        from terakoya.models import open_model

        bytes_each = 40 << 10  # more than a position of any model here needs
        loaded = open_model(file, packed=True)
        self.engine = Engine(
            loaded, threads=threads, threaded=False, max_tokens_per_step=512, memory_bytes=room * bytes_each
        )  # fmt: skip
        self.seed = 0

    def about(self) -> list[str]:
        return [self.engine.describe()]

    def request(self, ids: list[int], tokens: int, temperature: float = 0.0) -> Any:
        from terakoya.engine.request import Request
        from terakoya.engine.sampling import Sampling

        how = Sampling(temperature=temperature, top_p=0.95 if temperature else 1.0, max_tokens=tokens, seed=1)
        return Request(tuple(ids), how, ignore_end=True)

    def decode(self, batch: int, context: int, tokens: int, temperature: float = 0.0) -> Steps:
        engine = self.engine
        handles = [engine.submit(self.request(p, tokens, temperature)) for p in prompts(batch, context, batch)]
        while any(c.behind != 1 for c in self._choices()):
            engine.step()
        out = []
        while len(engine.scheduler.running) == batch:
            began = time.perf_counter()
            engine.step()
            out.append(time.perf_counter() - began)
        for handle in handles:
            assert handle.result()[0].finish == "length"
        return out

    def _choices(self) -> list[Any]:
        return [*self.engine.scheduler.running, *self.engine.scheduler.waiting, *self.engine._inbox]

    def prefill(self, count: int) -> Steps:
        self.seed += 1
        self.engine.store.forget()
        [ids] = prompts(1, count, self.seed)
        began = time.perf_counter()
        self.engine.generate([self.request(ids, 1)])
        return [time.perf_counter() - began]

    def floor(self) -> Steps:
        """Return the seconds that reading the weights once takes, at the speed at which the same threads read."""
        program = self.engine.runner.native.program  # type: ignore[union-attr]
        return [program.weights.nbytes / max(program.read_speed(4) for _ in range(3))]


class Llama:
    """llama.cpp by its own calls; the likeliest id of each row, and its text."""

    def __init__(self, file: str, threads: int, room: int, batch: int) -> None:
        import llama_cpp as c
        import numpy as np

        self.c, self.np = c, np
        self.silent = c.llama_log_callback(lambda *_: None)  # kept: the library calls it
        c.llama_log_set(self.silent, ctypes.c_void_p(0))
        c.llama_backend_init()
        params = c.llama_model_default_params()
        self.info = c.llama_print_system_info().decode()
        if "AMX_INT8 = 1" in self.info:  # taken by the processor's word, and an illegal instruction in some machines
            params.use_extra_bufts = False  # there is one switch for AMX and for interleaved weights
            self.info += " (interleaved weights and AMX switched off)"
        self.model = c.llama_model_load_from_file(file.encode(), params)
        how = c.llama_context_default_params()
        how.n_ctx, how.n_batch, how.n_ubatch, how.n_seq_max = room, 2048, 512, batch
        how.kv_unified = False  # each sequence looks at its own positions only
        how.n_threads = how.n_threads_batch = threads
        self.context = c.llama_init_from_model(self.model, how)
        assert self.context, "llama.cpp gives no context"
        self.vocab = c.llama_model_get_vocab(self.model)
        self.size = c.llama_vocab_n_tokens(self.vocab)
        self.rows = c.llama_batch_init(2048, 0, 1)
        self.seed = 0
        self.read: tuple[int, int, list[int]] = 0, 0, []  # batch, context and first answers that are remembered

    def about(self) -> list[str]:
        return [self.info]

    def feed(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """Run (token, position, sequence, whether logits are wanted)."""
        b = self.rows
        b.n_tokens = len(tokens)
        for n, (token, position, sequence, wanted) in enumerate(tokens):
            b.token[n], b.pos[n], b.n_seq_id[n] = token, position, 1
            b.seq_id[n][0], b.logits[n] = sequence, int(wanted)
        assert self.c.llama_decode(self.context, b) == 0

    def best(self, row: int) -> int:
        logits = self.c.llama_get_logits_ith(self.context, row)
        id = int(self.np.ctypeslib.as_array(logits, (self.size,)).argmax())
        text = (ctypes.c_char * 64)()
        self.c.llama_token_to_piece(self.vocab, id, text, 64, 0, False)
        return id

    def forget(self) -> None:
        self.read = 0, 0, []
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)

    def decode(self, batch: int, context: int, tokens: int, temperature: float = 0.0) -> Steps:
        if self.read[:2] != (batch, context):
            self.forget()
            new = []
            for s, ids in enumerate(prompts(batch, context, batch)):
                for begin in range(0, context, 2048):
                    part = enumerate(ids[begin : begin + 2048], begin)
                    self.feed([(t, n, s, n + 1 == context) for n, t in part])
                new.append(self.best((context - 1) % 2048))
            self.read = batch, context, new
        memory, new = self.c.llama_get_memory(self.context), self.read[2]
        for s in range(batch):
            self.c.llama_memory_seq_rm(memory, s, context, -1)
        out = []
        for n in range(tokens - 1):
            began = time.perf_counter()
            self.feed([(id, context + n, s, True) for s, id in enumerate(new)])
            new = [self.best(s) for s in range(batch)]
            out.append(time.perf_counter() - began)
        return out

    def prefill(self, count: int) -> Steps:
        self.forget()
        self.seed += 1
        [ids] = prompts(1, count, self.seed)
        began = time.perf_counter()
        self.feed([(t, n, 0, n + 1 == count) for n, t in enumerate(ids)])
        self.best(count - 1)
        return [time.perf_counter() - began]


class Wheel:
    """llama.cpp's own server in the process, from the published package `xllamacpp` (AVX2, interleaved Q4_0)."""

    def __init__(self, file: str, threads: int, room: int, batch: int) -> None:
        import xllamacpp as x

        p = x.CommonParams()
        p.model.path, p.n_parallel, p.n_ctx, p.kv_unified = file, batch, room, False
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
        p.verbosity = -1
        self.server, self.seed = x.Server(p), 0

    def about(self) -> list[str]:
        from importlib.metadata import version

        return [f"xllamacpp {version('xllamacpp')}"]

    def ask(self, ids: list[int], tokens: int) -> Any:
        how = {"prompt": ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": True}
        found = self.server.handle_completions(how)
        return (json.loads(found) if isinstance(found, str) else found)["timings"]

    def decode(self, batch: int, context: int, tokens: int, temperature: float = 0.0) -> Steps:
        """By its own clock: each answer's time per token after the first, while all run."""
        with ThreadPoolExecutor(batch) as pool:
            found = list(pool.map(lambda ids: self.ask(ids, tokens), prompts(batch, context, batch)))
        return [t["predicted_ms"] / t["predicted_n"] / 1000 for t in found]

    def prefill(self, count: int) -> Steps:
        self.seed += 1
        return [self.ask(prompts(1, count, self.seed)[0], 1)["prompt_ms"] / 1000]


class Transformers:
    """`generate` in fp32 with its own cache; no text."""

    static = False

    def __init__(self, folder: str, threads: int, room: int, batch: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.torch, self.seed = torch, 0
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.read: tuple[tuple[int, int], Any] = (0, 0), None

    def about(self) -> list[str]:
        import transformers

        return [f"transformers {transformers.__version__}, fp32"]

    def decode(self, batch: int, context: int, tokens: int, temperature: float = 0.0) -> Steps:
        from transformers import DynamicCache

        if self.read[0] != (batch, context):
            self.read = (batch, context), DynamicCache(config=self.model.config)
        cache = self.read[1]
        if cache.get_seq_length() >= context:
            cache.crop(context - 1 - cache.get_seq_length())  # negative: so many from the end
        return self.generate(prompts(batch, context, batch), min(tokens, 9), past_key_values=cache)[1:]

    def prefill(self, count: int) -> Steps:
        self.seed += 1
        return self.generate(prompts(1, count, self.seed), 1)

    def generate(self, rows: list[list[int]], tokens: int, **more: Any) -> Steps:
        ids, seen = self.torch.tensor(rows), [time.perf_counter()]

        def note(*_: object) -> bool:
            seen.append(time.perf_counter())
            return False

        with self.torch.inference_mode():
            self.model.generate(
                ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                do_sample=False, stopping_criteria=[note], **more,
            )  # fmt: skip
        return [b - a for a, b in pairwise(seen)]


class Static(Transformers):
    """`generate` with a static cache and a compiled step. It reads its prompts in every round."""

    def about(self) -> list[str]:
        return ["the same, static cache and torch.compile"]

    def decode(self, batch: int, context: int, tokens: int, temperature: float = 0.0) -> Steps:
        from transformers import CompileConfig

        how = CompileConfig(mode="default", fullgraph=False)
        how._compile_all_devices = True  # else it compiles on CUDA only
        given = {"cache_implementation": "static", "compile_config": how}
        return self.generate(prompts(batch, context, batch), min(tokens, 9), **given)[2:]


def main() -> None:
    kind, file, *sizes = sys.argv[1:]
    kinds = {"ours": Ours, "llama": Llama, "wheel": Wheel, "transformers": Transformers, "static": Static}
    made = kinds[kind](str(Path(file)), *map(int, sizes))
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    out.write(json.dumps("ready") + "\n")
    out.flush()
    for line in sys.stdin:
        what, *given = json.loads(line)
        out.write(json.dumps(getattr(made, what)(*given)) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
