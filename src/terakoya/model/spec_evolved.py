"""What a search over architectures put between the attentions (So 2019, The Evolved Transformer). No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GLU:
    """(W x + b) * sigmoid(V x + c), as wide as the model (Dauphin 2017): the encoder's first branch."""


@dataclass(frozen=True)
class EvolvedConv:
    """Two branches of different reach, added, normed and folded by a third (So 2019, figure 3)."""

    causal: bool = True  # the decoder's three separable convolutions | the encoder's dense layer and two convolutions
