"""LoRA SFT on SmolLM2-135M against trl + peft: same weights, examples, rank and rows; fp32, this machine.

    python bench/tune.py EXAMPLES.jsonl [--steps 6] [--context 512] [--rows 2] [--sides terakoya peft trl packed]

Each side runs in a process of its own, turn by turn, and prints seconds a step and the peak of its memory. All take the
same examples in the same order. `trl` is trl's SFTTrainer as it comes: as many examples a step as fill our rows on
average, padded. `packed` is the same with packing on: rows of the same length as ours. `peft` is a bare loop around
transformers and peft with exactly our examples a step, padded. What is counted are tokens of examples, without padding.
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
SIDES = ["terakoya", "peft", "trl", "packed"]


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


def trainer(args: argparse.Namespace) -> None:
    """Run trl's SFTTrainer; every step waits for a line on standard input."""
    import datasets
    import transformers
    import trl
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler

    from terakoya.tokenizer import Tokenizer

    packed = args.worker == "packed"
    packer = samples(args.source, Tokenizer.load(args.folder), args.rows, args.context, args.steps)
    chosen = [packer.samples[k] for i in range(args.steps) for row in packer.chosen(i) for k in row]
    said = [{"input_ids": list(s.ids), "completion_mask": [int(w > 0) for w in s.weights]} for s in chosen]
    config = trl.SFTConfig(
        output_dir=f"{args.folder}/{args.worker}", max_steps=args.steps, max_length=args.context + 1, packing=packed,
        per_device_train_batch_size=args.rows if packed else max(1, len(chosen) // args.steps), learning_rate=1e-3,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, bf16=False, use_cpu=True, report_to="none",
        gradient_checkpointing=False, save_strategy="no", disable_tqdm=True, logging_strategy="no", seed=0,
    )  # fmt: skip
    seen: dict[str, float] = {}

    class Trainer(trl.SFTTrainer):
        def _get_train_sampler(self, *_):
            return SequentialSampler(self.train_dataset)

        def training_step(self, model, inputs, *rest):
            mask = inputs.get("attention_mask")
            seen["tokens"] = float(inputs["input_ids"].numel() if mask is None else mask.sum().item())
            loss = super().training_step(model, inputs, *rest)
            seen["loss"] = loss.item()
            return loss

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            sys.stdin.readline()
            seen["tick"] = time.perf_counter()

        def on_step_end(self, *_, **__):
            answer(seen["loss"], time.perf_counter() - seen["tick"], seen["tokens"])

    words = transformers.PreTrainedTokenizerFast(
        tokenizer_file=f"{args.folder}/tokenizer.json", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(args.folder, dtype="float32")
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    run = Trainer(
        model, config, train_dataset=datasets.Dataset.from_list(said), processing_class=words, peft_config=lora,
        callbacks=[Turns()],
    )  # fmt: skip
    print("ready", flush=True)
    run.train()


def answer(loss: float, seconds: float, tokens: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps([loss, seconds, tokens, peak]), flush=True)


def worker(args: argparse.Namespace) -> None:
    """Serve steps from standard input; answer with loss, seconds, tokens and peak memory in MiB."""
    if args.worker in ("trl", "packed"):
        trainer(args)
        return
    run = (ours if args.worker == "terakoya" else theirs)(args)
    print("ready", flush=True)
    for i, _ in enumerate(sys.stdin):
        tick = time.perf_counter()
        loss, tokens = run(i)
        answer(loss, time.perf_counter() - tick, tokens)


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("source", type=Path)
    p.add_argument("--steps", type=int, default=6)
    p.add_argument("--rows", type=int, default=2)
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
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
        names = args.sides
        procs = {
            n: subprocess.Popen(
                [sys.executable, __file__, *shared, "--worker", n],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for n in names
        }  # fmt: skip
        for n, proc in procs.items():
            _line(proc, "ready", n)
        seen: dict[str, list[list[float]]] = {n: [] for n in names}
        for i in range(args.steps):
            for n, proc in procs.items():
                assert proc.stdin
                proc.stdin.write(f"{i}\n")
                proc.stdin.flush()
                seen[n].append(json.loads(_line(proc, "[", n)))
                print(n, i + 1, seen[n][-1], file=sys.stderr, flush=True)
        for proc in procs.values():
            proc.kill()
            proc.wait()
    rates = {n: statistics.median(t / s for _, s, t, _ in rows[1:]) for n, rows in seen.items()}
    print(f"LoRA rank {RANK} on {MODEL}, {args.rows} rows of {args.context} tokens, fp32, {args.steps} steps")
    for n, rows in seen.items():
        losses = " ".join(f"{loss:.3f}" for loss, *_ in rows)
        print(f"{n:9s} {rates[n]:7.0f} tokens/s   peak {rows[-1][3]:6.0f} MiB   losses {losses}")
    for n in names[1:]:
        memory = seen[names[0]][-1][3] / seen[n][-1][3]
        print(f"{names[0]} beside {n}: speed {rates[names[0]] / rates[n]:.2f}x, memory {memory:.2f}x")


def _line(proc: subprocess.Popen[str], start: str, name: str) -> str:
    """Return the next line that begins so; a library may print others."""
    assert proc.stdout
    for line in proc.stdout:
        if line.startswith(start):
            return line
    raise SystemExit(f"{name} ended early")


if __name__ == "__main__":
    main()
