"""How a key of config.json stands for parts of a spec where the two sides are not the same value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from terakoya.config import select, values
from terakoya.errors import TerakoyaError
from terakoya.model import spec

Config = Mapping[str, Any]
Changes = dict[str, Any]
NULL = object()  # what `write` returns where the file shall say null

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
THEIR_ACTS = {"gelu_tanh": "gelu_new"}


class Codec:
    """One key, both ways. `read` is asked even where the key is absent (value None) if `always`."""

    always: ClassVar[bool] = False

    def claims(self) -> tuple[str, ...]:
        """Return the other keys that `read` looks at."""
        return ()

    def read(self, value: Any, config: Config) -> Changes:
        """Return the changes of the spec that `value` stands for."""
        return {}

    def layer(self, i: int, block: spec.Block, value: Any, config: Config) -> Changes:
        """Return the changes of layer i, whose block is `block` so far."""
        return {}

    def write(self, s: spec.Model) -> Any:
        """Return their value for a spec; None: leave the key out; NULL: say null."""
        return None


Key = str | Codec


@dataclass(frozen=True)
class Act(Codec):
    """Activation names."""

    path: str = "mlp.act"
    aliases: tuple[tuple[str, str], ...] = ()
    also: tuple[str, ...] = ()  # other places with the same function

    def read(self, value: Any, config: Config) -> Changes:
        table = ACTS | dict(self.aliases)
        if value is None:
            return {}
        if value not in table:
            raise TerakoyaError(f"config.json: {self.path}", given=value, allowed=sorted(table))
        return dict.fromkeys((self.path, *self.also), table[value])

    def write(self, s: spec.Model) -> Any:
        act = values(s, self.path)[0]
        back = {ours: theirs for theirs, ours in self.aliases}
        return (THEIR_ACTS | back).get(act, act)


@dataclass(frozen=True)
class Flag(Codec):
    """A boolean of theirs that stands for one of two values of ours."""

    path: str
    true: Any
    false: Any

    def read(self, value: Any, config: Config) -> Changes:
        return {self.path: self.true if value else self.false}

    def write(self, s: spec.Model) -> Any:
        found = values(s, self.path)
        return found[0] != self.false if found else None


@dataclass(frozen=True)
class Both(Codec):
    """One value of theirs at several paths of ours."""

    paths: tuple[str, ...]

    def read(self, value: Any, config: Config) -> Changes:
        return dict.fromkeys(self.paths, value)

    def write(self, s: spec.Model) -> Any:
        return values(s, self.paths[0])[0]


@dataclass(frozen=True)
class Maybe(Codec):
    """A path where null is a value."""

    path: str

    def read(self, value: Any, config: Config) -> Changes:
        return {self.path: value}

    def write(self, s: spec.Model) -> Any:
        found = values(s, self.path)
        return NULL if found and found[0] is None else found[0] if found else None


@dataclass(frozen=True)
class Must(Codec):
    """A key that may have one value only: others mean a structure that no family here has."""

    value: Any

    def read(self, value: Any, config: Config) -> Changes:
        if value is not None and value != self.value:
            raise TerakoyaError("", "is a structure we do not have", given=value, allowed=str(self.value))
        return {}

    def write(self, s: spec.Model) -> Any:
        return self.value


@dataclass(frozen=True)
class Constant(Codec):
    """A key that another codec reads: always written the same."""

    value: Any

    def write(self, s: spec.Model) -> Any:
        return self.value


@dataclass(frozen=True)
class Told(Codec):
    """A key that repeats what another says: written, not read."""

    path: str

    def write(self, s: spec.Model) -> Any:
        found = values(s, self.path)
        return found[0] if found else None


@dataclass(frozen=True)
class Has(Codec):
    """A boolean that says whether the spec has a node of some kind: written, not read."""

    kind: str

    def write(self, s: spec.Model) -> Any:
        return bool(select(s, self.kind))


@dataclass(frozen=True)
class KVHeads(Codec):
    """Key-value heads, always written: families disagree about the default."""

    def read(self, value: Any, config: Config) -> Changes:
        return {"attention.kv_heads": value}

    def write(self, s: spec.Model) -> Any:
        attention: spec.Attention = select(s, "attention")[0]
        return attention.kv_heads or attention.heads


@dataclass(frozen=True)
class HeadDim(Codec):
    """Head width, always written; null: dim / heads."""

    def read(self, value: Any, config: Config) -> Changes:
        return {"attention.head_dim": value}

    def write(self, s: spec.Model) -> Any:
        return spec.head_dim(s, select(s, "attention")[0])


@dataclass(frozen=True)
class Inner(Codec):
    """FFN width of dense layers, or of experts where there are no others."""

    def read(self, value: Any, config: Config) -> Changes:
        return {} if value is None else {"mlp.hidden": value}

    def write(self, s: spec.Model) -> Any:
        mixers = [m for block in s.blocks for branch in block.branches for m in branch.mix]
        dense = [m for m in mixers if isinstance(m, spec.MLP)]
        return (dense or select(s, "mlp"))[0].hidden


@dataclass(frozen=True)
class Hidden(Codec):
    """FFN width; where theirs is null it is `times` the width of the model."""

    times: int = 4
    width: str = "n_embd"
    always: ClassVar[bool] = True

    def read(self, value: Any, config: Config) -> Changes:
        if value is None and self.width not in config:
            return {}
        return {"mlp.hidden": value if value is not None else self.times * config[self.width]}

    def write(self, s: spec.Model) -> Any:
        return values(s, "mlp.hidden")[0]


@dataclass(frozen=True)
class Times(Codec):
    """FFN width as a multiple of the model's `width`."""

    width: str
    default: int = 4
    always: ClassVar[bool] = True

    def read(self, value: Any, config: Config) -> Changes:
        if self.width not in config:
            return {}
        return {"mlp.hidden": int((self.default if value is None else value) * config[self.width])}

    def write(self, s: spec.Model) -> Any:
        times = values(s, "mlp.hidden")[0] / s.dim
        return int(times) if times == int(times) else times


@dataclass(frozen=True)
class Fourfold(Codec):
    """The width of the model, where the FFN has four times as much and no key of its own."""

    def read(self, value: Any, config: Config) -> Changes:
        return {"dim": value, "mlp.hidden": 4 * value}

    def write(self, s: spec.Model) -> Any:
        return s.dim


@dataclass(frozen=True)
class Power(Codec):
    """A number of theirs whose `exponent`-th power is ours: 1 / x, or x ** -0.5."""

    path: str
    exponent: float

    def read(self, value: Any, config: Config) -> Changes:
        return {} if value is None else {self.path: float(value**self.exponent)}

    def write(self, s: spec.Model) -> Any:
        ours = values(s, self.path)[0]
        if ours is None:
            return None
        theirs = ours ** (1 / self.exponent)
        return round(theirs) if float(round(theirs) ** self.exponent) == ours else theirs


@dataclass(frozen=True)
class Sliding(Codec):
    """One window for all layers; null: none."""

    def read(self, value: Any, config: Config) -> Changes:
        return {"attention.reach": spec.Window(value) if value else spec.Full()}

    def write(self, s: spec.Model) -> Any:
        found = select(s, "window")
        return found[0].size if found else NULL


@dataclass(frozen=True)
class RotaryDim(Codec):
    """The number of channels that turn, of `width` / `heads`."""

    heads: str = "n_head"
    width: str = "n_embd"

    def read(self, value: Any, config: Config) -> Changes:
        if value is None:
            return {"rope.fraction": 1.0}
        return {"rope.fraction": value / (config[self.width] // config[self.heads])}

    def write(self, s: spec.Model) -> Any:
        return round(select(s, "rope")[0].fraction * spec.head_dim(s, select(s, "attention")[0]))


@dataclass(frozen=True)
class Nested(Codec):
    """A table inside the table."""

    keys: Mapping[str, Key]

    def read(self, value: Any, config: Config) -> Changes:
        out: Changes = {}
        for key, target in self.keys.items():
            found = value.get(key) if value else None
            if isinstance(target, Codec):
                out |= target.read(found, config)
            elif found is not None:
                out[target] = found
        return out

    def write(self, s: spec.Model) -> Any:
        return {key: v for key, target in self.keys.items() if (v := written(target, s)) not in (None, NULL)}


def written(target: Key, s: spec.Model) -> Any:
    """Return what a key says of a spec; None: nothing, NULL: null."""
    if isinstance(target, Codec):
        return target.write(s)
    found = values(s, target)
    return found[0] if found else None


@dataclass(frozen=True)
class SharedExperts(Codec):
    """How many experts' worth of width every token visits (DeepSeek); none: no shared expert."""

    width: str = "moe_intermediate_size"

    def read(self, value: Any, config: Config) -> Changes:
        if not value:
            return {"moe.shared": None}
        return {"moe.shared.hidden": value * config[self.width]} if self.width in config else {}

    def write(self, s: spec.Model) -> Any:
        found: list[spec.MoE] = select(s, "moe")
        return found[0].shared.hidden // found[0].expert.hidden if found and found[0].shared else NULL


@dataclass(frozen=True)
class GroupCount(Codec):
    """Groups of experts (DeepSeek): `topk_group` of `n_group` stay; V2 has them where `topk_method` says so."""

    by: str
    method: bool = False

    def claims(self) -> tuple[str, ...]:
        return ("topk_group", "topk_method")

    def read(self, value: Any, config: Config) -> Changes:
        if not value or (self.method and config.get("topk_method") != "group_limited_greedy"):
            return {"moe.groups": None}
        return {"moe.groups": spec.Groups(value, config["topk_group"], "max" if self.by == "max" else "top2")}

    def write(self, s: spec.Model) -> Any:
        found = select(s, "groups")
        return found[0].count if found else NULL


@dataclass(frozen=True)
class Method(Codec):
    """DeepSeek-V2's name for having groups: written, not read."""

    def write(self, s: spec.Model) -> Any:
        return "group_limited_greedy" if select(s, "groups") else "greedy"


@dataclass(frozen=True)
class Shared(Codec):
    """How many query heads share a key head (PLaMo)."""

    def read(self, value: Any, config: Config) -> Changes:
        return {"attention.kv_heads": config["num_attention_heads"] // value}

    def write(self, s: spec.Model) -> Any:
        attention: spec.Attention = select(s, "attention")[0]
        return attention.heads // (attention.kv_heads or attention.heads)
