"""Train CLIP on pictures with captions, by the loop, the step and the checkpoints of all other models; and use it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from terakoya import config, device
from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.captions import CaptionFile, Captions, cut, ending, held_out, laid_out, rows
from terakoya.train.kept import Kept, KeptRecipe, newest, vocabulary
from terakoya.train.objective import Outcome
from terakoya.train.objectives.task import rich
from terakoya.train.optim import AdamW, Optim, Optimizer
from terakoya.train.recipe import Vocabulary
from terakoya.train.run import Run
from terakoya.train.step import Stepped
from terakoya.train.towers import HOTTEST, Towers
from terakoya.zoo.picture import Preparation, opened, prepared

MODEL_TYPE = "terakoya-clip"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipPlan:
    """Sizes: both encoders have norms before, QuickGELU and heads `head` wide; the text sees its past only (§2.4)."""

    width: int = 64  # of the room where pictures and texts meet
    head: int = 32
    image: int = 32  # pixels, wide and high
    patch: int = 4
    image_dim: int = 96
    image_depth: int = 4
    text_dim: int = 96
    text_depth: int = 2

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise TerakoyaError(f"towers.{name}", given=value, allowed="1 or more")
        if self.image % self.patch:
            raise TerakoyaError("towers.image", given=self.image, allowed=f"a multiple of patch={self.patch}")
        for name in ("image_dim", "text_dim"):
            if getattr(self, name) % self.head:
                raise TerakoyaError(f"towers.{name}", given=getattr(self, name), allowed=f"multiples of {self.head}")

    @property
    def preparation(self) -> Preparation:
        return Preparation(self.image, None, (self.image, self.image))

    def spec(self, vocab: int, context: int) -> spec.Model:
        """Return the text encoder, with the image encoder as its sight."""
        attention = spec.Attention(self.text_dim // self.head, bias=True, out_bias=True)
        mlp = spec.MLP(4 * self.text_dim, "quick_gelu", bias=True)
        d = self.image_dim
        eye = spec.Sight(
            self.image, self.patch, d, self.image_depth, d // self.head, 4 * d, cut=1, whole=True, join=None
        )
        return spec.Model(
            vocab=vocab, dim=self.text_dim, depth=self.text_depth, context=context, norm=spec.LayerNorm(),
            blocks=(spec.pre(spec.LayerNorm(), attention, mlp),), embed=spec.Embed(position=spec.Learned()), sight=eye,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClipRecipe(KeptRecipe):
    """Everything that decides a run. All rows of a step are compared with each other, so there are no micro-batches."""

    captions: CaptionFile = field(default_factory=CaptionFile)
    towers: ClipPlan = field(default_factory=ClipPlan)
    tokenizer: Vocabulary = field(default_factory=lambda: Vocabulary(size=2000))
    rows: int = 64  # pictures a step
    optim: Optim = field(default_factory=lambda: AdamW(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98)))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows < 2:
            raise TerakoyaError("rows", given=self.rows, allowed="2 or more: a picture is told from others")


@dataclass(kw_only=True)
class ClipTrainer(Kept[ClipRecipe]):
    """A run on captions."""

    captions: Captions
    heldout: Captions

    @property
    def fingerprint(self) -> str:
        return self.captions.fingerprint

    def batches(self, step: int) -> Sequence[Batch]:
        return [self.captions.chosen(step, self.recipe.rows, self.recipe.seed)]

    def look(self, limit: int | None) -> dict[str, float]:
        """Return how often a held-out picture's caption is the nearest of all, and a caption's picture; and the marks.

        `limit` is for texts: pictures are all looked at. Always naming the commonest caption reaches `commonest`.
        """
        assert isinstance(self.model, Towers)
        kept, place = self.heldout, self.place.name
        texts = {row.text: ids for row, ids in zip(kept.rows, kept.ids, strict=True)}
        names = list(texts)
        own = torch.tensor([names.index(row.text) for row in kept.rows], device=place)
        with torch.inference_mode():
            cuts = [range(i, min(i + 64, len(own))) for i in range(0, len(own), 64)]
            seen = torch.cat([self.model.look(kept.pictures(at).to(place)) for at in cuts])
            tokens, lengths = laid_out(list(texts.values()))
            scores = F.normalize(seen, dim=-1) @ F.normalize(self.model.caption(tokens.to(place), lengths), dim=-1).T
        there = own[scores.argmax(0)] == torch.arange(len(names), device=place)
        return {
            "heldout_image_to_text": (scores.argmax(1) == own).float().mean().item(),
            "heldout_text_to_image": there.float().mean().item(),
            "heldout_commonest": own.bincount().max().item() / len(own),
        }

    def row(self, done: int, result: Stepped, micros: Sequence[Batch]) -> dict[str, Any]:
        return {"loss": result.loss, "pictures": done * self.recipe.rows}

    def said(self) -> dict[str, Any]:
        context = self.model.spec.context
        return {"model_type": MODEL_TYPE, "vocab_size": self.tokenizer.vocab_size, "context": context} | asdict(
            self.recipe.towers
        )


def matched(model: Model, batch: Batch) -> Outcome:
    """Sum over the pictures of a batch what CLIP's loss takes the mean of.

    Pictures with one caption are told apart at random: that adds a constant to the loss and nothing to its gradient.
    """
    assert isinstance(model, Towers)
    lengths = batch.cu.diff().tolist()
    return Outcome(model.loss(rich(batch)["pixels"], batch.tokens, lengths) * len(lengths))


def prepare(run: Run, recipe: ClipRecipe, say: Callable[[str], None] = log.info) -> ClipTrainer:
    """Read pictures and captions, make or load the tokenizer, and build or resume the model."""
    found, plan = list(rows(recipe.captions)), recipe.captions
    sides = [[row for row in found if held_out(row, plan.holdout) == side] for side in (False, True)]
    tokenizer = vocabulary(run, recipe.tokenizer, (row.text for row in sides[0]))
    (captions, long), (heldout, more) = (cut(side, tokenizer, plan, recipe.towers.preparation) for side in sides)
    if len(captions.rows) < recipe.rows or not heldout.rows:
        given = f"{len(captions.rows)} to learn from and {len(heldout.rows)} held out"
        raise TerakoyaError(
            str(plan.path), "holds too few pictures", given=given, allowed=f"rows={recipe.rows} at least"
        )
    learn, kept, left = len(captions.rows), len(heldout.rows), long + more
    say(f"{learn:,} pictures to learn from, {kept:,} held out ({left:,} captions too long)")
    place = device.choose(recipe.device, "fp32")
    model = Towers(recipe.towers.spec(tokenizer.vocab_size, plan.longest), recipe.towers.width).start(recipe.seed)
    model.to(place.name)
    made = ClipTrainer(
        run=run, recipe=recipe, model=model, optimizer=Optimizer(model, recipe.optim), place=place, tokenizer=tokenizer,
        captions=captions, heldout=heldout, objective=matched,
    )  # fmt: skip
    made.resume()
    return made


@dataclass(frozen=True)
class Clip:
    """A trained pair of encoders, and how its pictures are prepared."""

    model: Towers
    tokenizer: Tokenizer
    how: Preparation

    @torch.inference_mode()
    def name(self, pictures: Sequence[Path | str], captions: Sequence[str]) -> Tensor:
        """Say how likely each caption is for each picture, if one of them is right: -> (pictures, captions)."""
        place, end = self.model.scale.device, ending(self.tokenizer)
        pixels = torch.stack([torch.from_numpy(prepared(opened(Path(p)), self.how)) for p in pictures]).to(place)
        ids = [(*self.tokenizer.encode(text), end) for text in captions]
        long = next(
            (text for text, words in zip(captions, ids, strict=True) if len(words) > self.model.spec.context), None
        )
        if long is not None:
            raise TerakoyaError("caption", "is too long", given=long, allowed=f"{self.model.spec.context - 1} tokens")
        tokens, lengths = laid_out(ids)
        seen, read = self.model.look(pixels), self.model.caption(tokens.to(place), lengths)
        scale = self.model.scale.exp().clamp(max=HOTTEST)
        return (scale * F.normalize(seen, dim=-1) @ F.normalize(read, dim=-1).T).softmax(-1)


def open_clip(folder: Path | str) -> Clip:
    """Open the newest model of a run on captions."""
    checkpoint, told = newest(Path(folder), MODEL_TYPE, "recipes/clip-ja-nano.toml")
    vocab, context = told.pop("vocab_size"), told.pop("context")
    plan = config.build(ClipPlan, told, place=str(checkpoint.path))
    model = Towers(plan.spec(vocab, context), plan.width)
    model.load_state_dict(checkpoint.tensors("model/model"))
    return Clip(model.eval(), Tokenizer.load(checkpoint.path / "model"), plan.preparation)
