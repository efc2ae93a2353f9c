"""Whole models by the native program: the numbers of the PyTorch model, whatever the threads, rows and machine."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from terakoya.engine.native import Native, NativeModel
from terakoya.engine.runner import fastest
from terakoya.model import spec
from terakoya.model.build import parameters
from terakoya.model.context import Memory, Packed
from terakoya.model.model import Model
from terakoya.ops import native
from terakoya.ops.compile import NoCompiler
from terakoya.ops.lower import NotLowered, Weights
from terakoya.ops.rounded import dequantised
from terakoya.zoo.convert import Loaded
from tests.model.small import MLP, NORM, SPECS, attention, made, model_of, some_tokens, usual

try:
    MACHINES = native.isas()
except NoCompiler as error:
    pytest.skip(f"no native library here: {error}", allow_module_level=True)

GATED = spec.MLP(16, "silu", gated=True)
EXPERTS = spec.MoE(GATED, 4, 2)
MORE: dict[str, spec.Model] = {
    "rope interleaved": usual(position=spec.Rope(interleaved=True, fraction=0.5)),
    "rope reversed": usual(position=spec.Rope(reverse=True)),
    "rope dynamic": usual(position=spec.Rope(scaling=spec.Dynamic(2.0))),
    "rope yarn": usual(position=spec.Rope(scaling=spec.Yarn(4.0, 16))),
    "rope long": usual(position=spec.Rope(scaling=spec.LongRope((1.0,) * 4, (2.0,) * 4, 16))),
    "alibi scaled": usual(position=spec.Alibi(before_scale=True)),
    "alibi rounded": usual(position=spec.Alibi(before_scale=True, rounded=True)),
    "no position": usual(position=None),
    "clip": usual(clip=0.5, bias=True, out_bias=True),
    "layer scale": usual(scale_by_layer=True, scale=0.3),
    "norm of heads": usual(qk_norm=spec.QKNorm(spec.RMSNorm(offset=1.0), over="heads")),
    "norm of width": usual(qk_norm=spec.QKNorm(spec.LayerNorm(), over="width"), kv_heads=2),
    "norm after rope": usual(qk_norm=spec.QKNorm(NORM, after_rope=True)),
    "sinusoid": replace(usual(position=None), embed=spec.Embed(position=spec.Sinusoid(), scale="sqrt_dim")),
    "embed norm": replace(usual(), embed=spec.Embed(norm=spec.LayerNorm(), scale=3.0)),
    "factor": replace(usual(), embed=spec.Embed(factor=20, position=spec.Learned()), norm=None),
    "head": replace(usual(), head=spec.Head(tied=False, scale=0.5, softcap=3.0)),
    "no affine": model_of(spec.pre(spec.LayerNorm(affine=False), attention(), MLP), norm=spec.RMSNorm(affine=False)),
    "each": model_of(spec.Block((spec.Branch((attention(), MLP), pre=spec.LayerNorm(offset=1.0), each=True),))),
    "no norm": model_of(spec.Block((spec.Branch((attention(), MLP)), spec.Branch((MLP,), scale=0.3)))),
    "normed skip": model_of(spec.Block((spec.Branch((attention(),), pre=NORM, normed_skip=True, scale=0.5),))),
    "latent direct": model_of(spec.pre(NORM, spec.Latent(4, 16, 8, 4, 24), MLP)),
    **{
        f"act {act}": model_of(spec.pre(NORM, attention(), spec.MLP(24, act, bias=True)))
        for act in ("gelu", "gelu_tanh", "relu", "relu2", "quick_gelu")
    },
    "act clamped": model_of(spec.pre(NORM, attention(), spec.MLP(24, "swiglu_clamped", gated=True, bias=True))),
    "experts plain": model_of(spec.pre(NORM, attention(), spec.MoE(spec.MLP(16, "relu", bias=True), 5, 3))),
    "experts sigmoid": model_of(
        spec.pre(NORM, attention(), replace(EXPERTS, score="sigmoid", choice_bias=True, scale=2.5, router_bias=True))
    ),
    "experts chosen": model_of(
        spec.pre(
            NORM, attention(), replace(EXPERTS, score="softmax_topk", normalize=False, shared=MLP, shared_gate=True)
        )
    ),
    "experts grouped": model_of(
        spec.pre(NORM, attention(), spec.MoE(GATED, 8, 3, groups=spec.Groups(4, 2, "top2"), score="sigmoid"))
    ),
    "experts by best": model_of(spec.pre(NORM, attention(), spec.MoE(GATED, 8, 2, groups=spec.Groups(4, 2)))),
    "experts by input": model_of(
        spec.pre(NORM, attention(), spec.MoE(GATED, 4, 1, "sigmoid", normalize=False, scale_input=True, shared=MLP))
    ),
}  # fmt: skip
ALL = SPECS | MORE
LOWERED = {name: s for name, s in ALL.items() if name != "relative"}


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(native.ISA, raising=False)


def reference(model: Model, *sequences: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.head(model(torch.cat(sequences), Packed([len(s) for s in sequences])))


def lowered(s: spec.Model, weights: Weights = "fp32", threads: int = 2) -> tuple[Native, Model]:
    """The program, and the PyTorch model with the weights that it stands for."""
    model = made(s)
    program = Native.lower((s, parameters(model)), weights, threads)
    exact = made(s)
    exact.load_state_dict(dequantised(s, parameters(model), weights), strict=False)
    return program, exact


def far(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def divergence(want: Tensor, got: Tensor) -> float:
    p, q = want.log_softmax(-1), got.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).median())  # one token that goes to another expert is no fault


@pytest.mark.parametrize("name", LOWERED)
def test_fp32_gives_the_models_logits(name: str) -> None:
    program, model = lowered(LOWERED[name])
    x = some_tokens(30)
    assert far(program.step(x.tolist(), [program.slot()], [30], every=True), reference(model, x)) < 1e-4


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("name", LOWERED)
def test_quantised_stays_near_the_model_of_the_same_weights(name: str, weights: Weights) -> None:
    """What is left is the rounding of activations to 8 bits; a wrong layout would be off by whole units."""
    program, model = lowered(LOWERED[name], weights)
    x = some_tokens(30)
    got = program.step(x.tolist(), [program.slot()], [30], every=True)
    assert divergence(reference(model, x), got) < 0.01


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("name", ["grouped", "mixed reach", "latent", "experts chosen", "sinks", "alibi", "buckets"])
def test_bits_do_not_depend_on_threads_cuts_or_neighbours(name: str, weights: Weights) -> None:
    s = LOWERED[name]
    one, _ = lowered(s, weights, threads=1)
    two, _ = lowered(s, weights, threads=3)
    a, b, c = some_tokens(40, 1), some_tokens(17, 2), some_tokens(1, 3)
    alone = [one.step(x.tolist(), [one.slot()], [len(x)], every=True) for x in (a, b, c)]
    together = two.step(torch.cat((a, b, c)).tolist(), [two.slot() for _ in range(3)], [40, 17, 1], every=True)
    assert torch.equal(together, torch.cat(alone))
    slot = two.slot()
    cut = [two.step(part.tolist(), [slot], [len(part)], every=True) for part in a.split([5, 1, 1, 20, 1, 12])]
    assert torch.equal(torch.cat(cut), alone[0])


def test_bits_do_not_depend_on_cuts_past_many_spans() -> None:
    """Positions far beyond one span of attention (128), decoded one by one and read at once."""
    s = replace(usual(kv_heads=2, reach=spec.Window(300)), context=1024)
    one, model = lowered(s, threads=1)
    two, _ = lowered(s, threads=2)
    x = some_tokens(450)
    whole = one.step(x.tolist(), [one.slot()], [450], every=True)
    slot = two.slot()
    first = two.step(x[:380].tolist(), [slot], [380], every=True)
    rest = [two.step([t], [slot], [1]) for t in x[380:].tolist()]
    assert torch.equal(torch.cat([first, *rest]), whole)
    assert far(whole, reference(model, x)) < 1e-4


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_machines_agree(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    x, results = some_tokens(33), {}
    for machine in MACHINES:
        monkeypatch.setenv(native.ISA, machine)
        program, _ = lowered(LOWERED["experts chosen"], weights)
        assert program.program.isa == machine
        results[machine] = program.step(x.tolist(), [program.slot()], [33], every=True)
    # A sum in another order may move an activation over a rounding edge of its 8 bits.
    bound = 1e-5 if weights == "fp32" else 0.03
    assert all(far(y, results["portable"]) < bound for y in results.values())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=12))
def test_any_order_of_feeding_is_one_reading(feeds: list[tuple[int, int]]) -> None:
    program, _ = PROGRAM
    texts = [some_tokens(60, n) for n in range(4)]
    slots, got = [program.slot() for _ in texts], [[] for _ in texts]
    for start in range(0, len(feeds), 2):
        some = dict(feeds[start : start + 2])
        parts = {n: texts[n][slots[n].length : slots[n].length + count] for n, count in some.items()}
        parts = {n: p for n, p in parts.items() if len(p)}
        if not parts:
            continue
        out = program.step(
            torch.cat(list(parts.values())).tolist(), [slots[n] for n in parts], [len(p) for p in parts.values()],
            every=True,
        )  # fmt: skip
        for n, piece in zip(parts, out.split([len(p) for p in parts.values()]), strict=True):
            got[n].append(piece)
    for n, slot in enumerate(slots):
        if slot.length:
            want = program.step(texts[n][: slot.length].tolist(), [program.slot()], [slot.length], every=True)
            assert torch.equal(torch.cat(got[n]), want)


PROGRAM = lowered(LOWERED["grouped"], "int4")


def test_memory_of_nan_is_never_read() -> None:
    program, _ = lowered(LOWERED["window"])
    clean, dirty = program.slot(), program.slot()
    for slot, value in ((clean, 0.0), (dirty, float("nan"))):
        slot.reserve(64)
        for held in slot.data:
            held.fill(value)
    x = some_tokens(40).tolist()
    want, got = ([program.step(x[:7], [s], [7]), *(program.step([t], [s], [1]) for t in x[7:])] for s in (clean, dirty))
    assert torch.equal(torch.cat(want), torch.cat(got))


def test_stands_in_for_a_model() -> None:
    """Same calls, memory that goes back, several sequences of unequal length."""
    program, model = lowered(LOWERED["grouped"])
    ours, x, y = NativeModel(program), some_tokens(20, 1), some_tokens(9, 2)
    memory, theirs = Memory(2), Memory(2)
    with torch.inference_mode():
        for m, it in ((model, theirs), (ours, memory)):
            ctx = it.step([20, 9])
            first = m.head(m(torch.cat((x, y)), ctx))  # type: ignore[operator]
            ctx.close()
            it.truncate(12)
            ctx = it.step([1, 1])
            second = m.head(m(torch.tensor([3, 4]), ctx))  # type: ignore[operator]
            ctx.close()
            if m is model:
                want = torch.cat((first, second))
    assert far(torch.cat((first, second)), want) < 1e-4
    assert memory.lengths == theirs.lengths


def test_what_cannot_be_lowered_is_named() -> None:
    model = made(SPECS["relative"])
    with pytest.raises(NotLowered, match="Transformer-XL"):
        Native.lower((SPECS["relative"], parameters(model)))


def test_the_log_says_why_pytorch_runs_a_model(caplog: pytest.LogCaptureFixture) -> None:
    model = made(SPECS["relative"])
    with caplog.at_level("WARNING"):
        assert fastest(Loaded(model, None, "relative")) is model
    assert "Transformer-XL" in caplog.text


def test_foreign_tokens_and_positions_are_refused() -> None:
    from terakoya.errors import TerakoyaError

    program, _ = lowered(LOWERED["learned"])
    with pytest.raises(TerakoyaError, match="no ids"):
        program.step([61], [program.slot()], [1])
    with pytest.raises(TerakoyaError, match="past"):
        program.step([0] * 65, [program.slot()], [65])


def test_unknown_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from terakoya.errors import TerakoyaError

    monkeypatch.setenv(native.ISA, "avx9000")
    with pytest.raises(TerakoyaError, match="portable"):
        lowered(LOWERED["rope"])


def test_without_a_compiler_the_reason_is_said(tmp_path) -> None:
    code = "from terakoya.ops.compile import library, NoCompiler\ntry: library()\nexcept NoCompiler as e: print(e)"
    env = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "c"), "HOME": str(tmp_path)}
    env |= {k: v for k, v in os.environ.items() if k in ("PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert "needs a C compiler" in done.stdout, done.stderr
