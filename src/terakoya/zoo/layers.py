"""Keys of config.json that say what each layer is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, ClassVar

from terakoya.config import override, select, values
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.zoo.codec import Changes, Codec, Config


@dataclass(frozen=True)
class Layers(Codec):
    """A list with one entry per layer, and what each entry changes of the layer's block.

    Older spellings: a `period` key n makes every n-th layer of the last kind; `after` names a flag and a key from whose
    value on layers are of the last kind.
    """

    kinds: Mapping[Any, Changes]
    period: tuple[str, ...] = ()
    after: tuple[str, str] | None = None
    always: ClassVar[bool] = True

    def claims(self) -> tuple[str, ...]:
        return self.period + (self.after or ())

    def layer(self, i: int, block: spec.Block, value: Any, config: Config) -> Changes:
        kind = self._kind(i, value, config)
        if kind is None:
            return {}
        if kind not in self.kinds:
            raise TerakoyaError("", given=kind, allowed=list(self.kinds))
        return self.kinds[kind]

    def _kind(self, i: int, value: Any, config: Config) -> Any:
        first, *_, last = self.kinds
        if value:
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise TerakoyaError("", given=value, allowed=f"a list of {', '.join(map(str, self.kinds))}")
            if i >= len(value):
                raise TerakoyaError("", "has fewer entries than there are layers", given=len(value))
            return value[i]
        for key in self.period:
            if config.get(key):
                return last if (i + 1) % config[key] == 0 else first
        if self.after and self.after[0] in config:
            return last if config[self.after[0]] and i >= config.get(self.after[1], 0) else first
        return None

    def write(self, s: spec.Model) -> Any:
        return [self._name(block) for block in s.layers()]

    def _name(self, block: spec.Block) -> Any:
        for name, changes in self.kinds.items():
            if all(alike(v, want) for path, want in changes.items() for v in values(block, path)):
                return name
        return None


def alike(value: Any, want: Any) -> bool:
    """Tell whether two values are of one kind: nodes by their class, all others by equality."""
    if isinstance(want, tuple):
        return len(value) == len(want) and all(map(alike, value, want))
    return type(value) is type(want) if is_dataclass(want) else value == want


@dataclass(frozen=True)
class Attentions(Layers):
    """GPT-Neo's `attention_types`: [[names, times], …]; `attention_layers` is the same spelled out."""

    def claims(self) -> tuple[str, ...]:
        return ("attention_layers",)

    def layer(self, i: int, block: spec.Block, value: Any, config: Config) -> Changes:
        spelled = [kind for names, times in value or () for _ in range(times) for kind in names]
        return super().layer(i, block, spelled, config)

    def write(self, s: spec.Model) -> Any:
        return [[super().write(s), 1]]


@dataclass(frozen=True)
class Dense(Codec):
    """Which layers have a dense FFN where the others have experts: those below a number (`first`), those listed
    (`only`, besides every layer that `decoder_sparse_step` passes over), or those not listed (`experts`).
    """

    by: str  # first | only | experts
    dense: Changes
    moe: Changes
    always: ClassVar[bool] = True

    def claims(self) -> tuple[str, ...]:
        return {"only": ("decoder_sparse_step",), "experts": ("interleave_moe_layer_step",)}.get(self.by, ())

    def layer(self, i: int, block: spec.Block, value: Any, config: Config) -> Changes:
        test: dict[str, Callable[[], bool]] = {
            "first": lambda: i < (value or 0),
            "only": lambda: i in (value or ()) or (i + 1) % (config.get("decoder_sparse_step") or 1) > 0,
            "experts": lambda: self._unlisted(i, value, config.get("interleave_moe_layer_step") or 1),
        }
        return self.dense if test[self.by]() else self.moe

    @staticmethod
    def _unlisted(i: int, value: Any, step: int) -> bool:
        return i not in value if value is not None else (i + 1) % step > 0

    def write(self, s: spec.Model) -> Any:
        dense = [i for i, block in enumerate(s.layers()) if not select(block, "moe")]
        if self.by == "first":
            return len(dense)
        return dense if self.by == "only" else [i for i in range(s.depth) if i not in dense]


@dataclass(frozen=True)
class Turned(Codec):
    """Whether layers with rotary positions norm queries and keys (Llama 4)."""

    norm: spec.QKNorm
    always: ClassVar[bool] = True

    def layer(self, i: int, block: spec.Block, value: Any, config: Config) -> Changes:
        on = value is not False and bool(select(block, "rope"))
        return {"attention.qk_norm": self.norm if on else None}

    def write(self, s: spec.Model) -> Any:
        return bool(select(s, "qknorm"))


@dataclass(frozen=True)
class Still(Codec):
    """Whether layers without rotary positions temper their queries (Llama 4)."""

    temper: spec.Temper
    always: ClassVar[bool] = True

    def layer(self, i: int, block: spec.Block, value: Any, config: Config) -> Changes:
        on = value is not False and not select(block, "rope")
        return {"attention.temper": self.temper if on else None}

    def write(self, s: spec.Model) -> Any:
        return bool(select(s, "temper"))


@dataclass(frozen=True)
class LastLayer(Codec):
    """A last layer unlike the others, whatever the file says (GPT-NeoX-Japanese); `depth` is their key for it."""

    depth: str
    others: Changes
    last: Changes
    always: ClassVar[bool] = True

    def layer(self, i: int, block: spec.Block, value: Any, config: Config) -> Changes:
        return self.last if i == config.get(self.depth, 0) - 1 else self.others


def apply(codec: Codec, layers: list[spec.Block], value: Any, config: Config) -> list[spec.Block]:
    """Change every layer as the codec says."""
    if type(codec).layer is Codec.layer:
        return layers
    return [override(block, codec.layer(i, block, value, config)) for i, block in enumerate(layers)]
