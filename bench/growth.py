"""How time and memory of attention and of what replaces it grow with the length of a text: python bench/growth.py

Forward, one layer's mixing alone, 2 heads of 32. The exponent is the slope of log(time) over log(n) from 2,048 on.
Draws docs/growth.png where matplotlib is there (terakoya[plot]).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from terakoya.ops import linear, lsh, scan, selective, sparse
from terakoya.ops.attend import Look, attend, naive
from terakoya.ops.sequences import Sequences

LENGTHS = tuple(512 << i for i in range(6))  # 512 … 16,384
HEADS, WIDTH = 2, 32
FIT = 2048
WHOLE = 8192  # tokens up to which all scores are held at once: four times as many need 4 GiB more
Run = Callable[[Tensor, Tensor, Tensor], Tensor]


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return naive(q[None], k[None], v[None], Look(WIDTH**-0.5))


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q[None], k[None], v[None], Look(WIDTH**-0.5))


def sparse_pair(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The two steps of a strided Sparse Transformer, stride sqrt(n)."""
    size = round(math.sqrt(q.shape[0]))
    y = sparse.banded(q[None], k[None], v[None], WIDTH**-0.5, size)
    return sparse.strided(q[None], k[None], y, WIDTH**-0.5, size)


def reformer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    turns = torch.randn(2, HEADS, WIDTH, 32, generator=torch.Generator().manual_seed(0))
    return lsh.attend(q, v, turns, 64)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return linear.decayed(q, k, v, None, Sequences([0, q.shape[0]], "cpu"))[0]


def state_space(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Mamba-2's: the same with a decay per token and head."""
    return linear.decayed(q, k, v, -k.square().mean(-1), Sequences([0, q.shape[0]], "cpu"))[0]


def selective_scan(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Mamba's: 16 states a channel."""
    n, wide = q.shape[0], HEADS * WIDTH
    a = -torch.arange(1.0, 17.0).expand(wide, 16)
    dt, (b, c) = torch.sigmoid(k.flatten(1)), q.flatten(1)[:, :32].chunk(2, 1)
    return selective.selective(v.flatten(1), dt, a, b, c, Sequences([0, n], "cpu"))[0]


def recurrence(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """RG-LRU's: one number per channel."""
    return scan.scan(torch.sigmoid(k.flatten(1)), v.flatten(1), Sequences([0, q.shape[0]], "cpu"))[0]


KINDS: dict[str, tuple[str, Run]] = {
    "dense, by the book": ("n²", dense),
    "dense, fused": ("n²", fused),
    "Sparse Transformer": ("n√n", sparse_pair),
    "Reformer": ("n log n", reformer),
    "linear attention": ("n", linear_attention),
    "Mamba": ("n", selective_scan),
    "Mamba-2": ("n", state_space),
    "RG-LRU": ("n", recurrence),
}


def measured(run: Run, n: int) -> tuple[float, int]:
    """Return (least seconds of one processor in a few runs, most bytes that were allocated at once)."""
    rng = torch.Generator().manual_seed(n)
    q, k, v = (torch.randn(n, HEADS, WIDTH, generator=rng) for _ in range(3))
    best, began = float("inf"), time.process_time()
    while time.process_time() - began < 0.5 or best == float("inf"):
        start = time.process_time()
        run(q, k, v)
        best = min(best, time.process_time() - start)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run(q, k, v)
    found = seen.profiler.kineto_results.events() if seen.profiler else []
    changes = sorted((e.start_ns(), e.nbytes()) for e in found if e.name() == "[memory]")
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return best, most


def slope(values: list[float]) -> float:
    """Return the exponent b of the best n^b through the values from FIT on."""
    rows = [(math.log(n), math.log(y)) for n, y in zip(LENGTHS, values, strict=False) if n >= FIT]
    x0, y0 = (sum(c) / len(rows) for c in zip(*rows, strict=True))
    return sum((x - x0) * (y - y0) for x, y in rows) / sum((x - x0) ** 2 for x, _ in rows)


def draw(times: dict[str, list[float]], memory: dict[str, list[float]], path: Path) -> None:
    """Draw both on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, rows, label in ((left, times, "seconds"), (right, memory, "MiB")):
        for name, values in rows.items():
            axes.loglog(
                LENGTHS[: len(values)], values, marker="o", markersize=4, label=f"{name}: n^{slope(values):.2f}"
            )
        axes.set_xticks(LENGTHS, [f"{n:,}" for n in LENGTHS])
        axes.minorticks_off()
        axes.set_xlabel("tokens")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in KINDS}
    memory: dict[str, list[float]] = {name: [] for name in KINDS}
    for name, (_, run) in KINDS.items():
        for n in LENGTHS:
            if run is dense and n > WHOLE:
                continue
            took, bytes_ = measured(run, n)
            times[name].append(took)
            memory[name].append(bytes_ / 2**20)
    print(f"forward, {HEADS} heads of {WIDTH}, {torch.get_num_threads()} threads: ms, and MiB at most")
    print(f"{'':20s}{'is':>9s}{'time':>8s}{'memory':>9s}" + "".join(f"{n:>16,d}" for n in LENGTHS))
    for name, (says, _) in KINDS.items():
        cells = "".join(f"{1e3 * t:9.1f} {m:6.1f}" for t, m in zip(times[name], memory[name], strict=True))
        print(f"{name:20s}{says:>9s}  n^{slope(times[name]):.2f}   n^{slope(memory[name]):.2f}{cells}")
    try:
        draw(times, memory, Path(__file__).resolve().parents[1] / "docs" / "growth.png")
    except ImportError:
        print("no picture: matplotlib is not installed (terakoya[plot])")


if __name__ == "__main__":
    main()
