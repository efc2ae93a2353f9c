"""Peak memory of one step of every way to tune SmolLM2-135M-Instruct: each recipe in a process of its own.

    python bench/memory.py ../shared/data [--only tune-ja tune-ppo]

Measured is the whole process, the opening of the model included, as the recipe stands; only the examples are few. The
reward model of PPO is the model itself with a random head: its size is what counts.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "recipes"
WAYS = (
    "tune-ja", "tune-dora", "tune-adalora", "tune-ia3", "tune-prefix", "tune-prompt", "tune-ptuning", "tune-top",
    "tune-qlora", "tune-int8", "tune-full", "tune-dpo", "tune-orpo", "tune-kto", "tune-reward", "tune-distil",
    "tune-gkd", "tune-add", "tune-ppo",
)  # fmt: skip


def one(name: str, data: Path) -> None:
    """Take a step, or two where the way needs them, and print the peak."""
    from terakoya.models import open_model
    from terakoya.train.run import Run
    from terakoya.tune import adapters, recipe
    from terakoya.tune.methods import Distil, Gkd, Ppo, Preference
    from terakoya.tune.reward import add_head
    from terakoya.tune.run import prepare

    asked = recipe.load(RECIPES / f"{name}.toml", ["keep.evaluate=0", "data.limit=40"])
    asked = replace(asked, budget=recipe.Budget(steps=2 if name == "tune-adalora" else 1))
    if asked.data.source.endswith(".jsonl"):
        pairs = isinstance(asked.method, Preference | Ppo)
        source = "preference/ja_instruction_edit.jsonl" if pairs else "sft/ja_instruction.jsonl"
        asked = replace(asked, data=replace(asked.data, source=str(data / source)))
    other = open_model(asked.model) if isinstance(asked.method, Distil | Gkd | Ppo) else None
    if other and isinstance(asked.method, Ppo):
        add_head(other.model, 0)
    with tempfile.TemporaryDirectory() as folder:
        tuner = prepare(Run.create(Path(folder) / "run", asked), asked, open_model(asked.model), other)
        tuner.save = lambda done: Path(folder)  # type: ignore[method-assign]
        tuner.train()
    learns = sum(p.numel() for p in adapters.trained(tuner.model).values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name:14s} {learns / 1e6:9.3f} M   {peak:5.2f} GiB", flush=True)


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("data", type=Path)
    p.add_argument("--only", nargs="+", default=WAYS, choices=WAYS)
    p.add_argument("--one")
    args = p.parse_args()
    if args.one:
        one(args.one, args.data)
        return
    for name in args.only:
        subprocess.run([sys.executable, __file__, str(args.data), "--one", name], check=False)


if __name__ == "__main__":
    main()
