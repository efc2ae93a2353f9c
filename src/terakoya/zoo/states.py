"""Keys of config.json that recurrent families have and others do not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from terakoya.config import select, values
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.zoo.codec import Changes, Codec, Config
from terakoya.zoo.layers import alike


@dataclass(frozen=True)
class Expand(Codec):
    """The inner width as a multiple of the model's."""

    path: str
    default: int = 2
    always: ClassVar[bool] = True

    def read(self, value: Any, config: Config) -> Changes:
        if "hidden_size" not in config:
            return {}
        return {self.path: int((self.default if value is None else value) * config["hidden_size"])}

    def write(self, s: spec.Model) -> Any:
        times = values(s, self.path)[0] / s.dim
        return int(times) if times == int(times) else times


@dataclass(frozen=True)
class Rank(Codec):
    """The rank of Mamba's step sizes; "auto": a sixteenth of the model's width."""

    always: ClassVar[bool] = True

    def read(self, value: Any, config: Config) -> Changes:
        if value in (None, "auto"):
            return {"mamba.rank": math.ceil(config["hidden_size"] / 16)} if "hidden_size" in config else {}
        return {"mamba.rank": value}

    def write(self, s: spec.Model) -> Any:
        return values(s, "mamba.rank")[0]


@dataclass(frozen=True)
class Pattern(Codec):
    """A list of layer kinds that repeats to the last layer, and what each changes of the block."""

    kinds: Mapping[str, Changes]
    default: tuple[str, ...]
    always: ClassVar[bool] = True

    def layer(self, i: int, block: spec.Block, value: Any, config: Config) -> Changes:
        pattern = self.default if value is None else value
        kind = pattern[i % len(pattern)]
        if kind not in self.kinds:
            raise TerakoyaError("", given=kind, allowed=list(self.kinds))
        return self.kinds[kind]

    def write(self, s: spec.Model) -> Any:
        named = [self._name(block) for block in s.layers()]
        for period in range(1, s.depth):
            if named[period:] == named[:-period]:
                return named[:period]
        return named

    def _name(self, block: spec.Block) -> str | None:
        for name, changes in self.kinds.items():
            if all(alike(v, want) for path, want in changes.items() for v in values(block, path)):
                return name
        return None


@dataclass(frozen=True)
class Every(Codec):
    """One layer in `value`, from the `offset`-th on, is of another kind (Jamba)."""

    offset: str
    starts: int  # what `offset` means by default
    period: int  # what the key means by default
    one: Changes
    others: Changes
    always: ClassVar[bool] = True

    def claims(self) -> tuple[str, ...]:
        return (self.offset,)

    def layer(self, i: int, block: spec.Block, value: Any, config: Config) -> Changes:
        start = config.get(self.offset, self.starts)
        return self.one if i % (value or self.period) == start else self.others

    def pick(self, i: int) -> Changes:
        """Return what layer i is by default."""
        return self.one if i % self.period == self.starts else self.others

    def found(self, s: spec.Model) -> tuple[int, int]:
        """Return (period, offset) of a spec."""
        ((path, want),) = self.one.items()
        places = [i for i, block in enumerate(s.layers()) if all(alike(v, want) for v in values(block, path))]
        if not places:  # never: a period that no layer reaches
            return s.depth + 1, s.depth
        return (places[1] - places[0] if len(places) > 1 else s.depth), places[0]

    def write(self, s: spec.Model) -> Any:
        return self.found(s)[0]


@dataclass(frozen=True)
class Offset(Codec):
    """The offset that belongs to an `Every`: written, not read."""

    every: Every

    def write(self, s: spec.Model) -> Any:
        return self.every.found(s)[1]


@dataclass(frozen=True)
class Half(Codec):
    """An FFN width that counts both halves (RecurrentGemma)."""

    def read(self, value: Any, config: Config) -> Changes:
        return {} if value is None else {"mlp.hidden": value // 2}

    def write(self, s: spec.Model) -> Any:
        return 2 * values(s, "mlp.hidden")[0]


@dataclass(frozen=True)
class Wide(Codec):
    """Griffin's recurrent width; null: the model's."""

    always: ClassVar[bool] = True

    def read(self, value: Any, config: Config) -> Changes:
        width = value or config.get("hidden_size")
        heads = config.get("num_attention_heads")
        return ({"rglru.width": width} if width else {}) | ({"rglru.heads": heads} if heads else {})

    def write(self, s: spec.Model) -> Any:
        found = select(s, "rglru")
        return found[0].width if found else None


@dataclass(frozen=True)
class HeadWidth(Codec):
    """Mamba-2's head width, which follows from its heads: written, not read."""

    def write(self, s: spec.Model) -> Any:
        found = select(s, "mamba2")[0]
        return found.inner // found.heads


@dataclass(frozen=True)
class Unlimited(Codec):
    """A range that step sizes are clamped to: only the open one is known here."""

    def read(self, value: Any, config: Config) -> Changes:
        given = [v.get("__float__", 0) if isinstance(v, dict) else v for v in value or ()]  # JSON has no infinity
        if value is not None and [float(v) for v in given] != [0.0, math.inf]:
            raise TerakoyaError("", "is a structure we do not have", given=value, allowed="(0, inf)")
        return {}
