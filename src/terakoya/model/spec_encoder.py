"""Parts of a spec that encoders and encoder–decoders have and decoders do not."""

from __future__ import annotations

from dataclasses import dataclass

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
