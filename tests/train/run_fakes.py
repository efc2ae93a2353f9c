"""A tiny real run: a corpus of a few files, a recipe of eight steps, and the hash of all that came of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from terakoya.train.loop import Trainer, prepare
from terakoya.train.prepare import prepare_data
from terakoya.train.recipe import Budget, Recipe, assign
from terakoya.train.run import Run

STEPS = 8
TEXTS = {
    "いろは.txt": "いろはにほへと ちりぬるを わかよたれそ つねならむ\n" * 9,
    "寺子屋.txt": "".join(f"第{i}課 ﾃﾗｺﾔで読み書き算盤を学ぶ。👩🏽‍🏫先生と{i * 7}人。\n" for i in range(30)),
    "school.txt": "".join(f"Lesson {i}: {i} and {i + 1} make {2 * i + 1}; read it aloud.\n" for i in range(40)),
    "code/tree.py": "def grow(seed):\n    return [seed * leaf for leaf in range(12)]\n" * 8,
}
TINY = (
    "model=smollm2/nano", "model.dim=32", "model.depth=2", "attention.heads=4", "attention.kv_heads=2", "mlp.hidden=48",
    "tokenizer.size=300", "rows.count=4", "rows.context=32", "keep.save=2", "keep.evaluate=3", "corpus.holdout=0.1",
    "device=cpu",
)  # fmt: skip


def corpus(folder: Path, texts: dict[str, str] = TEXTS) -> Path:
    for name, text in texts.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder


def tiny(source: Path, *changes: str) -> Recipe:
    return assign(Recipe(budget=Budget(steps=STEPS)), [*TINY, f"corpus.source={source}", *changes])


def silent(text: str) -> None:
    """Say nothing."""


def trainer(folder: Path, recipe: Recipe) -> Trainer:
    """What `terakoya train` does, begun or gone on with."""
    run = Run.create(folder, recipe)
    prepare_data(run, recipe, silent)
    return prepare(run, recipe)


def everything(folder: Path, without: Sequence[str] = ("timing.jsonl", "environment.json")) -> dict[str, str]:
    """Hash every file of a run, hidden ones too, but for those that tell of time and place."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in without)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
