"""The layer that is put on a model, how it is kept beside the model, and what it makes of hidden vectors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from terakoya import config
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.awd import AwdLstm
from terakoya.model.build import generator
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.model.noise import Noise
from terakoya.train.objectives.contrast import pooled
from terakoya.train.objectives.pair import compared, means
from terakoya.tune.heads.deep import Deep
from terakoya.tune.heads.kinds import Choose, Classify, Extract, Kind, Pool, Regress, Tag, Translate
from terakoya.zoo import convert
from terakoya.zoo.weights import open_weights

NAME = "extra"  # where a model carries what is beside it, as in pretraining
OUTSIDE = "O"


@dataclass(frozen=True)
class Card:
    """What a head says, and the names of what it can say."""

    kind: Kind
    labels: tuple[str, ...] = ()
    scale: tuple[float, float] = (0.0, 1.0)  # mean and spread of the numbers that Regress learnt from


class Head(nn.Module):
    """Scores from vectors; nothing to learn where the vector itself is the answer."""

    def __init__(self, card: Card, dim: int, noise: Noise) -> None:
        super().__init__()
        self.card, self.noise = card, noise
        outputs = {Classify: len(card.labels), Choose: 1, Regress: 1, Tag: len(card.labels), Extract: 2}
        bare = isinstance(card.kind, Choose) and card.kind.read == "apart"
        count = 0 if bare else outputs.get(type(card.kind), 0)  # Embed and Translate: the model itself is all
        wide = {"concat": 3, "pair": 4}.get(getattr(card.kind, "pool", ""), 1) * dim
        self.out: nn.Linear | Deep | None = nn.Linear(wide, count) if count else None
        if isinstance(card.kind, Classify) and card.kind.hidden:
            self.out = Deep((wide, card.kind.hidden, count), card.kind.drop, noise)

    def forward(self, x: Tensor) -> Tensor:
        """Score: x (N, D) -> (N, C)."""
        assert self.out is not None
        return self.out(x).float()


@torch.no_grad()
def attach(model: Model, card: Card, seed: int) -> Head:
    """Put a fresh head on a model, of which nothing depends on anything but the seed."""
    check(model.spec, card.kind)
    head = Head(card, model.spec.out_dim, model.noise if isinstance(model, AwdLstm) else Noise())
    if isinstance(head.out, Deep):
        head.out.start(seed)
    elif head.out is not None:
        head.out.weight.copy_(torch.randn(head.out.weight.shape, generator=generator(seed, "head")) * 0.02)
        head.out.bias.zero_()
    model.add_module(NAME, head.to(next(model.parameters()).device))
    return head


def check(s: spec.Model, kind: Kind) -> None:
    """Raise where a model cannot carry such a head."""
    if isinstance(kind, Translate) and s.sort != "encoder-decoder":
        raise TerakoyaError("model", "translation needs an encoder–decoder", given=s.sort)
    if not isinstance(kind, Translate) and s.sort == "encoder-decoder":
        raise TerakoyaError("model", "a head stands on an encoder or a decoder", given=s.sort)
    if getattr(kind, "pool", "") == "pooler" and s.pool is None:
        raise TerakoyaError("head.pool", "this model has no pooler", given="pooler", allowed=["first", "mean", "last"])


def head_of(model: Model) -> Head:
    """Return the head that a model carries."""
    head = model.get_submodule(NAME)
    assert isinstance(head, Head)
    return head


def vectors(model: Model, hidden: Tensor, ctx: Packed, pool: Pool) -> Tensor:
    """Make one vector of each piece: hidden (T, D) -> (N, D), or (N, 3D), (N, 4D) where several are joined."""
    if pool == "pooler":
        assert model.pool is not None
        return model.pool(hidden, ctx)
    cu = torch.tensor(ctx.cu, device=hidden.device)
    if pool == "concat":
        return torch.cat([pooled(hidden, cu, "last"), pooled(hidden, cu, "max"), pooled(hidden, cu, "mean")], 1)
    if pool == "pair":
        segments: Tensor | None = ctx.share("segments", lambda: None)
        if segments is None or not pooled(segments[:, None].float(), cu, "mean").all():
            hint = 'pool = "mean" reads single texts'
            raise TerakoyaError("head.pool", "compares two texts, and here is one", given="pair", hint=hint)
        return compared(*means(hidden, cu, segments))
    return pooled(hidden, cu, pool)


# Files: head.json says what it is, head.safetensors holds the layer; the model's folder beside them stays a plain one.


def described(card: Card) -> bytes:
    """Return the contents of head.json."""
    said = {"kind": config.kind(card.kind), **vars(card.kind), "labels": card.labels, "scale": card.scale}
    return (json.dumps(said, ensure_ascii=False, indent=2) + "\n").encode()


def open_head(folder: Path, model: Model) -> Head:
    """Read the head that a run has put beside its model, and put it on the model."""
    place = folder / "head.json"
    if not place.is_file():
        raise TerakoyaError(str(folder), "has no head beside its model", hint="make one with: terakoya tune RECIPE")
    said: dict[str, Any] = convert.read_json(place)
    labels, scale = said.pop("labels", ()), said.pop("scale", (0.0, 1.0))
    kind = config.build(Kind, said, "", str(place))
    card = Card(kind, tuple(config.build(tuple[str, ...], labels, "labels", str(place))), (scale[0], scale[1]))
    head = attach(model, card, 0)
    if head.out is not None:
        weights = open_weights(folder)
        with torch.no_grad():
            for name, own in head.state_dict().items():
                if name not in weights or weights.shape(name) != tuple(own.shape):
                    raise TerakoyaError(str(folder), f"holds no {name} of shape {tuple(own.shape)}")
                own.copy_(weights.get(name))
    return head
