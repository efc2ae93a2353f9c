"""Measure how fast text becomes shards and shards become batches, on one thread: python bench/data.py"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from terakoya.corpus import Document, python_stdlib
from terakoya.data import Loader, Mix, Shards, build

VOCAB = 32_000


class Given:
    """Not a tokenizer: hands out tokens made before, four bytes of text each, so that only `build` is measured."""

    vocab_size = VOCAB

    def __init__(self) -> None:
        self._tokens = np.random.default_rng(0).integers(1, VOCAB, 2**20).tolist()

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self._tokens[: len(text) // 4] for text in texts]

    def wrap(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (0,), ()

    def hash(self) -> str:
        return "bench"

    def token_bytes(self, id: int) -> bytes:
        return b"four"


def documents(count: int, length: int) -> list[Document]:
    lengths = np.random.default_rng(1).exponential(length, count).astype(int) + 4
    return [Document("x" * size, f"made#{i}") for i, size in enumerate(lengths.tolist())]


def measured(loader: Loader, steps: int = 30, repeats: int = 7) -> float:
    """Median over repeats of million tokens a second of CPU time."""
    rates = []
    for repeat in range(repeats):
        begin = time.process_time()
        for step in range(repeat * steps, (repeat + 1) * steps):
            loader.batch(step)
        rates.append(steps * loader.rows // loader.world * loader.context / (time.process_time() - begin) / 1e6)
    return statistics.median(rates)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        texts = documents(50_000, 1600)
        begin = time.perf_counter()
        shards = build(texts, Given(), Path(folder) / "s", shard_tokens=2**22)
        seconds = time.perf_counter() - begin
        said = f"{shards.text_bytes / seconds / 1e6:.1f} MB/s of text, {shards.tokens / seconds / 1e6:.1f} M tokens/s"
        print(f"build without a tokenizer ({shards.tokens / 1e6:.1f} M tokens, {shards.documents} documents): {said}")
        begin = time.perf_counter()
        Shards.open(shards.folder, verify=True)
        print(f"open and verify every byte: {(time.perf_counter() - begin) * 1e3:.0f} ms")
        for rows, context in [(256, 64), (32, 512), (16, 1024), (8, 4096)]:
            one = measured(Loader(shards, rows=rows, context=context, seed=0))
            mix = measured(Loader(Mix([shards, shards], [0.7, 0.3]), rows=rows, context=context, seed=0))
            print(f"batch {rows:4} x {context:4}: {one:6.1f} M tokens/s, from a mix of two {mix:6.1f} M tokens/s")
    begin = time.perf_counter()
    size = sum(len(document.text.encode()) for document in python_stdlib())
    print(f"python_stdlib: {size / 1e6:.1f} MB at {size / (time.perf_counter() - begin) / 1e6:.1f} MB/s")


if __name__ == "__main__":
    main()
