"""The way of InstructGPT on real conversations, small enough for minutes of one core; and DPO on the same pairs.

    python bench/chain.py ../shared/data/sft/ja_persona_chat.jsonl.zst WORK

A model of 0.8 M parameters, from nothing: SFT on short exchanges (a question of one, the answer of the other), then its
own answers drawn to other questions and put below what people answered, a reward model of these pairs, and PPO with its
score; DPO on the same pairs beside it. The prompts held out of the pairs are held out of every later stage. A stage
that is done is not done again. Printed: what was measured on held-out prompts before and after, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from exchanges import exchange
from terakoya.model.build import Init, build, initialise
from terakoya.models import open_model
from terakoya.tokenizer import Message, Tokenizer, train
from terakoya.train.run import Run
from terakoya.tune.recipe import Tune, assign
from terakoya.tune.reward import open_reward
from terakoya.tune.rows import rows
from terakoya.tune.run import prepare
from terakoya.tune.sieve import Limits, Sieve
from terakoya.tune.synth import Plan, pairs
from terakoya.tune.writers import Own
from terakoya.zoo import convert, lineage

DIM, DEPTH, WIDTH, VOCAB, CONTEXT = 128, 3, 32, 1500, 192
COMMON = ("device=cpu", "precision=fp32", f"rows.context={CONTEXT}", "keep.evaluate=0", "show.tokens=24")
LEARNT, TAKEN = 2600, 1000  # exchanges for SFT; for pairs
LORA = ("adapter=lora", "optim.lr=1e-3")


def begun(texts: list[str], folder: Path) -> None:
    """Write a random model and its tokenizer, with ChatML."""
    made = train(texts, "bpe", VOCAB)
    table, first = made.description(), made.vocab_size
    for i, name in enumerate(("<|im_start|>", "<|im_end|>")):
        table["added_tokens"].append(
            {"id": first + i, "content": name, "special": True, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False}
        )  # fmt: skip
    words = Tokenizer(table, name="exchanges", eos=first + 1, pad=first + 1, template="chatml")
    shape = replace(lineage.rescale(lineage.base("smollm2"), DIM, DEPTH, WIDTH), vocab=words.vocab_size, context=256)
    convert.save(convert.Loaded(initialise(build(shape), 0, Init()), words, "smollm2"), folder)


def stage(work: Path, name: str, *changes: str) -> None:
    """Run one stage to its end, and print what it changed."""
    asked = assign(Tune(), [*COMMON, *changes])
    judge = open_reward(_model(work / "reward")) if name == "ppo" else None
    tuner = prepare(Run.create(work / name, asked), asked, open_model(asked.model), judge)
    began, cpu = time.perf_counter(), time.process_time()
    before = tuner.before()
    if not tuner.train():
        raise SystemExit(f"{name} was stopped; the same command goes on")
    after = tuner.after()
    spent = f"{time.process_time() - cpu:.0f} s of one core, {time.perf_counter() - began:.0f} s by the clock"
    print(f"\n{name}: {tuner.steps} steps, {spent}; {len(tuner.work.prompts)} prompts held out")
    for key, value in before["scores"].items():
        print(f"  {key:24s} {value:9.4f} -> {after['scores'][key]:9.4f}")
    for old, new in zip(before["answers"], after["answers"], strict=True):
        print(f"  ? {old['prompt']}  | {' '.join(old['answer'].split())} | {' '.join(new['answer'].split())}")


def _model(run: Path) -> Path:
    last = Run.open(run).checkpoints().latest()
    assert last is not None
    return last.path / "model"


def judged(work: Path, talks: list[list[dict[str, str]]]) -> Path:
    """Draw the SFT model's own answers, and put them below what people answered."""
    out = work / "pairs.jsonl"
    if not out.exists():
        asked = [tuple(Message(m["role"], m["content"]) for m in t) for t in talks]
        plan = Plan(way="prefer", count=len(asked), tokens=32, temperature=1.0, at_once=64)
        writer, sieve = Own("sft", open_model(str(work / "sft"))), Sieve(Limits(language="ja", alike=1.0))
        made = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in pairs(plan, writer, asked, sieve))
        out.write_text(made, encoding="utf-8")
    return out


def main() -> None:
    p = argparse.ArgumentParser(description="SFT, a reward model, PPO and DPO on short exchanges.")
    p.add_argument("source", type=Path)
    p.add_argument("work", type=Path)
    p.add_argument("--ppo", type=int, default=120, help="steps of PPO")
    args = p.parse_args()
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    talks = [e for _, row in rows(args.source) if (e := exchange(dict(row)))]
    learnt, taken = talks[:LEARNT], talks[LEARNT : LEARNT + TAKEN]
    examples = work / "exchanges.jsonl"
    examples.write_text("".join(json.dumps({"messages": e}, ensure_ascii=False) + "\n" for e in learnt), "utf-8")
    if not (work / "base").exists():
        begun([m["content"] for e in learnt for m in e], work / "base")
    stage(
        work, "sft", f"model={work / 'base'}", f"data.source={examples}", "adapter=none", "budget.epochs=5",
        "rows.count=16", "optim.lr=3e-3",
    )  # fmt: skip
    source = judged(work, taken)
    lessons = (f"model={work / 'sft'}", f"data.source={source}", "data.holdout=0.2", "data.overlong=drop", *LORA)
    stage(work, "dpo", *lessons, "method=dpo", "budget.epochs=2", "rows.count=16")
    stage(work, "reward", *lessons, "method=reward", "budget.epochs=3", "rows.count=16")
    stage(
        work, "ppo", *lessons, "method=ppo", f"method.reward={work / 'reward'}", "method.tokens=32",
        "method.group=4", "rows.count=16", f"budget.steps={args.ppo}", "schedule=constant",
    )  # fmt: skip


if __name__ == "__main__":
    main()
