"""Keys of config.json that encoders and encoder–decoders have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from terakoya.config import override, select, values
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.zoo.codec import ACTS, THEIR_ACTS, Changes, Codec, Config
from terakoya.zoo.hf import IGNORED
from terakoya.zoo.layers import Layers


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
    whole: bool = True  # False: only the table is narrow (DeBERTa)

    def read(self, value: Any, config: Config) -> Changes:
        same = value == config.get("hidden_size") and not self.kept
        return {"embed.factor": None if same else value, "embed.whole": self.whole and not same}

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


@dataclass(frozen=True)
class Alternate(Layers):
    """ModernBERT's list of layers; older files say that every `global_attn_every_n_layers`-th sees all."""

    def claims(self) -> tuple[str, ...]:
        return ("global_attn_every_n_layers",)

    def _kind(self, i: int, value: Any, config: Config) -> Any:
        if value:
            return super()._kind(i, value, config)
        return "sliding_attention" if i % config.get("global_attn_every_n_layers", 3) else "full_attention"


@dataclass(frozen=True)
class OldThetas(Codec):
    """Two keys for two kinds of layer, where the file has no table of rotary parameters (ModernBERT)."""

    near: float = 10_000.0
    wide: float = 160_000.0
    always: ClassVar[bool] = True

    def claims(self) -> tuple[str, ...]:
        return ("global_rope_theta",)

    def layer(self, i: int, block: spec.Block, value: Any, config: Config) -> Changes:
        if config.get("rope_parameters"):
            return {}
        theta = (value or self.near) if select(block, "window") else config.get("global_rope_theta") or self.wide
        return {"rope.theta": float(theta)}


@dataclass(frozen=True)
class Sided(Codec):
    """A window's whole width, of which half lies on each side."""

    def read(self, value: Any, config: Config) -> Changes:
        return {"window.size": value // 2 + 1}

    def write(self, s: spec.Model) -> Any:
        found = select(s, "window")
        return 2 * (found[0].size - 1) if found else None


@dataclass(frozen=True)
class Sparse(Codec):
    """How many layers of a half have experts (Switch): the second, and from there every (layers / value)-th."""

    half: str  # encoder | decoder
    depth: str  # their key for how many layers there are
    dense: spec.MLP
    moe: spec.MoE
    always: ClassVar[bool] = True

    def claims(self) -> tuple[str, ...]:
        return (f"{self.half}_sparse_step",)

    def _at(self, i: int, value: Any, config: Config) -> bool:
        depth = config.get(self.depth) or config.get("num_layers", 12)
        step = depth // value if value else depth
        return step == 1 or i % step == 1

    def _mixer(self, i: int, value: Any, config: Config) -> tuple[spec.Mixer]:
        return (self.moe if self._at(i, 3 if value is None else value, config) else self.dense,)

    def read(self, value: Any, config: Config) -> Changes:
        if self.half == "decoder":
            return {}
        depth = config.get(self.depth, 12)
        block = spec.pre(spec.RMSNorm(), T5_ENCODER, self.dense)
        blocks = [override(block, {"branches.1.mix": self._mixer(i, value, config)}) for i in range(depth)]
        return {"encoder.layout": None, "encoder.depth": depth, "encoder.blocks": tuple(blocks)}

    def layer(self, i: int, block: spec.Block, value: Any, config: Config) -> Changes:
        return {} if self.half == "encoder" else {"branches.2.mix": self._mixer(i, value, config)}

    def write(self, s: spec.Model) -> Any:
        model = s.encoder if self.half == "encoder" else s
        return sum(bool(select(block, "moe")) for block in model.layers()) if model else None


T5_ENCODER = spec.Attention(8, head_dim=64, position=spec.Buckets(shared=True), scale=1.0, causal=False)


@dataclass(frozen=True)
class Apart(Codec):
    """DeBERTa's `relative_attention` and the keys that say how."""

    always: ClassVar[bool] = True

    def read(self, value: Any, config: Config) -> Changes:
        if not value:
            if config.get("pos_att_type"):
                raise TerakoyaError("", "position terms without relative attention", given=config["pos_att_type"])
            return {"attention.position": None}
        terms = config.get("pos_att_type") or []
        terms = [x.strip() for x in terms.lower().split("|")] if isinstance(terms, str) else terms
        if not set(terms) <= {"c2p", "p2c"}:
            raise TerakoyaError("", "pos_att_type", given=terms, allowed=["c2p", "p2c"])
        reach, buckets = config.get("max_relative_positions", -1), config.get("position_buckets", -1)
        found = spec.Disentangled(
            reach if reach > 0 else config.get("max_position_embeddings", 512),
            buckets if buckets > 0 else None,
            tuple(x for x in ("c2p", "p2c") if x in terms),
            not config.get("share_att_key", False),
            "layer_norm" in config.get("norm_rel_ebd", "none"),
        )
        return {"attention.position": found}

    def write(self, s: spec.Model) -> Any:
        return bool(select(s, "disentangled"))


@dataclass(frozen=True)
class ApartSaid(Codec):
    """One field of DeBERTa's position under their key: written, read by `Apart`."""

    field: str
    words: tuple[tuple[Any, Any], ...] = ()

    def write(self, s: spec.Model) -> Any:
        found = select(s, "disentangled")
        value = getattr(found[0], self.field) if found else None
        value = dict(self.words).get(value, value) if found else None
        return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Convolution(Codec):
    """DeBERTa v2's convolution: `conv_kernel_size`, `conv_act`, `conv_groups`."""

    def claims(self) -> tuple[str, ...]:
        return ("conv_act", "conv_groups")

    def read(self, value: Any, config: Config) -> Changes:
        if not value:
            return {"conv": None}
        return {"conv": spec.Conv(value, config.get("conv_act", "tanh"), config.get("conv_groups", 1))}

    def write(self, s: spec.Model) -> Any:
        return s.conv.kernel if s.conv else 0


@dataclass(frozen=True)
class ConvSaid(Codec):
    """The rest of it: written, read by `Convolution`."""

    field: str

    def write(self, s: spec.Model) -> Any:
        return getattr(s.conv, self.field) if s.conv else None


@dataclass(frozen=True)
class Said(Codec):
    """A word of theirs for each value of ours."""

    path: str
    words: tuple[tuple[str, Any], ...]

    def read(self, value: Any, config: Config) -> Changes:
        if value not in dict(self.words):
            raise TerakoyaError("", given=value, allowed=[word for word, _ in self.words])
        return {self.path: dict(self.words)[value]}

    def write(self, s: spec.Model) -> Any:
        ours = values(s, self.path)[0]
        return next((word for word, value in self.words if value == ours), None)


VISION = {  # CLIP's keys: ours, and what leaving them out means
    "image_size": ("image", 224),
    "patch_size": ("patch", 32),
    "hidden_size": ("dim", 768),
    "num_hidden_layers": ("depth", 12),
    "num_attention_heads": ("heads", 12),
    "intermediate_size": ("hidden", 3072),
    "hidden_act": ("act", "quick_gelu"),
    "layer_norm_eps": ("eps", 1e-5),
}
NO_VISION = IGNORED | {"initializer_factor", "projection_dim", "num_channels", "vocab_size"}


@dataclass(frozen=True)
class Vision(Codec):
    """The table of the image encoder (CLIP's)."""

    def read(self, value: Any, config: Config) -> Changes:
        strange = [
            k for k in value if k not in VISION and k not in NO_VISION and k not in ("model_type", "num_channels")
        ]
        if value.get("model_type", "clip_vision_model") != "clip_vision_model" or value.get("num_channels", 3) != 3:
            raise TerakoyaError("", given=value.get("model_type"), allowed="clip_vision_model, with three channels")
        if strange:
            raise TerakoyaError("", "has no meaning for this family", given=strange)
        return {"sight": spec.Sight(**{ours: value.get(k, default) for k, (ours, default) in VISION.items()})}

    def write(self, s: spec.Model) -> Any:
        if s.sight is None:
            return None
        return {"model_type": "clip_vision_model"} | {k: getattr(s.sight, ours) for k, (ours, _) in VISION.items()}


@dataclass(frozen=True)
class FromLast(Codec):
    """Which layer's output counts, from the last: -2 there, 2 here."""

    def read(self, value: Any, config: Config) -> Changes:
        if not isinstance(value, int) or value >= 0:
            raise TerakoyaError("", given=value, allowed="one negative number")
        return {"sight.cut": -value}

    def write(self, s: spec.Model) -> Any:
        return -s.sight.cut if s.sight else None
