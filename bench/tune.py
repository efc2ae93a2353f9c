"""LoRA SFT on SmolLM2-135M against peft + transformers: same weights, examples, rank and rows; fp32, this machine.

    python bench/tune.py EXAMPLES.jsonl [--steps 6] [--context 512] [--rows 2]

Each side runs in a process of its own, turn by turn, and prints seconds a step and the peak of its memory. The other
side is what trl's SFTTrainer does in a step: chat template, padded batch, completion-only labels, peft's LoRA, AdamW.
It takes the same examples in the same order, as many as fill the same rows; padding is its own. What is counted are
tokens of examples, without padding.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = "smollm2-135m-instruct"
RANK, ALPHA = 16, 32.0


def samples(source: Path, tokenizer, rows: int, context: int, steps: int):
    """Return the packer that both sides draw from."""
    from terakoya.tune.formats import examples
    from terakoya.tune.pack import Packer
    from terakoya.tune.rows import rows as read
    from terakoya.tune.samples import Counts, encode, fitted

    found = (encode(tokenizer, x) for x in examples(read(source), None))
    return Packer(fitted(found, context, "truncate", Counts()), tokenizer, rows=rows, context=context, seed=0)


def ours(args: argparse.Namespace):
    from terakoya import device
    from terakoya.models import open_model
    from terakoya.train.optim import AdamW, Optimizer
    from terakoya.train.step import step
    from terakoya.tune import adapters
    from terakoya.tune.score import answers

    device.keep_memory()
    loaded = open_model(MODEL)
    assert loaded.tokenizer is not None
    packer = samples(args.source, loaded.tokenizer, args.rows, args.context, args.steps)
    adapters.add(loaded.model, adapters.Lora(RANK, ALPHA))
    optimizer = Optimizer(loaded.model, AdamW(lr=1e-3, weight_decay=0.0, betas=(0.9, 0.999)))

    def run(i: int) -> tuple[float, int]:
        batch = packer.batch(i)
        return step(loaded.model, [batch], answers, optimizer, factor=1.0, clip=1.0).loss, len(batch.tokens)

    return run


def theirs(args: argparse.Namespace):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from terakoya.models import open_model
    from terakoya.tokenizer import Tokenizer

    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32)
    tokenizer = Tokenizer.load(args.folder)
    packer = samples(args.source, tokenizer, args.rows, args.context, args.steps)
    model = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    del open_model

    def run(i: int) -> tuple[float, int]:
        chosen = [packer.samples[k] for row in packer.chosen(i) for k in row]
        size = max(len(s.ids) for s in chosen)
        ids = torch.zeros(len(chosen), size, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for k, s in enumerate(chosen):
            n = len(s.ids)
            ids[k, :n], mask[k, :n] = torch.tensor(s.ids), 1
            labels[k, :n] = torch.where(torch.tensor(s.weights) > 0, ids[k, :n], -100)
        optimizer.zero_grad()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item(), sum(s.length for s in chosen)

    return run


def worker(args: argparse.Namespace) -> None:
    """Serve steps from standard input; answer with loss, seconds, tokens and peak memory in MiB."""
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = (ours if args.worker == "terakoya" else theirs)(args)
    print("ready", start // 1024, flush=True)
    for i, _ in enumerate(sys.stdin):
        tick = time.perf_counter()
        loss, tokens = run(i)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps([loss, time.perf_counter() - tick, tokens, peak]), flush=True)


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("source", type=Path)
    p.add_argument("--steps", type=int, default=6)
    p.add_argument("--rows", type=int, default=2)
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--worker")
    p.add_argument("--folder")
    args = p.parse_args()
    if args.worker:
        worker(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        from terakoya.models import open_model
        from terakoya.zoo import convert

        convert.save(open_model(MODEL), Path(folder))
        shared = [str(args.source), "--rows", str(args.rows), "--context", str(args.context), "--folder", folder]
        names = ("terakoya", "peft")
        procs = {
            n: subprocess.Popen(
                [sys.executable, __file__, *shared, "--worker", n],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for n in names
        }  # fmt: skip
        for n, proc in procs.items():
            assert proc.stdout and proc.stdout.readline().startswith("ready"), n
        seen: dict[str, list[list[float]]] = {n: [] for n in names}
        for i in range(args.steps):
            for n, proc in procs.items():
                assert proc.stdin and proc.stdout
                proc.stdin.write(f"{i}\n")
                proc.stdin.flush()
                seen[n].append(json.loads(proc.stdout.readline()))
        for proc in procs.values():
            proc.communicate()
    rates = {n: statistics.median(t / s for _, s, t, _ in rows[1:]) for n, rows in seen.items()}
    print(f"LoRA rank {RANK} on {MODEL}, {args.rows} rows of {args.context} tokens, fp32, {args.steps} steps")
    for n, rows in seen.items():
        losses = " ".join(f"{loss:.3f}" for loss, *_ in rows)
        print(f"{n:9s} {rates[n]:7.0f} tokens/s   peak {rows[-1][3]:6.0f} MiB   losses {losses}")
    print(
        f"speed {rates['terakoya'] / rates['peft']:.2f}x, memory {seen['terakoya'][-1][3] / seen['peft'][-1][3]:.2f}x"
    )


if __name__ == "__main__":
    main()
