"""Rotary positions in config.json: two spellings, six scalings, one or two tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from terakoya.config import select
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.zoo.codec import Changes, Codec, Config

SORTS = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
CLAIMED = (
    "rope_parameters",
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "rotary_pct",
    "rotary_emb_base",
    "original_max_position_embeddings",
)


@dataclass(frozen=True)
class Rotary(Codec):
    """`rope_parameters` (transformers 5), or `rope_theta` with `rope_scaling` (long-lived files): one codec for all."""

    partial: bool = False  # say the fraction even where it is 1
    always: ClassVar[bool] = True

    def claims(self) -> tuple[str, ...]:
        return CLAIMED

    def read(self, value: Any, config: Config) -> Changes:
        return self.changes(dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {}), config)

    def changes(self, table: dict[str, Any], config: Config, theta: Any = None) -> Changes:
        theta = table.pop("rope_theta", None) or theta or config.get("rope_theta") or config.get("rotary_emb_base")
        part = table.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor")
        part = part or config.get("rotary_pct")
        out: Changes = {"rope.scaling": scaling(table, config)}
        out |= {"rope.theta": float(theta)} if theta else {}
        return out | ({"rope.fraction": float(part)} if part else {})

    def write(self, s: spec.Model) -> Any:
        ropes = select(s, "rope")
        return self.table(ropes[0]) if ropes else None

    def table(self, rope: spec.Rope) -> dict[str, Any]:
        table = {"rope_theta": rope.theta} | unscaling(rope.scaling)
        return table | ({"partial_rotary_factor": rope.fraction} if self.partial or rope.fraction != 1.0 else {})


@dataclass(frozen=True)
class TwoRotaries(Rotary):
    """A table for layers with a window and one for the others (Gemma 3, OLMo 3); older: `rope_local_base_freq`."""

    local_theta: float = 10_000.0
    local_scaling: bool = False  # the older spelling's rope_scaling holds for windowed layers too

    def claims(self) -> tuple[str, ...]:
        return (*CLAIMED, "rope_local_base_freq")

    def read(self, value: Any, config: Config) -> Changes:
        return {}

    def layer(self, i: int, block: spec.Block, value: Any, config: Config) -> Changes:
        local = bool(select(block, "window"))
        tables = config.get("rope_parameters") or {}
        kind = "sliding_attention" if local else "full_attention"
        if isinstance(tables.get(kind), dict):
            return self.changes(dict(tables[kind]), config)
        old = dict(config.get("rope_scaling") or {}) | dict(tables)
        if local:
            theta = config.get("rope_local_base_freq") or self.local_theta
            return {"rope.theta": float(theta), "rope.scaling": None}
        return self.changes(old, config)

    def write(self, s: spec.Model) -> Any:
        out: dict[str, Any] = {}
        for block in s.layers():
            for rope in select(block, "rope"):
                kind = "sliding_attention" if select(block, "window") else "full_attention"
                out.setdefault(kind, self.table(rope))
        missing = {"sliding_attention", "full_attention"} - set(out)  # transformers wants both, whichever is used
        return out | {kind: next(iter(out.values())) for kind in missing} if out else None


@dataclass(frozen=True)
class Trained(Codec):
    """phi-3 keeps the trained length beside the table too: written, not read."""

    def write(self, s: spec.Model) -> Any:
        found = select(s, "longrope")
        return found[0].trained if found else None


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
                _number(table.get("attention_factor")),
                _number(table.get("mscale")),
                _number(table.get("mscale_all_dim")),
                bool(table.get("truncate", True)),
            )
        case "longrope" | "su":
            short, long = tuple(map(float, table["short_factor"])), tuple(map(float, table["long_factor"]))
            gain = _number(table.get("attention_factor"))
            return spec.LongRope(short, long, int(trained or 4096), _number(factor), gain)
    raise TerakoyaError("rope_type", given=sort, allowed=SORTS)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


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
