"""What the terminal shows: tables, a progress bar, a loss curve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from terakoya.errors import MissingExtra
from terakoya.zoo.files import replacing

if TYPE_CHECKING:  # generation shows things too, and need not wait for the parts of training
    from terakoya.train.loop import Progress as Seen
    from terakoya.train.loop import Watch

console = Console(highlight=False)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
    """Print a table; the first column is text, the others numbers."""
    t = Table(title=title, title_justify="left", caption=note or None, caption_justify="left")
    for i, name in enumerate(head):
        t.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        t.add_row(*row)
    console.print(t)


@contextmanager
def progress(steps: int, start: int, peak: float) -> Iterator[Watch]:
    """Show a bar with loss, bits per byte, tokens/s, share of the measured peak and time left."""
    fields = "loss {task.fields[loss]:.3f} · {task.fields[bits]}{task.fields[rate]:,.0f} tokens/s"
    columns = (
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn(fields + " · {task.fields[share]:.0%} of peak"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    if not console.is_terminal:
        yield _lines(steps, peak)
        return
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("train", total=steps, completed=start, loss=0.0, bits="", rate=0.0, share=0.0)
        smooth = Smooth()

        def watch(seen: Seen) -> None:
            loss, bpb, rate, flops = smooth.add(
                seen.loss, seen.bits_per_byte, seen.tokens_per_second, seen.flops_per_second
            )
            bar.update(task, completed=seen.step, loss=loss, bits=_bits(bpb, " · "), rate=rate, share=flops / peak)

        yield watch


def _lines(steps: int, peak: float) -> Watch:
    """Without a terminal: ten lines in all."""
    smooth, every = Smooth(), max(1, steps // 10)

    def watch(seen: Seen) -> None:
        loss, bpb, rate, flops = smooth.add(
            seen.loss, seen.bits_per_byte, seen.tokens_per_second, seen.flops_per_second
        )
        if seen.step % every == 0 or seen.step == steps:
            console.print(
                f"step {seen.step}/{steps}  loss {loss:.3f}  {_bits(bpb, '  ')}{rate:,.0f} tokens/s  "
                f"{flops / peak:.0%} of peak  {seen.seconds:.0f} s"
            )

    return watch


def _bits(bits: float, gap: str) -> str:
    """Say bits per byte; nothing where an objective has none."""
    return "" if math.isnan(bits) else f"{bits:.3f} bits/byte{gap}"


class Smooth:
    """Running means of several numbers, over about the last twenty."""

    def __init__(self) -> None:
        self.means: list[float] = []
        self.count = 0

    def add(self, *values: float) -> list[float]:
        self.count += 1
        share = max(0.05, 1 / self.count)
        old = self.means or list(values)
        self.means = [m + share * (v - m) for m, v in zip(old, values, strict=True)]
        return self.means


def loss_curve(metrics: Path, out: Path, lines: dict[str, float]) -> None:
    """Draw bits per byte over steps with horizontal baselines as a PNG."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "plot") from None
    from terakoya.train.run import read_lines

    rows = list(read_lines(metrics))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps, bits = [r["step"] for r in rows], [r["bits_per_byte"] for r in rows]
    smooth = Smooth()
    axes.plot(steps, bits, color="#c9d6e8", linewidth=0.8)
    axes.plot(steps, [smooth.add(b)[0] for b in bits], color="#1f5fa8", label="training")
    seen = [(r["step"], r["heldout_bits_per_byte"]) for r in rows if "heldout_bits_per_byte" in r]
    axes.plot(*zip(*seen, strict=True), "o-", color="#b5382a", label="held-out")
    low, high = min([*lines.values(), *bits]), max(bits)
    shown = {name: value for name, value in lines.items() if value <= high}  # a line far above would flatten the curve
    for name, value in shown.items():
        axes.axhline(value, color="#888888", linestyle=":", linewidth=1)
        place = {"xy": (1.01, value), "xycoords": ("axes fraction", "data")}
        axes.annotate(f"{name} {value:.2f}", **place, va="center", fontsize=9, color="#444444")
    axes.set(xlabel="step", ylabel="bits per byte", ylim=(0.9 * low, 1.02 * high), xlim=(0, steps[-1]))
    axes.legend(loc="upper right", frameon=False)
    with replacing(out) as file:
        figure.savefig(file, format="png", dpi=130)


HIDDEN = ("step", "tokens", "norm", "factor", "skipped", "heldout_interval")  # columns that are no curve of interest


def curves(metrics: Path, out: Path) -> str:
    """Draw every number of metrics.jsonl over steps, held-out ones as dots; say where they are, or what is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "curves are drawn where matplotlib is installed: pip install terakoya[plot]"
    from terakoya.train.run import read_lines

    rows = list(read_lines(metrics))
    names = sorted({n.removeprefix("heldout_") for row in rows for n in row if n not in HIDDEN})
    if len(rows) < 2 or not names:
        return ""
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(3.6 * across, 2.2 * down), layout="constrained")
    for axes, name in zip(figure.subplots(down, across, squeeze=False).flat, (*names, *[""] * across), strict=False):
        axes.set_visible(bool(name))
        for key, style in ((name, "-"), (f"heldout_{name}", "o")):
            seen = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
            if seen:
                axes.plot(*zip(*seen, strict=True), style, color="#1f5fa8" if style == "-" else "#b5382a", linewidth=1)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.tick_params(labelsize=7)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    with replacing(out) as file:
        figure.savefig(file, format="png", dpi=110)
    return f"curves: {out}"
