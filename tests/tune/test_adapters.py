"""Adapters: nothing at the start, several on one base, merged away without a trace."""

from __future__ import annotations

import pytest
import torch

from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.train.optim import AdamW, Optimizer
from terakoya.tune import adapters
from terakoya.tune.merge import divergence, merged
from terakoya.tune.pack import laid
from terakoya.tune.parts import LowRank
from terakoya.tune.plans import IA3, Adapter, Added, Bias, Dora, Lora, Top
from terakoya.tune.samples import Sample
from tests.tune.tune_fakes import loud, small

ADDED = [
    Lora(4, 8.0), Lora(4, 8.0, targets=("q", "v"), stabilised=True), Lora(3, 6.0, init="pissa"), Dora(4, 8.0), IA3(),
]  # fmt: skip
TOKENS = torch.arange(24) % 50


def hidden(model: Model, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return model(tokens, Packed([10, 14]))


@pytest.mark.parametrize("plan", ADDED, ids=repr)
def test_an_adapter_starts_as_nothing_and_keeps_the_names(plan: Added) -> None:
    model = small()
    before, names = hidden(model).detach(), set(model.state_dict())
    adapters.add(model, plan)
    assert names <= set(model.state_dict())
    torch.testing.assert_close(hidden(model), before, atol=2e-6, rtol=0)
    if type(plan) is Lora and plan.init == "zero":
        assert torch.equal(hidden(model), before)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n in model.state_dict() if ".adapters." in n and not n.endswith(("a0", "b0"))
    }


@pytest.mark.parametrize("plan", ADDED, ids=repr)
def test_merging_says_the_same_and_leaves_no_trace(plan: Added) -> None:
    model = small()
    plain, names = hidden(model).detach(), list(model.state_dict())
    adapters.add(model, plan)
    loud(model)
    after = hidden(model).detach()
    assert (after - plain).abs().max() > 1e-3
    copy = merged(model)
    torch.testing.assert_close(hidden(copy), after, atol=5e-6, rtol=1e-5)
    batch = laid([Sample("x", tuple(range(20)), (0.0,) * 9 + (1.0,) * 11)])
    assert divergence(model, copy, batch) < 1e-9 < divergence(model, small(), batch)
    adapters.merge(model)
    torch.testing.assert_close(hidden(model), after, atol=5e-6, rtol=1e-5)
    assert list(model.state_dict()) == names
    assert not adapters.adapted(model)


def test_several_adapters_share_a_base() -> None:
    model = small()
    base = hidden(model).detach()
    out = {}
    for i, (name, plan) in enumerate([("ja", Lora(2, 4.0)), ("en", Dora(2, 4.0)), ("code", IA3())]):
        adapters.add(model, plan, name)
        for part in adapters.parts(model, name).values():
            loud(part, i)  # type: ignore[arg-type]
        with adapters.only(model, name):
            out[name] = hidden(model).detach()
    for name, seen in out.items():
        with adapters.only(model, name):
            assert torch.equal(hidden(model), seen)
            with adapters.only(model):
                assert torch.equal(hidden(model), base)
            assert torch.equal(hidden(model), seen)
    with adapters.only(model, "ja", "code"):
        both = hidden(model).detach()
        torch.testing.assert_close(hidden(merged(model)), both, atol=5e-6, rtol=1e-5)
    assert not torch.equal(both, out["ja"])
    with pytest.raises(TerakoyaError, match="did you mean 'code'"), adapters.only(model, "cod"):
        pass
    for name in out:
        adapters.remove(model, name)
    assert torch.equal(hidden(model), base)
    assert type(model.layers[0].attn.q) is torch.nn.Linear  # type: ignore[union-attr]


@pytest.mark.parametrize("plan", [*ADDED, Top(1), None], ids=repr)
def test_only_what_should_learn_learns(plan: Adapter | None) -> None:
    model = small()
    adapters.prepare(model, plan)
    learns = adapters.trained(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = Optimizer(model, AdamW(lr=1e-2, weight_decay=0.1), adapters.gains(model))
    for _ in range(2):
        optimizer.zero()
        model.head(hidden(model)).square().mean().backward()
        assert all(p.grad is not None for p in learns.values())
        optimizer.step(1.0)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(learns)


def test_a_model_without_biases_has_none_to_train() -> None:
    with pytest.raises(TerakoyaError, match="no biases"):
        adapters.prepare(small(), Bias())
    model = small(family="gpt2")
    adapters.prepare(model, Bias())
    assert all(n.endswith("bias") for n in adapters.trained(model))


def test_the_rate_of_b_is_its_own() -> None:
    model = small()
    adapters.add(model, Lora(2, 4.0, ratio=16.0))
    optimizer = Optimizer(model, AdamW(lr=1e-3, weight_decay=0.0), adapters.gains(model))
    assert sorted(optimizer.peaks) == [1e-3, 16e-3]
    groups = optimizer.adam.param_groups  # type: ignore[union-attr]
    fast = next(g for g in groups if g["lr"] == 16e-3)["params"]
    assert {optimizer.names[p].rpartition(".")[2] for p in fast} == {"b"}


def test_experts_are_counted_and_passed_over() -> None:
    model = small(family="mixtral")
    held = sum(p.numel() for n, p in model.named_parameters() if ".mlp." in n and "router" not in n)
    assert adapters.passed_over(model) == held > 0
    adapters.add(model, Lora(4, 8.0))
    assert {n.split(".")[2] for n in adapters.trained(model)} >= {"attn"}
    assert not any(n.endswith((".up", ".down", ".gate")) for n in adapters.adapted(model))
    assert adapters.passed_over(small()) == 0


def test_wrong_targets_are_named() -> None:
    with pytest.raises(TerakoyaError, match="did you mean 'gate'"):
        adapters.add(small(), Lora(targets=("gat",)))
    with pytest.raises(TerakoyaError, match=r"adapter\.inputs: 'dwn' .*did you mean 'down'"):
        adapters.add(small(), IA3(inputs=("dwn",)))
    with pytest.raises(TerakoyaError, match="names no layer"):
        adapters.add(small(), IA3((), ()))
    with pytest.raises(TerakoyaError, match=r"adapter\.rank: 33 .*at most 32"):
        adapters.add(small(), Lora(33, init="pissa"))
    model = small()
    adapters.add(model, Lora(2))
    with pytest.raises(TerakoyaError, match="taken"):
        adapters.add(model, Lora(2))


def test_pissa_begins_at_the_top_singular_parts() -> None:
    model = small()
    weight = model.layers[0].attn.q.weight.detach().clone()  # type: ignore[union-attr]
    adapters.add(model, Lora(4, 8.0, init="pissa"))
    part = adapters.parts(model)["layers.0.attn.q"]
    assert isinstance(part, LowRank)
    s = torch.linalg.svdvals(weight)
    rest = weight - part.scale * part.b @ part.a
    torch.testing.assert_close(torch.linalg.svdvals(rest)[: len(s) - 4], s[4:], atol=1e-5, rtol=1e-4)
