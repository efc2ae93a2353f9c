"""Train ELMo's two language models, by the loop, the step and the checkpoints of all others; keep and open them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from terakoya import device
from terakoya.data import Loader, Shards
from terakoya.data.batch import Batch
from terakoya.model.build import Init, initialise
from terakoya.model.elmo import Elmo, ElmoPlan, ElmoVectors
from terakoya.tokenizer import Tokenizer
from terakoya.train.bilm import bilm
from terakoya.train.kept import Kept, KeptRecipe, reopened
from terakoya.train.optim import AdamW, Optim, Optimizer
from terakoya.train.prepare import prepare_data
from terakoya.train.recipe import Corpus, Recipe, Rows, Vocabulary
from terakoya.train.run import Run
from terakoya.train.step import Stepped

MODEL_TYPE = "elmo"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ElmoRecipe(KeptRecipe):
    """Everything that decides a run; a "word" is a piece of the tokenizer, read letter by letter."""

    elmo: ElmoPlan = field(default_factory=ElmoPlan)
    corpus: Corpus = field(default_factory=Corpus)
    tokenizer: Vocabulary = field(default_factory=Vocabulary)
    rows: Rows = field(default_factory=lambda: Rows(count=16, context=128))
    init: Init = field(default_factory=lambda: Init(std=0.08, out="plain"))
    optim: Optim = field(default_factory=lambda: AdamW(lr=2e-3, weight_decay=0.01))


@dataclass(kw_only=True)
class ElmoTrainer(Kept[ElmoRecipe]):
    """A run of both language models."""

    loader: Loader
    heldout: Shards

    def batches(self, step: int) -> Sequence[Batch]:
        return self.loader.batch(step).split(self.recipe.rows.micro)

    @torch.inference_mode()
    def look(self, limit: int | None) -> dict[str, float]:
        """Return bits per byte of the model that reads from the left, and of the one that reads from the right."""
        nats, size = {"right": 0.0, "left": 0.0}, 0
        rows = self.recipe.rows
        for batch in Loader(self.heldout, rows=rows.count, context=rows.context, seed=0).evaluate():
            found = bilm(self.model, batch.to(self.place.name)).metrics
            nats = {way: nats[way] + found[way] for way in nats}
            size += batch.bytes
            if limit is not None and size >= limit:
                break
        bits = {way: n / math.log(2) / max(size, 1) for way, n in nats.items()}
        return {"heldout_bits_per_byte": bits["right"], "heldout_bits_per_byte_back": bits["left"]}

    def row(self, done: int, result: Stepped, micros: Sequence[Batch]) -> dict[str, Any]:
        bits = result.loss * result.weight / math.log(2) / max(sum(m.bytes for m in micros), 1)
        tokens = done * self.recipe.rows.count * self.recipe.rows.context
        return {"loss": result.loss, "bits_per_byte": bits, "tokens": tokens}

    @property
    def fingerprint(self) -> str:
        return self.loader.fingerprint

    @property
    def network(self) -> nn.Module:
        return nn.ModuleDict({"elmo": self.model})  # the names of ElmoVectors, which opens it

    def said(self) -> dict[str, Any]:
        assert isinstance(self.model, Elmo)
        return said(self.model)


def prepare(run: Run, recipe: ElmoRecipe, say: Callable[[str], None] = log.info) -> ElmoTrainer:
    """Make tokenizer and shards where they are missing, and build or resume the model."""
    device.keep_memory()
    text = Recipe(corpus=recipe.corpus, tokenizer=recipe.tokenizer, rows=recipe.rows, seed=recipe.seed)
    tokenizer = prepare_data(run, text, say)
    train = Shards.open(run.train, tokenizer.hash(), verify=True)
    heldout = Shards.open(run.heldout, tokenizer.hash(), verify=True)
    loader = Loader(train, rows=recipe.rows.count, context=recipe.rows.context, seed=recipe.seed)
    place = device.choose(recipe.device, "fp32")
    model = initialise(Elmo(recipe.elmo, spelt(tokenizer)), recipe.seed, recipe.init).to(place.name)
    made = ElmoTrainer(
        run=run, recipe=recipe, model=model, optimizer=Optimizer(model, recipe.optim), place=place, loader=loader,
        heldout=heldout, tokenizer=tokenizer, objective=bilm,
    )  # fmt: skip
    made.resume()
    return made


def spelt(tokenizer: Tokenizer) -> list[bytes]:
    """Return the letters of every piece; of a control token, its name."""
    names = {id: name.encode() for name, id in tokenizer.specials.items()}
    return [names.get(id) or tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]


def said(elmo: Elmo) -> dict[str, Any]:
    """Return what config.json says."""
    return {"model_type": MODEL_TYPE, "vocab_size": elmo.spec.vocab, **asdict(elmo.plan)}


def open_elmo(folder: Path) -> tuple[ElmoVectors, Tokenizer]:
    """Read a model and its tokenizer; where no task has learnt a mixture yet, the layers weigh the same."""
    return reopened(folder, ElmoPlan, lambda plan, tokenizer: ElmoVectors(Elmo(plan, spelt(tokenizer))))
