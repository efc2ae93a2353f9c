"""CLIP on real pictures: handwritten digits with captions in Japanese and English; which captions does it find?

    pip download --no-deps scikit-learn && unzip scikit_learn*.whl sklearn/datasets/data/digits.csv.gz
    python bench/clip.py sklearn/datasets/data/digits.csv.gz WORK

The 1,797 digits of 8 x 8 pixels (UCI, as scikit-learn ships them) become PNG files, each with one of six wordings, and
`recipes/clip-ja-nano.toml` learns from nine in ten. Then every held-out picture is given ten captions of one wording.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from terakoya import config
from terakoya.train import clip
from terakoya.train.captions import CaptionFile, held_out, rows
from terakoya.train.run import Run

JA, EN = "零一二三四五六七八九", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WORDINGS = (
    lambda d: f"手書きの数字の{JA[d]}", lambda d: f"{JA[d]}と書いてある", lambda d: f"紙に書いた {d}",
    lambda d: f"a handwritten {EN[d]}", lambda d: f"somebody wrote the digit {d}", lambda d: f"{EN[d]}, by hand",
)  # fmt: skip


def written(table: Path, folder: Path) -> Path:
    """Write the digits as PNG files and their captions as JSON lines."""
    from PIL import Image

    found = np.loadtxt(table, delimiter=",", dtype=int)
    (folder / "png").mkdir(parents=True, exist_ok=True)
    lines = []
    for i, row in enumerate(found):
        grey = Image.fromarray((row[:64].reshape(8, 8) * 255 // 16).astype(np.uint8))
        grey.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB").save(folder / "png" / f"{i}.png")
        row = {"image": f"png/{i}.png", "text": WORDINGS[i % len(WORDINGS)](row[64]), "digit": int(row[64])}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    (folder / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "captions.jsonl"


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("digits", type=Path)
    p.add_argument("work", type=Path)
    p.add_argument("--steps", type=int, default=400)
    args = p.parse_args()
    torch.set_num_threads(1)
    file = written(args.digits, args.work)
    plain = config.load_file(clip.ClipRecipe, Path(__file__).parents[1] / "recipes" / "clip-ja-nano.toml")
    asked = config.assign(
        plain, [f"captions.path={file}", "captions.holdout=0.1", f"budget.steps={args.steps}", "device=cpu"]
    )
    began = time.process_time()
    made = clip.prepare(Run.create(args.work / "run", asked), asked, print)
    made.train()
    print(
        f"{args.steps} steps of {asked.rows} pictures, {time.process_time() - began:.0f} CPU seconds; {made.look(None)}"
    )
    kept = [row for row in rows(CaptionFile(file)) if held_out(row, 0.1)]
    digits = [json.loads(line)["digit"] for line in file.read_text(encoding="utf-8").splitlines()]
    own = np.array([digits[int(row.image.stem)] for row in kept])
    model = clip.open_clip(args.work / "run")
    for wording in WORDINGS:
        names = [wording(d) for d in range(10)]
        right = float((model.name([row.image for row in kept], names).argmax(1).numpy() == own).mean())
        half = 1.96 * math.sqrt(right * (1 - right) / len(own))
        print(f"{names[3]:32s} {right:.1%} ± {100 * half:.1f} of {len(own)} held-out pictures (chance 10 %)")


if __name__ == "__main__":
    main()
