"""Reformer's keys of config.json: which layers hash, how many buckets, positions as rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from terakoya.config import select, values
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.spec_sparse import Axial
from terakoya.zoo.codec import NULL, Changes, Codec, Config
from terakoya.zoo.layers import Layers


@dataclass(frozen=True)
class LayerList(Layers):
    """The kinds of all layers, which also says how many there are."""

    def read(self, value: Any, config: Config) -> Changes:
        if value is not None and (not isinstance(value, Sequence) or isinstance(value, str)):
            raise TerakoyaError("", given=value, allowed=f"a list of {', '.join(map(str, self.kinds))}")
        return {"depth": len(value)} if value else {}


@dataclass(frozen=True)
class Each(Codec):
    """One number that layers of several kinds have."""

    paths: tuple[str, ...]

    def read(self, value: Any, config: Config) -> Changes:
        return {} if value is None else dict.fromkeys(self.paths, value)

    def write(self, s: spec.Model) -> Any:
        return next(v for path in self.paths for v in values(s, path))


@dataclass(frozen=True)
class HeadWidth(Codec):
    """The width of a head, of attention and of hashed attention; ours is left out where heads fill the model."""

    def read(self, value: Any, config: Config) -> Changes:
        fills = value is None or value * config.get("num_attention_heads", 0) == config.get("hidden_size")
        return dict.fromkeys(("attention.head_dim", "lsh.head_dim"), None if fills else value)

    def write(self, s: spec.Model) -> Any:
        return spec.head_dim(s, (select(s, "attention") + select(s, "lsh"))[0])


@dataclass(frozen=True)
class BucketCount(Codec):
    """A number of buckets, its factors, or null: as many as the length asks for."""

    always: ClassVar[bool] = True

    def read(self, value: Any, config: Config) -> Changes:
        return {"lsh.buckets": () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)}

    def write(self, s: spec.Model) -> Any:
        found = values(s, "lsh.buckets")
        if not found or not found[0]:
            return NULL
        return found[0][0] if len(found[0]) == 1 else list(found[0])


@dataclass(frozen=True)
class AxialShape(Codec):
    """Rows and columns of positions; where `axial_pos_embds` is false, a row for every position."""

    always: ClassVar[bool] = True

    def claims(self) -> tuple[str, ...]:
        return ("axial_pos_embds", "axial_pos_embds_dim")

    def read(self, value: Any, config: Config) -> Changes:
        if config.get("axial_pos_embds") is False:
            return {"embed.position": spec.Learned()}
        widths = config.get("axial_pos_embds_dim")
        if value is None or widths is None:
            return {}
        if sum(widths) != config.get("hidden_size"):
            raise TerakoyaError("", given=widths, allowed=f"two widths, together hidden_size={config['hidden_size']}")
        (rows, columns), (dim, _) = value, widths
        return {"embed.position": Axial(rows, columns, dim)}

    def write(self, s: spec.Model) -> Any:
        place = s.embed.position
        return [place.rows, place.columns] if isinstance(place, Axial) else None


@dataclass(frozen=True)
class AxialWidths(Codec):
    """The widths of the two tables, which `AxialShape` reads: written, not read."""

    def write(self, s: spec.Model) -> Any:
        place = s.embed.position
        return [place.dim, s.dim - place.dim] if isinstance(place, Axial) else None


@dataclass(frozen=True)
class Causal(Codec):
    """Whether it continues texts: written as true; a saved model that says false is one for filling gaps."""

    def read(self, value: Any, config: Config) -> Changes:
        if value is False and config.get("architectures"):
            raise TerakoyaError("", "is a structure we do not have", given=value, allowed="true")
        return {}

    def write(self, s: spec.Model) -> Any:
        return True
