"""Decoding, prefill and start on the CPU, side by side: terakoya's Engine, llama.cpp and transformers.

    python bench/decode.py [--parts decode prefill start] [--kinds q4_0 q8_0] [--only ours llama transformers static]
                           [--batches 1 4 16] [--contexts 128 1024] [--prefills 32 512 1024] [--rounds 3] [--tokens 32]
                           [--shape 1b] [--threads 2] [--llama FOLDER] [--files FOLDER] [--out docs/decode.json]

Every contender is a process of its own, asked in turn, round after round, and stopped (SIGSTOP) while others work, so
that what else the machine does hits all alike; each figure is the median of all steps of all rounds, and the best.
`ours` is the public API: scheduler, sampling (greedy) and detokenising included. llama.cpp reads the very same GGUF
files, with OMP_WAIT_POLICY=active, its best setting here: `llama` is llama-cpp-python built for this machine
(`--llama` is a folder to import it from), `wheel` the published xllamacpp. Files of types that the model does not come
in are rounded from it, for speed only; `--shape 1b` is a model of Llama 3.2's shape with blocks drawn at random and
SmolLM2's tokenizer. The roofline is the time to read the weights once, at the speed at which the
same threads read them in the same run. Results are added to the file, so that it can be filled in parts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from terakoya.models import find, open_model
from terakoya.quant.blocks import F32, Q4_0, Q4_1, Q8_0, BlockType
from terakoya.zoo.convert import save
from terakoya.zoo.gguf import GGUF
from terakoya.zoo.gguf_model import save_gguf
from terakoya.zoo.gguf_write import write_gguf

BLOCKS = {"q4_0": Q4_0, "q4_1": Q4_1, "q8_0": Q8_0}
HERE = Path(__file__).resolve().parent
MODEL = "smollm2-135m-instruct"


class Contender:
    """A process that answers, and sleeps while it is not asked."""

    def __init__(self, kind: str, file: Path, given: argparse.Namespace, room: int, batch: int) -> None:
        env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        if kind in ("llama", "wheel"):
            env |= {"OMP_WAIT_POLICY": "active"}
            env |= {"PYTHONPATH": given.llama} if given.llama and kind == "llama" else {}
        words = [sys.executable, str(HERE / "contenders.py"), kind, str(file)]
        words += [str(n) for n in (given.threads, room, batch)]
        self.process = subprocess.Popen(words, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.line()
        self.process.send_signal(signal.SIGSTOP)

    def line(self) -> Any:
        assert self.process.stdout is not None
        told = self.process.stdout.readline()
        if not told:
            raise RuntimeError("a contender has died")
        return json.loads(told)

    def ask(self, *what: object) -> list[Any]:
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        found = self.line()
        self.process.send_signal(signal.SIGSTOP)
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def files_of(given: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Return the model in every type asked for, and as a folder for transformers."""
    source, out = find(given.model), {}
    if given.shape:
        for kind in given.kinds:
            out[kind] = folder / f"{given.shape}.{kind}.gguf"
            if not out[kind].exists():
                save_drawn(GGUF.open(source), BLOCKS[kind], out[kind])
        return out
    own = commonest(GGUF.open(source)) if source.suffix == ".gguf" else ""
    for kind in given.kinds:
        out[kind] = source if kind == own else folder / f"{kind}.gguf"
        if not out[kind].exists():
            save_gguf(open_model(given.model), out[kind], kind)
    if {"transformers", "static"} & set(given.only):
        out["folder"] = folder / "fp32"
        if not out["folder"].exists():
            save(open_model(given.model), out["folder"])
    return out


def commonest(file: GGUF) -> str:
    """Return the type of most matrices: a file in Q4_1 may hold its token table in Q8_0."""
    return Counter(i.kind.name.lower() for i in file.tensors.values() if len(i.shape) == 2).most_common(1)[0][0]


def save_drawn(like: GGUF, kind: BlockType, path: Path) -> None:
    """Write a model of Llama 3.2 1B's shape with the metadata and tokenizer of another, its blocks drawn at random."""
    dim, depth, hidden, heads, groups, width = 2048, 16, 8192, 32, 8, 64
    facts = {key: value for key, value in like.metadata.items() if not key.startswith("llama.")}
    sizes = {"context_length": 8192, "embedding_length": dim, "block_count": depth, "feed_forward_length": hidden}
    sizes |= {"attention.head_count": heads, "attention.head_count_kv": groups, "rope.dimension_count": width}
    facts |= {f"llama.{key}": value for key, value in sizes.items()}
    facts |= {"llama.rope.freq_base": 500_000.0, "llama.attention.layer_norm_rms_epsilon": 1e-5}
    vocab = len(facts["tokenizer.ggml.tokens"])
    facts["llama.vocab_size"] = vocab
    shapes = {"token_embd": (vocab, dim)}
    for n in range(depth):
        layer = {"attn_q": (dim, dim), "attn_k": (groups * width, dim), "attn_v": (groups * width, dim)}
        layer |= {"attn_output": (dim, dim), "ffn_gate": (hidden, dim), "ffn_up": (hidden, dim)}
        shapes |= {f"blk.{n}.{name}": shape for name, shape in (layer | {"ffn_down": (dim, hidden)}).items()}
    rng, out = np.random.default_rng(1), {}
    for name, shape in shapes.items():
        stored = BLOCKS["q8_0"] if name == "token_embd" else kind
        rows = rng.integers(0, 256, (math.prod(shape) // stored.elements, stored.bytes), np.uint8)
        rows[:, :2] = np.frombuffer(np.float16(0.02 * 3**0.5 / (127 if stored.bytes == 34 else 8)).tobytes(), np.uint8)
        out[f"{name}.weight"] = stored, rows.reshape(shape[0], -1), shape
    one = np.ones(dim, np.float32)
    norms = [f"blk.{n}.{name}" for n in range(depth) for name in ("attn_norm", "ffn_norm")]
    out |= {f"{name}.weight": (F32, one, (dim,)) for name in (*norms, "output_norm")}
    write_gguf(path, facts, out)


def interleaved(contenders: dict[str, Contender], rounds: int, *what: object) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, contender in contenders.items():
            taken = contender.ask(*what)
            if number:  # the first is to warm up
                times[name] += taken
    return times


def told(title: str, times: dict[str, list[float]], work: int, found: dict[str, Any], floor: float | None) -> None:
    """Print tokens/s and how often ours is as fast, and keep both."""
    rate = {name: work / statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        line = f"{title:<28}{name:<16}{rate[name]:9.1f} tokens/s (best {work / min(values):9.1f})"
        row = found.setdefault(title, {}).setdefault(name, {})
        row |= {"tokens_per_second": round(rate[name], 1), "best": round(work / min(values), 1), "steps": len(values)}
        kind = name.partition(" ")[2]
        ours = rate.get(f"ours {kind}") or next((r for n, r in rate.items() if n.startswith("ours")), None)
        if ours and not name.startswith("ours"):
            row["ours_is_times"] = round(ours / rate[name], 2)
            line += f"   ours is {ours / rate[name]:5.2f} times as fast"
        if floor and name.startswith("ours"):
            row["of_roofline"] = round(floor * rate[name] / work, 3)
            line += f"   {floor * rate[name] / work:4.0%} of the roofline"
        print(line, flush=True)


def started(given: argparse.Namespace, files: dict[str, Path], found: dict[str, Any]) -> None:
    """Time from nothing to one token, each process by itself."""
    if given.shape:
        raise SystemExit("--shape: start is measured with a model that can be named")
    one = ["--max-tokens", "1", "--temperature", "0"]
    llama = (
        "import sys, llama_cpp; m = llama_cpp.Llama(sys.argv[1], n_threads=2, verbose=False);"
        "print(m.create_completion('The', max_tokens=1))"
    )
    reference = (
        "import sys, torch; from transformers import AutoModelForCausalLM as A; m = A.from_pretrained(sys.argv[1]);"
        "print(m.generate(torch.tensor([[504]]), max_new_tokens=1, do_sample=False))"
    )
    kind = given.kinds[0]
    runs = {"python": ["-c", "pass"], "import torch": ["-c", "import torch"]}
    runs[f"ours {kind}"] = ["-m", "terakoya", "generate", str(files[kind]), "The", *one]
    if "llama" in given.only:
        runs[f"llama {kind}"] = ["-c", llama, str(files[kind])]
    if "transformers" in given.only:
        runs["transformers fp32"] = ["-c", reference, str(files["folder"])]
    # As installed: pip writes bytecode, so the round that does not count may, too.
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE")}
    env |= {"PYTHONPATH": given.llama} if given.llama else {}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(given.rounds + 1):
        for name, words in runs.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], env=env, check=True, capture_output=True)
            times[name] += [time.perf_counter() - began] * (number > 0)
    for name, values in times.items():
        print(f"{'start to first token':<28}{name:<16}{statistics.median(values):9.2f} s", flush=True)
        found.setdefault("start to first token", {})[name] = {"seconds": round(statistics.median(values), 3)}


def measured(given: argparse.Namespace, files: dict[str, Path], found: dict[str, Any]) -> None:
    wide = max(given.batches) if "decode" in given.parts else 1
    long = [n + given.tokens + 32 for n in given.contexts] if "decode" in given.parts else []
    long += [n + 64 for n in given.prefills] if "prefill" in given.parts else []
    room = wide * (-(-max(long) // 256) * 256)
    title = f"{given.shape} shape: " if given.shape else ""
    contenders: dict[str, Contender] = {}
    try:
        for kind in given.kinds:
            for who in ("ours", "llama", "wheel"):
                if who in given.only:
                    contenders[f"{who} {kind}"] = Contender(who, files[kind], given, room, wide)
        for who in ("transformers", "static"):
            if who in given.only:
                contenders[f"{who} fp32"] = Contender(who, files["folder"], given, room, wide)
        for name, contender in contenders.items():
            found.setdefault("contenders", {})[title + name] = contender.ask("about")[0]
        if "prefill" in given.parts:
            for count in given.prefills:
                times = interleaved(contenders, given.rounds, "prefill", count)
                told(f"{title}prefill {count}", times, count, found, None)
                keep(given, found)
        if "decode" in given.parts:
            for context in given.contexts:
                for batch in given.batches:
                    times = interleaved(contenders, given.rounds, "decode", batch, context, given.tokens)
                    ours = [n for n in contenders if n.startswith("ours")]
                    for name in ours if batch == 1 else []:
                        [floor] = contenders[name].ask("floor")
                        told(f"{title}decode {batch} at {context}", {name: times[name]}, batch, found, floor)
                    told(f"{title}decode {batch} at {context}", times, batch, found, None)
                    keep(given, found)
    finally:
        for contender in contenders.values():
            contender.close()


def keep(given: argparse.Namespace, found: dict[str, Any]) -> None:
    found["machine"] = {"processor": processor(), "threads": given.threads}
    Path(given.out).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((li.partition(":")[2].strip() for li in lines if li.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--parts", nargs="*", default=["decode", "prefill", "start"])
    parser.add_argument("--kinds", nargs="*", default=["q4_0", "q8_0"])
    parser.add_argument("--only", nargs="*", default=["ours", "llama", "wheel", "transformers"])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--contexts", type=int, nargs="*", default=[128, 1024])
    parser.add_argument("--prefills", type=int, nargs="*", default=[32, 512, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--shape", default="", choices=["", "1b"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama", default="", metavar="FOLDER")
    parser.add_argument("--files", default="", metavar="FOLDER")
    parser.add_argument("--out", default="docs/decode.json", metavar="FILE")
    given = parser.parse_args()
    out = Path(given.out)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    with tempfile.TemporaryDirectory() as made:
        files = files_of(given, Path(given.files or made))
        if "start" in given.parts:
            started(given, files, found)
        if {"decode", "prefill"} & set(given.parts):
            measured(given, files, found)
    keep(given, found)


if __name__ == "__main__":
    main()
