"""Recurrent mixers in pieces and in a loop: a step of training at length 1,024, and a token's cost after long texts.

python bench/scan.py [training] [decoding] [MIXER …]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from terakoya.config import override
from terakoya.model import spec
from terakoya.model import spec_recurrent as kinds
from terakoya.model.build import build, initialise
from terakoya.model.context import Memory, Packed
from terakoya.model.kernels import FAST, NAIVE, Mixer
from terakoya.model.model import mixer
from terakoya.zoo.lineage import sized

LENGTH, DIM = 1024, 256
MIXERS: dict[str, spec.Mixer] = {
    "RNN": kinds.RNN(),
    "LSTM": kinds.LSTM(),
    "GRU": kinds.GRU(),
    "Mamba": kinds.Mamba(2 * DIM, DIM // 16),
    "Mamba-2": kinds.Mamba2(2 * DIM, 8, state=64),
    "RWKV-4": kinds.Rwkv4(),
    "RG-LRU": kinds.RGLRU(DIM, 4, conv=4),
    "linear attention": kinds.LinearAttention(4),
    "RetNet": kinds.Retention(4, expand=2),
    "Gated DeltaNet": kinds.GatedDelta(4, 4, 64, 64, conv=4),
    "RWKV-7": kinds.Rwkv7(4, 32, 32, 64, value=None),
    "S4": kinds.S4(32),
    "S4D": kinds.S4D(64),
    "H3": kinds.H3(64, taps=64),
    "Hyena": kinds.Hyena(64, bands=1),
}
FAMILIES = (
    "gpt2", "lstm", "rwkv", "mamba", "mamba2", "retnet", "gated-deltanet", "rwkv7", "recurrentgemma", "h3", "s4",
)  # fmt: skip
ONLY = [a for a in sys.argv[1:] if a in MIXERS]
CONTEXTS = (256, 1024, 4096, 16_384)


def seconds(act: Callable[[], object], most: float = 3.0, times: int = 5) -> float:
    """Return the least time of the processor of a few tries, which other work on the machine changes little."""
    best, began = float("inf"), time.process_time()
    for _ in range(times):
        start = time.process_time()
        act()
        best = min(best, time.process_time() - start)
        if time.process_time() - began > most:
            break
    return best


def made(s: spec.Mixer) -> nn.Module:
    blocks = (spec.Block((spec.Branch((s,)),)),)
    model = spec.Model(vocab=8, dim=DIM, depth=1, context=LENGTH, blocks=blocks)
    built = initialise(build(model), 0)
    return next(m for m in built.layers[0].children() if type(m) is type(mixer(s, model, 0)))


def step(run: Callable[[Tensor, Packed], Tensor], x: Tensor) -> None:
    run(x, Packed([LENGTH])).sum().backward()


def recurrence(module: nn.Module, x: Tensor) -> tuple[str, tuple[Any, ...]]:
    """Return the recurrence that a mixer calls, by name, and what it is called with."""
    found: list[tuple[str, tuple[Any, ...]]] = []

    def listening(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            found.append((name, given))
            return real(*given)

        return call

    names = [f.name for f in fields(FAST) if f.name not in ("short", "shift")]
    by = replace(FAST, **{name: listening(name, getattr(FAST, name)) for name in names})
    module(x, Packed([LENGTH]), by)
    return found[0]


def alone(run: Callable[..., Any], given: tuple[Any, ...]) -> None:
    """Run a recurrence forward and back on given inputs."""
    own = [g.detach().requires_grad_() if isinstance(g, Tensor) else g for g in given]
    y = run(*own)
    (y[0] if isinstance(y, tuple) else y).sum().backward()


def training() -> None:
    print(f"a step forward and back, one mixer, length {LENGTH:,}, width {DIM}, {torch.get_num_threads()} threads")
    print(f"{'':18s}{'the recurrence alone':>33s}{'the mixer with its products':>35s}")
    print(f"{'mixer':18s}" + 2 * f"{'loop':>12s}{'in pieces':>12s}{'ratio':>9s}  ")
    for name, s in MIXERS.items():
        if ONLY and name not in ONLY:
            continue
        module = made(s)
        x = torch.randn(LENGTH, DIM, generator=torch.Generator().manual_seed(0)).requires_grad_()
        row = f"{name:18s}"
        if isinstance(module, Mixer) and name != "S4":  # whose fast way makes a filter first
            kind, given = recurrence(module, x)
            row += ratio(
                lambda k=kind, g=given: alone(getattr(FAST, k), g), lambda k=kind, g=given: alone(getattr(NAIVE, k), g)
            )
        else:
            row += " " * 35
        print(row + ratio(lambda m=module, x=x: step(m, x), lambda m=module, x=x: step(m.naive, x)), flush=True)  # type: ignore[arg-type]


def ratio(fast: Callable[[], None], slow: Callable[[], None]) -> str:
    quick, loop = seconds(fast, most=2.0), seconds(slow, most=1.0)
    return f"{1e3 * loop:9.1f} ms{1e3 * quick:9.1f} ms{loop / quick:8.1f}x  "


@torch.inference_mode()
def decoding() -> None:
    print("\na token of generation after a text of so many, nano models (dim 128, depth 4), µs")
    print(f"{'family':18s}" + "".join(f"{n:>9,d}" for n in CONTEXTS))
    for name in FAMILIES:
        s = override(sized(f"{name}/nano"), {"context": 2 * CONTEXTS[-1], "vocab": 512})
        model = initialise(build(s), 0)
        memory, row = Memory(), []
        for context in CONTEXTS:
            while memory.lengths[0] < context:
                count = min(512, context - memory.lengths[0])
                ctx = memory.step([count])
                model(torch.randint(512, (count,)), ctx)
                ctx.close()

            def one(model: nn.Module = model, memory: Memory = memory) -> None:
                ctx = memory.step([1])
                model(torch.zeros(1, dtype=torch.long), ctx)
                ctx.close()

            row.append(1e6 * seconds(one, most=0.3, times=50))
        print(f"{name:18s}" + "".join(f"{t:9.0f}" for t in row), flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    parts = {"training": training, "decoding": decoding}
    for part in [a for a in sys.argv[1:] if a in parts] or parts:
        parts[part]()
