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


@dataclass(frozen=True)
class Entities:
    """A table of things that texts speak of, which stand behind the words as tokens of their own (LUKE)."""

    count: int
    dim: int | None = None  # width of the table; None: the model's

    def __post_init__(self) -> None:
        if self.count < 1 or (self.dim is not None and self.dim < 1):
            raise TerakoyaError("entities", given=f"count={self.count}, dim={self.dim}", allowed="1 or more")


@dataclass(frozen=True)
class Glance:
    """Cross-attention of a decoder to the picture that was shown last (Flamingo, §3.1.2); no biases."""

    heads: int
    head_dim: int | None = None  # None: dim / heads

    def __post_init__(self) -> None:
        if self.heads < 1 or (self.head_dim is not None and self.head_dim < 1):
            given = f"heads={self.heads}, head_dim={self.head_dim}"
            raise TerakoyaError("glance.heads", given=given, allowed="1 or more")


@dataclass(frozen=True)
class Resampler:
    """Learned queries that make a few vectors of a picture's many (Flamingo, §3.1.1; Perceiver, Jaegle 2021)."""

    latents: int
    depth: int
    heads: int
    head_dim: int
    act: Literal["relu2", "relu", "gelu"] = "gelu"

    def __post_init__(self) -> None:
        if min(self.latents, self.depth, self.heads, self.head_dim) < 1:
            given = f"latents={self.latents}, depth={self.depth}, heads={self.heads}, head_dim={self.head_dim}"
            raise TerakoyaError("resampler", given=given, allowed="1 or more")


@dataclass(frozen=True)
class Sight:
    """How a decoder sees: CLIP's image encoder (Radford 2021; Dosovitskiy 2020), and what joins it to the words.

    An image is cut into patches; each becomes a vector that stands in the text in the place of a token (LLaVA).
    """

    image: int = 336  # pixels, wide and high
    patch: int = 14  # pixels, wide and high
    dim: int = 1024
    depth: int = 24
    heads: int = 16
    hidden: int = 4096
    act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    eps: float = 1e-5
    cut: int = 2  # which output counts: 1 the last layer's, 2 the one before
    whole: bool = False  # with the vector of the whole image, too
    join: Literal["gelu"] | None = "gelu"  # two linear layers with this between (LLaVA-1.5) | None: one (LLaVA)
    token: int = 32_000  # the id in whose places the vectors stand
    resampler: Resampler | None = None  # Flamingo: pictures stay beside the text, for `Glance` to look at

    def __post_init__(self) -> None:
        if self.patch < 1 or self.image % self.patch:
            raise TerakoyaError("sight.patch", given=self.patch, allowed=f"a divisor of image={self.image}")
        if not 1 <= self.cut <= self.depth:
            raise TerakoyaError("sight.cut", given=self.cut, allowed=f"1 to depth={self.depth}")

    @property
    def places(self) -> int:
        """Return how many vectors an image becomes."""
        return (self.image // self.patch) ** 2 + self.whole
