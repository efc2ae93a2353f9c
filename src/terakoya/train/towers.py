"""CLIP: an image encoder and a text encoder that learn which caption belongs to which picture (Radford 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.build import Init, generator, initialise
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.model.sight import Sight
from terakoya.train.objectives.contrast import clip, pooled

COLDEST = 1 / 0.07  # what the cosines are multiplied with at first (§2.5)
HOTTEST = 100.0  # and at most


class Towers(Model):
    """Two encoders and the room where their vectors meet.

    The spec is that of the text encoder, with the image encoder as its `sight`: the vector of the whole image and that
    of the text's last token go through a norm and a linear layer each into `width` dimensions (figure 3).
    """

    def __init__(self, s: spec.Model, width: int) -> None:
        nn.Module.__init__(self)
        if s.sight is None:
            raise TerakoyaError("model.sight", "is missing: there is nothing to see with")
        self.spec, self.text = s, Model(s)
        self.image = nn.Linear(s.sight.dim, width, bias=False)
        self.words = nn.Linear(s.dim, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(math.log(COLDEST)))

    def start(self, seed: int) -> Towers:
        """Set every weight from the seed; matrices by their width, as CLIP's code has it."""
        initialise(self.text, seed, Init(std=(2 * self.text.spec.dim) ** -0.5, embed_std=0.02))
        with torch.no_grad():
            for name, layer in (("image", self.image), ("words", self.words)):
                drawn = torch.randn(layer.weight.shape, generator=generator(seed, name))
                layer.weight.copy_(drawn * layer.in_features**-0.5)
        return self

    def look(self, pixels: Tensor) -> Tensor:
        """Make one vector of each picture: pixels (N, 3, size, size), prepared -> (N, width)."""
        eye = self.text.sight
        assert isinstance(eye, Sight)
        return self.image(eye.after(eye.look(pixels)[:, 0]))

    def caption(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Make one vector of each text: tokens (T,) of texts side by side -> (N, width)."""
        ctx = Packed(lengths, tokens.device)
        return self.words(pooled(self.text(tokens, ctx), torch.tensor(ctx.cu, device=tokens.device), "last"))

    def loss(self, pixels: Tensor, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Tell each picture's caption among those of the batch and each caption's picture: -> (), the mean of both."""
        return clip(self.look(pixels), self.caption(tokens, lengths), self.scale.exp().clamp(max=HOTTEST))
