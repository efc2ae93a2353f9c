"""Laws that every family keeps, at a size of a few thousand weights."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from terakoya import config
from terakoya.model import spec
from terakoya.model.build import build, initialise
from terakoya.model.context import Memory, Packed
from terakoya.model.model import Model
from terakoya.ops.attend import naive
from terakoya.zoo import lineage
from terakoya.zoo.convert import make_config, spec_of
from tests.zoo.noisy import VOCAB, noisy, text
from tests.zoo.paired import ENCODERS, PAIRS, SEEING
from tests.zoo.reference import CASES, TINY

FAMILIES = [n for n in lineage.families() if lineage.base(n).sort == "decoder"]  # the others: test_paired.py
CONTEXT, WINDOW = 64, 5


def shrunk(s: spec.Model) -> spec.Model:
    """Return a spec with few tokens, and windows that a short text outgrows."""
    changes: dict[str, Any] = {"vocab": VOCAB, "context": CONTEXT}
    changes |= {f"{k}.size": WINDOW for k in ("window", "chunk", "local") if config.select(s, k)}
    changes |= {"temper.floor": 4} if config.select(s, "temper") else {}
    return config.override(s, changes)


def tiny(name: str) -> spec.Model:
    """Return a family small, with every kind of its layers."""
    s = lineage.base(name)
    depth = max(2, len(s.blocks), min(4, len(s.layout or ())))
    return shrunk(lineage.rescale(s, 32, depth, 16))


@functools.cache
def model(name: str) -> Model:
    return noisy(tiny(name))


def logits(m: Model, *sequences: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return m.head(m(torch.cat(sequences), Packed([len(s) for s in sequences])))


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.std().clamp(min=1e-3)).item()


def unmoved(name: str, a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tell whether two results are the same bits. An expert's kernel sees as many rows as tokens chose it, from
    whatever document, and may add in another order; a spectrum mixes all of a text and cancels what comes later. There,
    and only there, the last digits may differ.
    """
    loose = any(config.select(lineage.base(name), kind) for kind in ("moe", "hyena", "s4"))
    return apart(a, b) < 1e-5 if loose else torch.equal(a, b)


def every_family(test: Any) -> Any:
    return pytest.mark.parametrize("name", FAMILIES)(test)


@every_family
def test_the_future_does_not_leak(name: str) -> None:
    x = text(16, 1)
    y = torch.cat([x[:9], text(7, 2)])
    m = model(name)
    before, after = logits(m, x), logits(m, y)
    assert unmoved(name, before[:9], after[:9])
    assert not torch.equal(before[9:], after[9:])


@every_family
def test_one_by_one_equals_one_forward(name: str) -> None:
    m, x = model(name), text(14, 3)
    memory, out = Memory(), []
    with torch.no_grad():
        for token in x.split(1):
            ctx = memory.step([1])
            out.append(m.head(m(token, ctx)))
            ctx.close()
    assert apart(torch.cat(out), logits(m, x)) < 1e-4


@every_family
def test_packed_equals_alone(name: str) -> None:
    m, a, b = model(name), text(11, 4), text(7, 5)
    packed = logits(m, a, b)
    assert apart(packed[:11], logits(m, a)) < 1e-5
    assert apart(packed[11:], logits(m, b)) < 1e-5
    edited = logits(m, text(11, 6), b)
    assert unmoved(name, edited[11:], packed[11:])


@every_family
def test_kernels_equal_the_definition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m, a, b = model(name), text(11, 7), text(8, 8)
    fast = logits(m, a, b)
    monkeypatch.setattr("terakoya.model.context.attend", naive)
    assert apart(fast, logits(m, a, b)) < 1e-5


def looking(m: Model) -> tuple[str, ...]:
    """Return the layers that look at pictures, behind gates that begin closed."""
    return tuple(f"layers.{i}." for i, layer in enumerate(m.layers) if "glance" in dict(layer.named_children()))


@every_family
def test_every_weight_learns(name: str) -> None:
    m = initialise(build(tiny(name)), 0)
    x = text(33, 9)
    hidden = m(x[:-1], Packed([20, 12]))
    F.cross_entropy(m.head(hidden), x[1:]).backward()
    for weight, p in m.named_parameters():
        if weight.startswith(("sight.", *looking(m))):  # pictures teach it: test_llava.py, test_flamingo.py
            continue
        if not p.requires_grad:  # a bias that balances experts is moved by rule, not by gradient
            assert weight.endswith("choice_bias")
            continue
        assert p.grad is not None, weight
        assert p.grad.isfinite().all(), weight
        assert p.grad.any(), weight  # of stacked experts at least the chosen ones


@every_family
def test_every_family_has_a_nano_version(name: str) -> None:
    s = shrunk(lineage.sized(f"{name}/nano"))
    assert (s.dim, s.depth) == (128, 4)
    assert logits(initialise(build(s), 0), text(9, 10)).isfinite().all()


@every_family
def test_specs_survive_toml(name: str) -> None:
    for s in (lineage.base(name), tiny(name), *(lineage.sized(f"{name}/{z}") for z in lineage.family(name).sizes)):
        assert config.load(spec.Model, config.dump(s)) == s


@every_family
def test_what_can_be_written_for_transformers_reads_the_same(name: str) -> None:
    model_type, _ = lineage.model_type(name)
    if lineage.family(name).model_type is None:
        pytest.skip("has no config.json of its own")
    for s in (lineage.base(name), tiny(name), *(lineage.sized(f"{name}/{z}") for z in lineage.family(name).sizes)):
        written = make_config(s, name, None, "float32")  # reads it back itself
        assert written["model_type"] == model_type
        assert spec_of(written, "config.json")[0] == name


SCALINGS = (spec.Dynamic(4.0), spec.LongRope((1.0, 1.2, 1.4, 1.6), (2.0, 2.5, 3.0, 3.5), trained=8))


@pytest.mark.parametrize("scaling", SCALINGS, ids=["dynamic", "longrope"])
def test_lengths_of_neighbours_do_not_turn_each_other(scaling: spec.Scaling) -> None:
    """Angles that depend on the length of a sequence depend on no other's in the pack."""
    s = config.override(tiny("llama"), {"rope.scaling": scaling, "context": 8, "attention.heads": 4})
    m = initialise(build(s), 0)
    a, b = text(15, 1), text(6, 2)
    packed = logits(m, a, b)
    assert apart(packed[:15], logits(m, a)) < 1e-5
    assert apart(packed[15:], logits(m, b)) < 1e-5
    assert apart(logits(m, a)[:6], logits(m, a[:6])) > 1e-4  # the price: a longer text turns its beginning anew


UNSET = {"Dynamic.trained"}  # what `--rope dynamic:N` says of a model that came without


def test_every_field_is_set_by_some_family() -> None:
    """A field or a member of a union that no family sets is one too many."""
    specs = [lineage.base(n) for n in lineage.families()]
    specs += [lineage.sized(f"{n}/{z}") for n, f in lineage.families().items() for z in f.sizes]
    specs += [spec_of({"model_type": t} | c, name)[1] for name, (t, c) in CASES.items()]
    specs += [spec_of({"model_type": t} | TINY | c, name)[1] for name, (t, _, c) in (ENCODERS | PAIRS).items()]
    specs += [spec_of({"model_type": "llava", "text_config": {}} | c, name)[1] for name, c in SEEING.items()]
    used: set[str] = set()
    for s in specs:
        collect(s, used)
    wanted = set()
    for cls in nodes(spec.Model, set()):
        wanted |= {cls.__name__} | {f"{cls.__name__}.{f.name}" for f in dataclasses.fields(cls)}
    assert wanted - used == UNSET


def collect(node: Any, used: set[str]) -> None:
    if isinstance(node, tuple):
        for item in node:
            collect(item, used)
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        return
    kind = type(node).__name__
    used.add(kind)
    for f in dataclasses.fields(node):
        value = getattr(node, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if value != default:
            used.add(f"{kind}.{f.name}")
        collect(value, used)


def nodes(hint: Any, seen: set[type]) -> set[type]:
    """Return all dataclasses that a spec may hold."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and hint not in seen:
        seen.add(hint)
        for inner in config.hints(hint).values():
            nodes(inner, seen)
    for inner in typing.get_args(hint):
        nodes(inner, seen)
    return seen


def test_the_worked_example_is_the_real_one() -> None:
    """docs/adding-a-family.md shows what stands in the code, and its promise of about fifteen lines holds."""
    root = Path(__file__).resolve().parents[2]
    shown = (root / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
    example = shown.split("```python\n")[1].split("```")[0]
    code = (root / "src" / "terakoya" / "zoo" / "families" / "others.py").read_text(encoding="utf-8")
    assert textwrap.indent(example, "    ") in code
    assert len(example.splitlines()) <= 17
