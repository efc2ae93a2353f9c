"""Every block type of GGUF files as the native program runs it: no second rounding, and the logits of PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from terakoya.config import override
from terakoya.engine.native import Native
from terakoya.engine.runner import lowered
from terakoya.model.build import Init, build, initialise
from terakoya.model.model import Model
from terakoya.ops.compile import NoCompiler, library
from terakoya.ops.lower import GGUF_KINDS
from terakoya.ops.lower import Blocks as Rows
from terakoya.ops.native import Format
from terakoya.quant.blocks import BLOCKS as TYPES
from terakoya.quant.codecs import Blocks
from terakoya.quant.linear import quantise
from terakoya.quant.native import program_parameters
from terakoya.zoo import lineage
from terakoya.zoo.convert import Loaded, load
from terakoya.zoo.gguf_model import save_gguf
from tests.quant.small import IDS, logits, small, tokenizer

try:
    library()
except NoCompiler as error:
    pytest.skip(f"no native library here: {error}", allow_module_level=True)


NEAR = 0.05  # of the logits: the inputs of layers are in eight bits (0.03 here); a wrong layout would be off by 1


def wide(depth: int = 2) -> Model:
    """A model whose every row is whole blocks of 256."""
    s = replace(lineage.rescale(lineage.base("smollm2"), 256, depth, 4), vocab=tokenizer().vocab_size, context=256)
    return initialise(build(override(s, {"mlp.hidden": 512})), 3, Init(std=0.1))


def by_program(loaded: Loaded) -> tuple[Tensor, Native]:
    native = lowered(loaded, threads=1)
    assert isinstance(native, Native), native
    return native.step(IDS.tolist(), [native.slot()], [len(IDS)], every=True), native


def distance(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("kind", GGUF_KINDS, ids=lambda kind: TYPES[kind].name)
def test_a_model_in_any_block_type_runs_as_it_is(kind: int) -> None:
    codec = Blocks(TYPES[kind].name)
    model = quantise(wide(), codec, table=codec)
    assert all(isinstance(p, Rows) or p.ndim == 1 for p in program_parameters(model).values())
    got, native = by_program(Loaded(model, tokenizer(), "smollm2"))
    assert native.weights == codec.type  # and nothing "as int8"
    assert distance(got, logits(model)) < NEAR
    assert native.program.weights.nbytes < 1.13 * stored(model) + (64 << 10)


def stored(model: Model) -> int:
    return sum(p.rows.numel() for p in program_parameters(model).values() if isinstance(p, Rows))


@pytest.mark.parametrize("mixture", ["q4_k_m", "q6_k", "q5_0", "q5_1"])
def test_mixtures_of_files_run_as_they_are(mixture: str, tmp_path: Path) -> None:
    save_gguf(Loaded(wide(8), tokenizer(), "smollm2"), tmp_path / "m.gguf", mixture)
    for packed in (True, False):
        loaded = load(tmp_path / "m.gguf", packed=packed)
        got, native = by_program(loaded)
        assert "int8" not in native.weights
        assert distance(got, logits(loaded.model)) < 2 * NEAR


@pytest.mark.parametrize(("mixture", "form"), [("f16", Format.F16), ("bf16", Format.B16)])
def test_files_of_sixteen_bits_are_exact(mixture: str, form: Format, tmp_path: Path) -> None:
    save_gguf(Loaded(small(dim=256), tokenizer(), "smollm2"), tmp_path / "m.gguf", mixture)
    loaded = load(tmp_path / "m.gguf")
    got, native = by_program(loaded)
    assert set(native.lowered.forms) == {form}
    assert native.weights == {"f16": "float16", "bf16": "bfloat16"}[mixture]
    assert native.words == native.weights  # inputs are not rounded
    assert torch.allclose(got, logits(loaded.model), rtol=1e-4, atol=1e-4)
