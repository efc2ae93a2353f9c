"""What fewer bits cost: size, bits per byte, KL and agreement of every codec and calibration, on English and Japanese.

    python bench/quantise.py MODEL --calibrate cal.jsonl --text en.jsonl --text ja.jsonl [--only "nf4;q4_0"]
                             [--jitter --seed 0]

A GGUF file's weights lie on the grid of its own blocks, where rounding to a grid as fine costs next to nothing.
`--jitter` first moves every weight at random inside its cell: a model that these blocks could have been made of.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import torch

from terakoya import corpus
from terakoya.cli.quantize import limited, samples
from terakoya.eval.change import Change, compare
from terakoya.model.model import Model
from terakoya.models import find, open_model
from terakoya.quant.calibrate import calibrate
from terakoya.quant.codecs import FP8, NF4, Blocks, Codec, Int4, Int8
from terakoya.quant.linear import nbytes, packed_layers, quantise, unpacked
from terakoya.zoo.convert import load, plain

ROWS: list[tuple[str, Codec, str]] = [
    ("int8 by row", Int8(0), "rtn"),
    ("int8 by 32", Int8(), "rtn"),
    ("int8 by 16", Int8(16), "rtn"),
    ("int8 by 32, gptq", Int8(), "gptq"),
    ("fp8", FP8(), "rtn"),
    ("int4 by 32", Int4(32), "rtn"),
    ("int4 by 64", Int4(64), "rtn"),
    ("int4 by 64, awq", Int4(64), "awq"),
    ("int4 by 64, gptq", Int4(64), "gptq"),
    ("int4 by 32, gptq", Int4(32), "gptq"),
    ("int4 by 32, awq", Int4(32), "awq"),
    ("nf4", NF4(), "rtn"),
    ("q8_0", Blocks("Q8_0"), "rtn"),
    ("q5_0", Blocks("Q5_0"), "rtn"),
    ("q4_0", Blocks("Q4_0"), "rtn"),
    ("q4_1", Blocks("Q4_1"), "rtn"),
]


@torch.no_grad()
def jitter(path: Path, model: Model, seed: int) -> None:
    """Move every weight of a GGUF file at random by up to half a step of its block."""
    for name, layer in packed_layers(load(path, packed=True).model).items():
        if isinstance(layer.codec, Blocks) and layer.codec.type in ("Q4_0", "Q4_1", "Q8_0"):
            size = layer.codec.block.bytes
            rows = layer.kept()["rows"]
            steps = rows.view(len(rows), -1, size)[..., :2].contiguous().view(torch.float16).float().abs()
            weight = model.get_parameter(name)
            draw = torch.rand(weight.shape, generator=torch.Generator().manual_seed(len(name) + 1000 * seed)) - 0.5
            weight += (draw.view(len(rows), -1, 32) * steps).view(weight.shape)


def cells(change: Change) -> str:
    return f"{change.after.bits_per_byte:7.4f} {change.worse:+8.3%} {change.divergence:9.5f} {change.same:7.1%}"


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("--calibrate", required=True)
    p.add_argument("--text", action="append", required=True)
    p.add_argument("--limit", type=int, default=10_000)
    p.add_argument("--tokens", type=int, default=8192)
    p.add_argument("--only", default="", help="some rows, by name, with ; between")
    p.add_argument("--jitter", action="store_true")
    p.add_argument("--seed", type=int, default=0, help="of the jitter")
    args = p.parse_args()
    loaded = plain(open_model(args.model))
    assert loaded.tokenizer is not None
    if args.jitter:
        jitter(find(args.model), loaded.model, args.seed)
    texts = {t: list(limited([d.text for d in corpus.read(Path(t))], args.limit)) for t in args.text}
    runs = samples(loaded.tokenizer, [d.text for d in corpus.read(Path(args.calibrate))], args.tokens, 512)
    print(f"{'':18} {'MB':>6} {'s':>4}" + "".join(f" | {Path(t).stem:>7} {'':8} {'KL':>9} {'same':>7}" for t in texts))
    for name, codec, method in ROWS:
        if args.only and name not in args.only.split(";"):
            continue
        model = copy.deepcopy(loaded.model)
        began = time.perf_counter()
        if method != "rtn":
            assert isinstance(codec, Int4 | Int8)
            calibrate(model, runs, codec, "gptq" if method == "gptq" else "awq")
        quantise(model, codec)
        seconds = time.perf_counter() - began
        numbers = unpacked(model)  # numbers once, not for every window
        found = [compare(loaded.model, numbers, loaded.tokenizer, t, window=512) for t in texts.values()]
        line = " | ".join(cells(change) for change in found)
        print(f"{name:18} {nbytes(model) / 1e6:6.1f} {seconds:4.0f} | {line}", flush=True)


if __name__ == "__main__":
    main()
