"""Train a sequence-to-sequence model on pairs, by the loop, the step and the checkpoints of all other models."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from terakoya import config, device
from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.build import Init, initialise
from terakoya.model.seq2seq import Pair, Seq2Seq
from terakoya.tokenizer import Tokenizer
from terakoya.train.kept import Kept, KeptRecipe, Steps, newest, vocabulary
from terakoya.train.objective import causal
from terakoya.train.optim import AdamW, Optim, Optimizer
from terakoya.train.pairs import PairFile, Pairs, cut, held_out, texts
from terakoya.train.recipe import Vocabulary
from terakoya.train.run import Run
from terakoya.train.step import Stepped

MODEL_TYPE = "seq2seq"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PairRecipe(KeptRecipe):
    """Everything that decides a translation run."""

    pairs: Pair = field(default_factory=Pair)
    file: PairFile = field(default_factory=PairFile)
    tokenizer: Vocabulary = field(default_factory=lambda: Vocabulary(size=8000))  # of both languages
    rows: int = 64  # pairs a step
    micro: int = 1
    budget: Steps = field(default_factory=lambda: Steps(2000))
    init: Init = field(default_factory=lambda: Init(std=0.08, out="plain"))
    optim: Optim = field(default_factory=lambda: AdamW(lr=1e-3, weight_decay=0.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows < 1:
            raise TerakoyaError("rows", given=self.rows, allowed="1 or more")
        if not 1 <= self.micro <= self.rows:
            raise TerakoyaError("micro", given=self.micro, allowed=f"1 to rows={self.rows}")


@dataclass(kw_only=True)
class Translator(Kept[PairRecipe]):
    """A run on pairs."""

    pairs: Pairs
    heldout: Pairs

    @property
    def network(self) -> Seq2Seq:
        assert isinstance(self.model, Seq2Seq)
        return self.model

    def batches(self, step: int) -> Sequence[Batch]:
        self.network.noise.begin(self.recipe.seed, step)
        return self.pairs.chosen(step, self.recipe.rows, self.recipe.seed).split(self.recipe.micro)

    @torch.inference_mode()
    def look(self, limit: int | None) -> dict[str, float]:
        self.network.noise.end()
        nats, size = 0.0, 0
        for batch in self.heldout.in_order(self.recipe.rows):
            nats += causal(self.model, batch.to(self.place.name)).loss.item()
            size += batch.bytes
            if limit is not None and size >= limit:
                break
        return {"heldout_bits_per_byte": nats / math.log(2) / max(size, 1)}

    def row(self, done: int, result: Stepped, micros: Sequence[Batch]) -> dict[str, Any]:
        bits = result.loss * result.weight / math.log(2) / max(sum(m.bytes for m in micros), 1)
        return {"loss": result.loss, "bits_per_byte": bits, "pairs": done * self.recipe.rows}

    @property
    def fingerprint(self) -> str:
        return self.pairs.fingerprint

    def said(self) -> dict[str, Any]:
        return {"model_type": MODEL_TYPE, "vocab_size": self.tokenizer.vocab_size, **asdict(self.recipe.pairs)}


def prepare(run: Run, recipe: PairRecipe, say: Callable[[str], None] = log.info) -> Translator:
    """Read the pairs, make or load the tokenizer, and build or resume the model."""
    found = list(texts(recipe.file))
    learn = [pair for pair in found if not held_out(pair[0], recipe.file.holdout)]
    kept = [pair for pair in found if held_out(pair[0], recipe.file.holdout)]
    tokenizer = vocabulary(run, recipe.tokenizer, (text for pair in learn for text in pair))
    (pairs, long), (heldout, more) = (cut(side, tokenizer, recipe.file.longest) for side in (learn, kept))
    if not pairs.ids or not heldout.ids:
        raise TerakoyaError(str(recipe.file.path), "holds too few pairs", hint="raise file.longest or file.holdout")
    say(f"{len(pairs.ids):,} pairs to learn from ({long + more:,} too long), {len(heldout.ids):,} held out")
    place = device.choose(recipe.device, "fp32")
    model = initialise(Seq2Seq(recipe.pairs, tokenizer.vocab_size), recipe.seed, recipe.init).to(place.name)
    made = Translator(
        run=run, recipe=recipe, model=model, optimizer=Optimizer(model, recipe.optim), place=place, tokenizer=tokenizer,
        pairs=pairs, heldout=heldout, objective=causal,
    )  # fmt: skip
    made.resume()
    return made


def open_translator(folder: Path) -> tuple[Seq2Seq, Tokenizer]:
    """Open the newest model of a run."""
    checkpoint, said = newest(folder, MODEL_TYPE, "recipes/translate.toml")
    vocab = said.pop("vocab_size")
    model = Seq2Seq(config.build(Pair, said, place=str(checkpoint.path)), vocab)
    model.load_state_dict(dict(checkpoint.tensors("model/model")))
    return model, Tokenizer.load(checkpoint.path / "model")
