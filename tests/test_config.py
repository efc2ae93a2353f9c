from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terakoya import config
from terakoya.errors import TerakoyaError


@dataclass(frozen=True)
class Window:
    size: int


@dataclass(frozen=True)
class Full:
    pass


@dataclass(frozen=True)
class Attention:
    heads: int = 4
    reach: Full | Window = field(default_factory=Full)
    softcap: float | None = None


@dataclass(frozen=True)
class MLP:
    act: Literal["gelu", "silu"] = "gelu"


@dataclass(frozen=True)
class Block:
    mix: tuple[Attention | MLP, ...] = (Attention(), MLP())


@dataclass(frozen=True)
class Model:
    dim: int
    name: str = "m"
    blocks: tuple[Block, ...] = (Block(), Block())
    scale: float | Literal["sqrt"] = 1.0
    source: str | Block = "x"


def test_override_by_field_index_and_kind():
    m = Model(8)
    assert config.override(m, {"dim": 9}).dim == 9
    assert config.override(m, {"blocks.1.mix.0.heads": 2}).blocks[0].mix[0].heads == 4
    wide = config.override(m, {"attention.heads": 2, "attention.reach": Window(3), "window.size": 7})
    assert {a.reach for a in config.select(wide, "attention")} == {Window(7)}
    assert config.values(wide, "attention.heads") == [2, 2]


def test_diff_is_the_inverse_of_override():
    a = Model(8)
    b = config.override(a, {"attention.heads": 2, "scale": "sqrt", "blocks.1.mix.1.act": "silu"})
    changes = config.diff(a, b)
    assert config.override(a, {k: new for k, (_, new) in changes.items()}) == b
    assert set(changes) == {"blocks.0.mix.0.heads", "blocks.1.mix.0.heads", "scale", "blocks.1.mix.1.act"}


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**60), 2**60))
def test_toml_round_trip(name, scale, dim):
    m = Model(dim, name, scale=scale, blocks=(Block((MLP("silu"), Attention(softcap=scale, reach=Window(2)))),))
    assert config.load(Model, config.dump(m)) == m


def test_none_and_nested_union_survive():
    m = Model(8, source=Block((MLP(),)))
    assert config.load(Model, config.dump(m)) == m


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("attention.haeds=3", ["haeds", "heads"]),
        ("atention.heads=3", ["attention"]),
        ("dim=big", ["dim", "'big'", "a whole number"]),
        ("mlp.act=gleu", ["gleu", "gelu", "silu"]),
        ("dim", ["path=value"]),
        ("blocks.5.mix=[]", ["blocks.5"]),
    ],
)
def test_assignments_say_what_is_wrong(path, words):
    with pytest.raises(TerakoyaError) as error:
        config.assign(Model(8), [path])
    assert all(w in str(error.value) for w in words), str(error.value)
    assert "\n" not in str(error.value)


def test_assignments_read_by_type():
    m = config.assign(Model(8), ["dim=16", "name=2024", "scale=2", "attention.softcap=none", "window.size=5"][:4])
    assert (m.dim, m.name, m.scale) == (16, "2024", 2.0)
    m = config.assign(m, ['attention.reach={kind="window", size=3}'])
    assert config.values(m, "attention.reach.size") == [3, 3]


def test_another_kind_on_the_command_line():
    m = config.assign(Model(8), ["blocks.0.mix.0.reach.kind=full", "blocks.1.mix.0.softcap=2"])
    assert config.values(m, "attention.softcap") == [None, 2.0]
    with pytest.raises(TerakoyaError, match=r"reach\.kind: 'wide' .*full, window"):
        config.assign(Model(8), ["blocks.0.mix.0.reach.kind=wide"])
    with pytest.raises(TerakoyaError, match=r"reach.* needs size"):
        config.assign(Model(8), ["blocks.0.mix.0.reach.kind=window"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dim = 1\nwidht = 2", ["no field 'widht'"]),
        ("name = 'a'", ["needs dim"]),
        ("dim = [", ["not valid TOML"]),
        ("dim = 1\n[[blocks]]\n[[blocks.mix]]\nkind='atention'", ["blocks.0.mix.0.kind", "attention"]),
        ("dim = 1\n[[blocks]]\n[[blocks.mix]]\nheads=1", ["kind: is missing", "attention"]),
        ("dim = true", ["True", "whole number"]),
    ],
)
def test_file_errors_name_the_place(text, words):
    with pytest.raises(TerakoyaError) as error:
        config.load(Model, text, "recipe.toml")
    assert "recipe.toml" in str(error.value)
    assert all(w in str(error.value) for w in words), str(error.value)


def test_extends(tmp_path: Path):
    (tmp_path / "base.toml").write_text("dim = 1\nname = 'a'\n[[blocks]]\n[[blocks.mix]]\nkind='mlp'\n", "utf-8")
    (tmp_path / "child.toml").write_text("extends = 'base'\nname = 'b'\n", "utf-8")
    m = config.load_file(Model, tmp_path / "child.toml")
    assert (m.dim, m.name, m.blocks) == (1, "b", (Block((MLP(),)),))
    (tmp_path / "base.toml").write_text("extends = 'child'\n", "utf-8")
    with pytest.raises(TerakoyaError, match="extends itself"):
        config.load_file(Model, tmp_path / "child.toml")
    with pytest.raises(TerakoyaError, match="no such file"):
        config.load_file(Model, tmp_path / "nothing.toml")
