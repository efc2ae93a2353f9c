"""Keys of config.json that encoders and encoder–decoders have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from terakoya.config import values
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.zoo.codec import ACTS, THEIR_ACTS, Changes, Codec, Config


@dataclass(frozen=True)
class Rows(Codec):
    """Rows of the position table, of which the first `pad_token_id` + 1 serve no position (RoBERTa)."""

    def claims(self) -> tuple[str, ...]:
        return ("pad_token_id",)

    def read(self, value: Any, config: Config) -> Changes:
        offset = config.get("pad_token_id", 1) + 1
        return {"context": value - offset, "learned.offset": offset}

    def write(self, s: spec.Model) -> Any:
        return s.context + values(s, "learned.offset")[0]


@dataclass(frozen=True)
class Pad(Codec):
    """The id whose successor is the first position's row (RoBERTa): read by `Rows`."""

    def write(self, s: spec.Model) -> Any:
        return values(s, "learned.offset")[0] - 1


@dataclass(frozen=True)
class Narrow(Codec):
    """Width of the token table; equal to the model's, there is no projection, unless `kept` (ALBERT)."""

    kept: bool = False

    def read(self, value: Any, config: Config) -> Changes:
        same = value == config.get("hidden_size") and not self.kept
        return {"embed.factor": None if same else value, "embed.whole": not same}

    def write(self, s: spec.Model) -> Any:
        return s.embed.factor or s.dim


@dataclass(frozen=True)
class Depth(Codec):
    """Layers of the decoder; where theirs is null, as many as the encoder's."""

    other: str = "num_layers"
    always: ClassVar[bool] = True

    def read(self, value: Any, config: Config) -> Changes:
        value = config.get(self.other) if value is None else value
        return {} if value is None else {"depth": value}

    def write(self, s: spec.Model) -> Any:
        return s.depth


@dataclass(frozen=True)
class Projection(Codec):
    """T5's `feed_forward_proj`: "relu", "gated-gelu" (which means the tanh form), "gated-silu"."""

    def read(self, value: Any, config: Config) -> Changes:
        gated, act = value.startswith("gated-"), value.removeprefix("gated-")
        if act not in ACTS:
            raise TerakoyaError("", given=value, allowed=["relu", "gated-gelu", "gated-silu"])
        return {"mlp.gated": gated, "mlp.act": "gelu_tanh" if value == "gated-gelu" else ACTS[act]}

    def write(self, s: spec.Model) -> Any:
        act, gated = values(s, "mlp.act")[0], values(s, "mlp.gated")[0]
        name = "gelu" if gated and act == "gelu_tanh" else THEIR_ACTS.get(act, act)
        return f"gated-{name}" if gated else name


@dataclass(frozen=True)
class Tied(Codec):
    """Whether the head is the token table, which T5 then scales by dim ** -0.5; v1.1 does neither.

    transformers ties both and keeps the scale apart.
    """

    always: ClassVar[bool] = True

    def claims(self) -> tuple[str, ...]:
        return ("scale_decoder_outputs",)

    def read(self, value: Any, config: Config) -> Changes:
        tied = value is not False
        scaled = config.get("scale_decoder_outputs", tied)
        width = config.get("d_model")
        return {"head.tied": tied} | ({"head.scale": width**-0.5 if scaled else 1.0} if width else {})

    def write(self, s: spec.Model) -> Any:
        return s.head.tied


@dataclass(frozen=True)
class Scaled(Codec):
    """Written where it says more than the tie does."""

    def write(self, s: spec.Model) -> Any:
        return False if s.head.tied and s.head.scale == 1.0 else None


@dataclass(frozen=True)
class SqrtDim(Codec):
    """Whether token vectors are multiplied by sqrt(dim)."""

    paths: tuple[str, ...] = ("embed.scale",)

    def read(self, value: Any, config: Config) -> Changes:
        return dict.fromkeys(self.paths, "sqrt_dim" if value else 1.0)

    def write(self, s: spec.Model) -> Any:
        return values(s, self.paths[0])[0] == "sqrt_dim"


@dataclass(frozen=True)
class SharedTable(Codec):
    """Whether encoder and decoder use one token table (Marian)."""

    def read(self, value: Any, config: Config) -> Changes:
        return {"embed.shared": bool(value)}

    def write(self, s: spec.Model) -> Any:
        return s.embed.shared


@dataclass(frozen=True)
class OtherVocabulary(Codec):
    """The decoder's vocabulary, where it has its own."""

    def read(self, value: Any, config: Config) -> Changes:
        return {"vocab": value} if value else {}

    def write(self, s: spec.Model) -> Any:
        return s.vocab
