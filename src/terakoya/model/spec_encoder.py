"""Parts of a spec that encoders and encoder–decoders have and decoders do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from terakoya.errors import TerakoyaError


@dataclass(frozen=True)
class Cross:
    """Attention of a decoder over the encoder's vectors (Vaswani 2017, §3.2.3): nothing hidden, no positions."""

    heads: int
    kv_heads: int | None = None  # None: as many as heads; AlphaCode: fewer
    head_dim: int | None = None  # None: dim / heads
    bias: bool = False
    out_bias: bool = False
    scale: float | None = None  # None: head_dim ** -0.5; T5: 1

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads", "head_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TerakoyaError(f"cross.{name}", given=value, allowed="1 or more")


@dataclass(frozen=True)
class Pooler:
    """One vector per sequence: tanh(W h + b) of its first token (BERT). With `classes`, scores of what the pair of
    sentences is: next or not (BERT), in order or swapped (ALBERT).
    """

    classes: int = 0


@dataclass(frozen=True)
class Disentangled:
    """Score terms between content and distance, in a table of vectors that all layers share (DeBERTa)."""

    reach: int = 512  # distances beyond count as this far
    buckets: int | None = None  # v2, v3: near distances one row each, far ones by logarithm
    terms: tuple[Literal["c2p", "p2c"], ...] = ("c2p", "p2c")  # content asks position, position asks content
    own: bool = True  # projections of their own | v3: those of the content
    norm: bool = False  # v2, v3: the table goes through a norm


@dataclass(frozen=True)
class Conv:
    """A convolution over the input, added after the first layer (DeBERTa v2)."""

    kernel: int = 3
    act: Literal["tanh", "gelu", "relu"] = "tanh"
    groups: int = 1
