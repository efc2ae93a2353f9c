"""Learning from examples of what to say."""

from __future__ import annotations

import math

import torch

from terakoya.data.batch import Batch
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.step import Objective
from terakoya.tune.formats import Completion, Example, Talk, examples
from terakoya.tune.pack import Packer
from terakoya.tune.recipe import Tune
from terakoya.tune.samples import Counts, encode, fitted
from terakoya.tune.score import answers
from terakoya.tune.work import Prompt, parted, read, said


class Lessons:
    """Packed examples, and the loss on those held out."""

    def __init__(self, recipe: Tune, tokenizer: Tokenizer) -> None:
        data, rows = recipe.data, recipe.rows
        found = list(examples(read(data), None if data.format == "auto" else data.format))
        learn, kept = parted(found, _key, data.holdout, recipe.seed)
        self.notes: list[str] = []
        learn = self.worded(learn, tokenizer)
        self.packers: list[Packer] = []
        self.stats: dict[str, float] = {}
        for name, side in (("training", learn), ("held-out", kept)):
            counts = Counts()
            samples = fitted((encode(tokenizer, x, data.template) for x in side), rows.context, data.overlong, counts)
            packer = Packer(samples, tokenizer, rows=rows.count, context=rows.context, seed=recipe.seed)
            self.packers.append(packer)
            tokens = sum(s.length for s in samples)
            learnt = sum(1 for s in samples for w in s.weights[1:] if w)
            self.notes.append(
                f"{name}: {counts.said()}; {tokens:,} tokens, {learnt:,} of them learnt, "
                f"in {len(packer.plan):,} rows {packer.filled:.1%} full"
            )
        self.train, self.heldout = self.packers
        self.asked, self.prompts = ([p for x in side if (p := opening(x))] for side in (learn, kept))
        self.objective: Objective = answers

    def worded(self, learn: list[Example], tokenizer: Tokenizer) -> list[Example]:
        """Return the examples as they are to be learnt; a method may have them answered by somebody else."""
        return learn

    @property
    def fingerprint(self) -> str:
        return self.train.fingerprint

    @property
    def steps_per_epoch(self) -> int:
        return self.train.steps_per_epoch

    def batch(self, step: int) -> Batch:
        return self.train.batch(step)

    @torch.inference_mode()
    def look(self, model: Model, device: str, limit: int | None) -> dict[str, float]:
        """Loss per learnt token, and bits per byte."""
        nats, weight, size = 0.0, 0.0, 0
        for batch in self.heldout.evaluate():
            nats += answers(model, batch.to(device)).loss.item()
            weight += batch.weight
            size += batch.bytes
            if limit is not None and size >= limit:
                break
        return {"heldout_loss": nats / weight, "heldout_bits_per_byte": nats / math.log(2) / max(size, 1)}


def _key(example: Example) -> str:
    match example:
        case Talk():
            return said(opening(example) or example.messages)
        case Completion(_, prompt, completion):
            return prompt or completion


def opening(example: Example) -> Prompt:
    """What stands before the first answer that is learnt; nothing where the text is no conversation."""
    if isinstance(example, Completion):
        return ()
    for i, message in enumerate(example.messages):
        if message.role == "assistant" and i >= example.first:
            return example.messages[:i]
    return ()
