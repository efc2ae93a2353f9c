"""terakoya translate; and train and show, for recipes of pairs."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from terakoya import config
from terakoya.cli import kept
from terakoya.cli import show as screen
from terakoya.errors import MissingExtra, TerakoyaError
from terakoya.tokenizer import Tokenizer
from terakoya.train import translate as pairs
from terakoya.zoo.files import replacing

# Fonts with Japanese in them, the first that is there is used.
FONTS = ("Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "IPAGothic", "TakaoGothic", "Hiragino Sans", "Yu Gothic")


def train(recipe: Path, overrides: list[str], folder: Path) -> None:
    """Train on pairs to the end of the recipe, or on from where the run stands."""
    kept.fit(pairs.PairRecipe, pairs.prepare, recipe, overrides, folder)


show = partial(kept.show, pairs.PairRecipe)


def translate(args: argparse.Namespace) -> None:
    """Translate a text, and draw where the model looked."""
    for name in ("beam", "max_tokens"):
        if getattr(args, name) < 1:
            raise TerakoyaError(f"--{name.replace('_', '-')}", given=getattr(args, name), allowed="1 or more")
    written = Path(args.run) / "recipe.toml"
    if not written.exists():
        raise TerakoyaError(args.run, "is no run: it has no recipe.toml")
    if "pairs" not in config.read_table(written):
        from terakoya.cli import understand

        understand.translate(args)
        return
    model, tokenizer = pairs.open_translator(Path(args.run))
    source = tokenizer.encode(args.text)
    if not source:
        raise TerakoyaError("text", "is empty")
    end = min(tokenizer.stops)
    ids, looks = model.write(torch.tensor(source), end, end, args.max_tokens, args.beam)
    sys.stdout.write(tokenizer.decode(ids) + "\n")
    if args.map:
        if looks is None:
            raise TerakoyaError("--map", f"a {model.plan.kind} model looks at nothing: it has no attention")
        draw(looks, pieces(tokenizer, source), pieces(tokenizer, ids), Path(args.map))
        screen.console.print(f"attention map: {args.map}", markup=False)


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """Spell tokens one by one; what is no text by itself shows its bytes."""
    found = [tokenizer.token_bytes(id) for id in ids]
    shown = [b.decode("utf-8", "backslashreplace").strip() or ("·" if b else "end") for b in found]
    return ["".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text) for text in shown]


def draw(looks: Tensor, source: list[str], target: list[str], out: Path) -> None:
    """Draw an attention map as a PNG: looks (U, S), a row per written token."""
    try:
        from matplotlib import font_manager
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "plot") from None
    have = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [name for name in FONTS if name in have]
    if not fonts and not all(text.isascii() for text in (*source, *target)):
        screen.console.print("no font with Japanese was found: labels are drawn as code points", markup=False)
        source, target = (
            [t if t.isascii() else " ".join(f"{ord(c):X}" for c in t) for t in s] for s in (source, target)
        )
    figure = Figure(figsize=(1.5 + 0.32 * len(source), 1.2 + 0.28 * len(target)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(looks.float().cpu().numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto")
    family = [*fonts[:1], "DejaVu Sans"]
    axes.set_xticks(range(len(source)), source, rotation=90, fontfamily=family, fontsize=9)
    axes.set_yticks(range(len(target)), target, fontfamily=family, fontsize=9)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    with replacing(out) as file:
        figure.savefig(file, format="png", dpi=130)
