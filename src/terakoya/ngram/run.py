"""Count a corpus into a run: the same folder, tokenizer, shards and held-out text as a network's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from terakoya import config
from terakoya.data import Loader, Shards
from terakoya.errors import TerakoyaError
from terakoya.ngram import folder
from terakoya.ngram.counts import MOST, count
from terakoya.ngram.model import NGram, tensors
from terakoya.ngram.smooth import Smoothing
from terakoya.train.objective import context_of
from terakoya.train.prepare import prepare_data
from terakoya.train.recipe import Corpus, Recipe, Rows, Vocabulary
from terakoya.train.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counting:
    """How far to look and how to smooth."""

    order: int = 5
    smoothing: Smoothing = "modified"

    def __post_init__(self) -> None:
        if not 1 <= self.order <= MOST:
            raise TerakoyaError("ngram.order", given=self.order, allowed=f"1 to {MOST}")


@dataclass(frozen=True)
class NGramRecipe:
    """Everything that decides an n-gram model."""

    ngram: Counting = field(default_factory=Counting)
    corpus: Corpus = field(default_factory=Corpus)
    tokenizer: Vocabulary = field(default_factory=Vocabulary)
    rows: Rows = field(default_factory=Rows)  # of the held-out text, as a network would see it
    seed: int = 0


def load(path: Path, assignments: Sequence[str] = ()) -> NGramRecipe:
    """Read a recipe file and lay `path=value` texts over it."""
    return config.assign(config.load_file(NGramRecipe, path), assignments)


def train(run: Run, recipe: NGramRecipe, say: Callable[[str], None] = log.info) -> NGram:
    """Count, write the model, and measure it on the held-out text; what a run has already is not done again."""
    plain = replace(Recipe(), corpus=recipe.corpus, tokenizer=recipe.tokenizer, seed=recipe.seed)
    tokenizer = prepare_data(run, plain, say)
    shards, heldout = (Shards.open(place, tokenizer.hash(), verify=True) for place in (run.train, run.heldout))
    done = run.checkpoints().latest()
    if done is not None:
        model, _ = folder.open_ngram(done.path / "model")
    else:
        began = time.perf_counter()
        levels = count(
            shards.slice(0, shards.tokens), np.asarray(shards.starts), tokenizer.vocab_size, recipe.ngram.order
        )
        model = NGram(levels, recipe.ngram.smoothing)
        seconds = time.perf_counter() - began
        say(f"counted {shards.tokens:,} tokens in {seconds:.1f} s ({shards.tokens / seconds:,.0f} tokens/s)")
        said = {folder.CONFIG: folder.config(model.order, recipe.ngram.smoothing, tokenizer.vocab_size)}
        extra = {f"model/{name}": data for name, data in said.items()}
        extra |= {f"model/{p.name}": p.read_bytes() for p in sorted(run.tokenizer.iterdir()) if p.is_file()}
        run.checkpoints().save(1, {"model/model": tensors(levels)}, {"step": 1, "data": shards.fingerprint}, extra)
    for k, cut in enumerate(model.discounts, 1):
        grams = model.spec.vocab if k == 1 else len(model.grams[k - 2].keys)
        why = " (usual values: the text is too small to estimate them)" if cut.guessed else ""
        say(f"{k}-grams: {grams:,}; discounts {cut.one:.3f} {cut.two:.3f} {cut.more:.3f}{why}")
    say(f"held-out: {evaluate(model, heldout, recipe.rows):.4f} bits/byte")
    return model


@torch.inference_mode()
def evaluate(model: NGram, shards: Shards, rows: Rows, limit: int | None = None) -> float:
    """Return bits per byte on shards: the rows, contexts and targets of `train.loop.evaluate`, single targets only."""
    nats, size = 0.0, 0
    for batch in Loader(shards, rows=rows.count, context=rows.context, seed=0).evaluate():
        hidden = model(batch.tokens, context_of(batch))
        nats -= (model.log_probabilities(hidden, batch.targets) * batch.weights).sum(dtype=torch.float64).item()
        size += batch.bytes
        if limit is not None and size >= limit:
            break
    return nats / float(np.log(2)) / max(size, 1)
