"""Hugging Face's config.json and our spec, by one table per family that is read in both directions.

A key maps either to a path of the spec (a number or flag that is the same on both sides) or to a small codec below.
Keys that say nothing about structure (token ids, dropout, dtype) are passed over by name; any other unknown key whose
value is not empty is an error, since ignoring it could load another model than the file means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from terakoya.config import override, select, values
from terakoya.errors import TerakoyaError
from terakoya.model import spec

Config = Mapping[str, Any]
Changes = dict[str, Any]


class Codec(Protocol):
    """A key whose two sides are not the same value."""

    def read(self, value: Any, config: Config) -> Changes:
        """Return the changes of the spec that `value` stands for."""
        ...

    def write(self, s: spec.Model) -> Any:
        """Return their value for a spec; None: leave the key out."""
        ...


Key = str | Codec

ACTS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
}
THEIR_ACTS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "relu2": "relu2", "silu": "silu"}


@dataclass(frozen=True)
class Act:
    """Activation names."""

    path: str = "mlp.act"
    aliases: tuple[tuple[str, str], ...] = ()

    def read(self, value: Any, config: Config) -> Changes:
        table = ACTS | dict(self.aliases)
        if value not in table:
            raise TerakoyaError(f"config.json: {self.path}", given=value, allowed=sorted(table))
        return {self.path: table[value]}

    def write(self, s: spec.Model) -> Any:
        act = values(s, self.path)[0]
        back = {ours: theirs for theirs, ours in self.aliases}
        return (THEIR_ACTS | back).get(act, act)


@dataclass(frozen=True)
class Flag:
    """A boolean of theirs that stands for one of two values of ours."""

    path: str
    true: Any
    false: Any

    def read(self, value: Any, config: Config) -> Changes:
        return {self.path: self.true if value else self.false}

    def write(self, s: spec.Model) -> Any:
        return values(s, self.path)[0] == self.true


@dataclass(frozen=True)
class Both:
    """One value of theirs at several paths of ours."""

    paths: tuple[str, ...]

    def read(self, value: Any, config: Config) -> Changes:
        return dict.fromkeys(self.paths, value)

    def write(self, s: spec.Model) -> Any:
        return values(s, self.paths[0])[0]


@dataclass(frozen=True)
class Hidden:
    """FFN width; where theirs is null it is `times` the width of the model."""

    times: int = 4
    width: str = "n_embd"

    def read(self, value: Any, config: Config) -> Changes:
        return {"mlp.hidden": value if value is not None else self.times * config[self.width]}

    def write(self, s: spec.Model) -> Any:
        return values(s, "mlp.hidden")[0]


@dataclass(frozen=True)
class Rotary:
    """`rope_parameters` (transformers 5), or `rope_theta` with `rope_scaling` (long-lived files): one codec for all."""

    key: str = "rope_parameters"

    def read(self, value: Any, config: Config) -> Changes:
        table = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
        theta = table.pop("rope_theta", None) or config.get("rope_theta") or config.get("rotary_emb_base") or 10_000.0
        part = table.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor")
        out: Changes = {"rope.theta": float(theta), "rope.scaling": scaling(table, config)}
        return out | ({"rope.fraction": float(part)} if part else {})

    def write(self, s: spec.Model) -> Any:
        ropes = select(s, "rope")
        if not ropes:
            return None
        rope: spec.Rope = ropes[0]
        table = {"rope_theta": rope.theta} | unscaling(rope.scaling)
        return table | ({"partial_rotary_factor": rope.fraction} if rope.fraction != 1.0 else {})


def scaling(table: dict[str, Any], config: Config) -> spec.Scaling | None:
    """Read a rope_scaling table."""
    sort = table.get("rope_type", table.get("type", "default"))
    factor = table.get("factor")
    trained = table.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    match sort:
        case "default" | "mrope":
            return None
        case "linear":
            return spec.Linear(float(factor or 1.0))
        case "dynamic":
            return spec.Dynamic(float(factor or 1.0))
        case "llama3":
            low, high = table["low_freq_factor"], table["high_freq_factor"]
            return spec.Llama3(float(factor or 1.0), float(low), float(high), int(trained or 8192))
        case "yarn":
            return spec.Yarn(
                float(factor or 1.0),
                trained,
                float(table.get("beta_fast") or 32.0),
                float(table.get("beta_slow") or 1.0),
                table.get("attention_factor"),
                table.get("mscale"),
                table.get("mscale_all_dim"),
                bool(table.get("truncate", True)),
            )
        case "longrope" | "su":
            short, long = tuple(map(float, table["short_factor"])), tuple(map(float, table["long_factor"]))
            return spec.LongRope(short, long, int(trained or 4096), factor, table.get("attention_factor"))
    raise TerakoyaError(
        "config.json: rope_scaling.rope_type",
        given=sort,
        allowed=["default", "linear", "dynamic", "llama3", "yarn", "longrope"],
    )


def unscaling(s: spec.Scaling | None) -> dict[str, Any]:
    """Write a rope_scaling table."""
    match s:
        case None:
            return {"rope_type": "default"}
        case spec.Linear(factor):
            return {"rope_type": "linear", "factor": factor}
        case spec.Dynamic(factor):
            return {"rope_type": "dynamic", "factor": factor}
        case spec.Llama3(factor, low, high, trained):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": trained,
            }
        case spec.Yarn():
            table = {
                "rope_type": "yarn",
                "factor": s.factor,
                "original_max_position_embeddings": s.trained,
                "beta_fast": s.beta_fast,
                "beta_slow": s.beta_slow,
                "attention_factor": s.attention,
                "mscale": s.mscale,
                "mscale_all_dim": s.mscale_all,
                "truncate": s.truncate,
            }
            return {k: v for k, v in table.items() if v is not None}
        case spec.LongRope():
            table = {
                "rope_type": "longrope",
                "short_factor": list(s.short),
                "long_factor": list(s.long),
                "original_max_position_embeddings": s.trained,
                "factor": s.factor,
                "attention_factor": s.attention,
            }
            return {k: v for k, v in table.items() if v is not None}


@dataclass(frozen=True)
class Layers:
    """`layer_types`: which of the family's blocks each layer is."""

    kinds: tuple[str, ...]  # their name of blocks[0], blocks[1], …

    def read(self, value: Any, config: Config) -> Changes:
        unknown = [v for v in value if v not in self.kinds]
        if unknown:
            raise TerakoyaError("config.json: layer_types", given=unknown[0], allowed=list(self.kinds))
        return {"layout": tuple(self.kinds.index(v) for v in value)}

    def write(self, s: spec.Model) -> Any:
        return [self.kinds[s.blocks.index(block)] for block in s.layers()]


IGNORED = frozenset(
    [
        "architectures",
        "model_type",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "decoder_start_token_id",
        "sep_token_id",
        "initializer_range",
        "use_cache",
        "pretraining_tp",
        "name_or_path",
        "_name_or_path",
        "attention_dropout",
        "hidden_dropout",
        "embd_pdrop",
        "attn_pdrop",
        "resid_pdrop",
        "dropout",
        "activation_dropout",
        "layerdrop",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "classifier_dropout",
        "residual_dropout",
        "embedding_dropout",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "task_specific_params",
        "gradient_checkpointing",
        "output_hidden_states",
        "output_attentions",
        "return_dict",
        "is_decoder",
        "is_encoder_decoder",
        "add_cross_attention",
        "id2label",
        "label2id",
        "problem_type",
        "chunk_size_feed_forward",
        "is_llama_config",
        "rope_interleaved",
        "transformers.js_config",
        "quantization_config",
        "rope_scaling",
        "rope_theta",
        "reorder_and_upcast_attn",
        "n_ctx",
        "predict_special_tokens",
        "auto_map",
        "cross_attention_hidden_size",
        "rotary_emb_base",
        "original_max_position_embeddings",
        "layer_norm_elementwise_affine",
        "tokenizer_class",
        "prefix",
        "use_mup_init",
        "init_std",
        "unk_index",
        "bos_index",
        "eos_index",
        "pad_index",
        "mask_index",
    ]
)


def read_config(base: spec.Model, keys: Mapping[str, Key | None], config: Config, place: str) -> spec.Model:
    """Return the spec that a config.json describes, starting from the family's."""
    changes: Changes = {}
    for key, value in config.items():
        if key not in keys:
            if key not in IGNORED and not _empty(value):
                raise TerakoyaError(place, f"key {key!r} is not known for this family", given=value)
            continue
        target = keys[key]
        if isinstance(target, str):
            if value is not None:
                changes[target] = value
        elif target is not None:
            changes |= target.read(value, config)
    for key, target in keys.items():  # codecs that read several keys, or the absence of theirs
        if key not in config and isinstance(target, Rotary | Hidden):
            changes |= target.read(None, config)
    return _settle(base, changes, place)


def _settle(base: spec.Model, changes: Changes, place: str) -> spec.Model:
    order = {"layout": 1, "depth": 0}  # depth before layout, whose length must fit
    s = replace(base, layout=None)
    for path in sorted(changes, key=lambda p: (order.get(p, 2), p.count("."))):
        if values(s, path) or "." not in path:
            try:
                s = override(s, {path: changes[path]})
            except TerakoyaError as error:
                raise TerakoyaError(place, str(error)) from None
    turns = tuple(i % len(s.blocks) for i in range(s.depth))
    return replace(s, layout=None) if s.layout == turns else s


def _empty(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {}, 0, 0.0, 1.0)


def write_config(s: spec.Model, keys: Mapping[str, Key | None]) -> dict[str, Any]:
    """Return the structural keys of config.json for a spec."""
    out: dict[str, Any] = {}
    for key, target in keys.items():
        if isinstance(target, str):
            found = values(s, target)
            if found and found[0] is not None:
                out[key] = found[0]
        elif target is not None and (value := target.write(s)) is not None:
            out[key] = value
    return out
