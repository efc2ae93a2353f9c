"""From spec to module: starting values by name, roles, counts, nothing allocated on the meta device."""

from __future__ import annotations

import math
import resource
from dataclasses import replace

import pytest
import torch

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.build import Init, build, count, generator, initialise, parameters, roles
from terakoya.model.model import Model
from terakoya.zoo import lineage
from tests.model.small import SPECS, usual

every = pytest.mark.parametrize("name", SPECS)
WIDE = replace(lineage.sized("llama2/nano"), vocab=512, context=64)


def start(s: spec.Model, seed: int = 0, init: Init | None = None) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in initialise(build(s), seed, init or Init()).named_parameters()}


def test_values_depend_on_seed_and_name_alone() -> None:
    shallow, deep = start(replace(WIDE, depth=2)), start(replace(WIDE, depth=5))
    shared = [n for n in shallow if not n.endswith(("attn.o.weight", "mlp.down.weight"))]
    assert len(shared) > 12
    assert all(torch.equal(shallow[n], deep[n]) for n in shared)
    plain = Init(out="plain")
    assert all(torch.equal(p, start(replace(WIDE, depth=5), 0, plain)[n]) for n, p in start(WIDE, 0, plain).items())
    other = start(WIDE, seed=1)
    drawn = [n for n, kind in roles(build(WIDE)).items() if kind in ("embed", "head", "matrix", "out")]
    assert not any(torch.equal(other[n], p) for n, p in start(WIDE).items() if n in drawn)
    values = [tuple(start(WIDE)[n].flatten()[:8].tolist()) for n in drawn]
    assert len(set(values)) == len(drawn), "two parameters share their random numbers"


def test_values_do_not_depend_on_order_or_on_the_global_generator() -> None:
    expected = start(WIDE)
    model = build(WIDE)
    for module in model.modules():  # register in the opposite order
        for table in (module._parameters, module._modules):
            items = list(table.items())[::-1]
            table.clear()
            table.update(items)  # type: ignore[arg-type]
    torch.manual_seed(99)
    before = torch.get_rng_state()
    found = dict(initialise(model, 0).named_parameters())
    assert torch.equal(before, torch.get_rng_state())
    assert {*found} - {"head.weight", "embed.token.weight"} == {*expected} - {"head.weight", "embed.token.weight"}
    assert all(torch.equal(found[n], p) for n, p in expected.items() if n in found)


def test_the_generator_is_as_written_down() -> None:
    """A change of these numbers changes every run that was ever started."""
    draw = torch.randint(2**31, (2,), generator=generator(0, "layers.0.attn.q.weight"))
    assert draw.tolist() == [465181880, 1186933717]
    assert generator(1, "a").initial_seed() != generator(0, "a").initial_seed()


@pytest.mark.parametrize("out", ["depth", "zero", "plain"])
def test_spread_by_role(out: str) -> None:
    init = Init(std=0.03, embed_std=0.5, out=out)  # type: ignore[arg-type]
    s = replace(WIDE, depth=3, head=spec.Head(tied=False))
    kinds, values = roles(build(s)), start(s, 0, init)
    expected = {
        "embed": 0.5,
        "head": 0.03,
        "matrix": 0.03,
        "out": {"depth": 0.03 / math.sqrt(6), "zero": 0.0, "plain": 0.03}[out],
    }
    for name, p in values.items():
        if kinds[name] == "norm":
            assert (p == 1).all()
            continue
        std = expected[kinds[name]]
        slack = 5 / math.sqrt(2 * p.numel())  # five standard errors
        assert p.std().item() == pytest.approx(std, rel=slack), name
        assert abs(p.mean().item()) <= 5 * std / math.sqrt(p.numel()), name


@every
def test_every_parameter_is_set_and_has_a_role(name: str) -> None:
    model = build(SPECS[name])
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float("nan"))
    initialise(model, 0)
    kinds = roles(model)
    assert {*kinds} == {*parameters(model)}
    assert all(p.isfinite().all() for p in model.parameters())
    for n, p in model.named_parameters():
        owner = n.rpartition(".")[0]
        expected = {
            "embed": n.startswith(("embed.token.", "embed.position.")),
            "head": n == "head.weight",
            "norm": any(part in n for part in ("norm", "_pre.", "_post.", "_out.")),
            "out": owner.endswith((".o", ".down")) and n.endswith("weight"),
            "bias": n.endswith("bias") and "norm" not in n and "_pre." not in n,
            "router": n.endswith("router.weight"),
            "scalar": n.endswith((".sinks", ".u", ".w", "position.weight")) and not n.startswith("embed."),
        }
        said = next((kind for kind, yes in expected.items() if yes), "matrix")
        assert kinds[n] == said, n
        assert kinds[n] not in ("matrix", "out") or p.dim() in (2, 3), n


@every
def test_count_is_the_number_of_parameters(name: str) -> None:
    s = replace(SPECS[name], depth=5)
    assert count(s) == sum(p.numel() for p in build(s).parameters())


def test_published_sizes_count_right_without_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert count(lineage.sized("llama2/70b")) == 68_976_648_192
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_meta_allocates_nothing() -> None:
    model = build(replace(lineage.sized("llama2/70b"), depth=3), device="meta")
    assert all(p.is_meta for p in model.parameters())
    assert not list(model.buffers())


def test_tied_head_is_one_tensor_on_every_way() -> None:
    tied, untied = lineage.sized("smollm2/nano"), lineage.sized("llama2/nano")
    for make in (
        build,
        lambda s: build(s, device="meta"),
        lambda s: initialise(build(s), 0),
        lambda s: build(s).half(),
    ):
        model: Model = make(tied)
        assert model.head.weight is model.embed.token.weight
        assert "head.weight" not in parameters(model)
        assert make(untied).head.weight is not make(untied).embed.token.weight


def test_dtype_and_state_names_are_stable() -> None:
    model = build(usual(), dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    layer = {n.removeprefix("layers.0.") for n in parameters(model) if n.startswith("layers.0.")}
    assert layer == {
        *(f"attn.{x}.weight" for x in "qkvo"),
        *(f"mlp.{x}.weight" for x in ("gate", "up", "down")),
        "attn_pre.weight",
        "mlp_pre.weight",
    }


def test_numbers_that_do_not_fit_are_one_line() -> None:
    with pytest.raises(TerakoyaError, match=r"attention\.heads: 5 .*divisors of dim=32.*nearest: 4"):
        build(usual(heads=5))
    with pytest.raises(TerakoyaError, match=r"model\.depth: 0"):
        replace(usual(), depth=0)
