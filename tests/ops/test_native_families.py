"""Every decoder family of the zoo, tiny and random: the native program against the PyTorch model."""

from __future__ import annotations

import pytest
import torch

from terakoya.engine.native import Native
from terakoya.model.context import Packed
from terakoya.ops import native
from terakoya.ops.compile import NoCompiler
from terakoya.ops.lower import NotLowered

pytestmark = pytest.mark.parity
pytest.importorskip("transformers", reason="needs terakoya[reference]")
try:
    native.isas()
except NoCompiler as error:
    pytest.skip(f"no native library here: {error}", allow_module_level=True)

from tests.zoo.reference import CASES, pair, prompt  # noqa: E402

# Rows of CASES whose parts have no instruction: these run in PyTorch, and say so.
REFUSED = {"rwkv", "mamba", "mamba-bias", "mamba2", "mamba2-bias", "jamba", "recurrentgemma"}
REFUSED |= {name for name in CASES if name.startswith("reformer")}


@pytest.mark.parametrize("name", CASES)
def test_family(name: str) -> None:
    _, ours, _ = pair(name)
    x = prompt(21)
    try:
        program = Native.lower(ours, "fp32", 1)
    except NotLowered:
        assert name in REFUSED
        return
    assert name not in REFUSED
    with torch.inference_mode():
        want = ours.model.head(ours.model(x, Packed([21])))
    slot = program.slot()
    first = program.step(x[:12].tolist(), [slot], [12], every=True)
    rest = [program.step([t], [slot], [1]) for t in x[12:].tolist()]
    got = torch.cat([first, *rest])
    if name in UNEQUAL:  # read in one piece: their tables depend on the length seen so far
        got = program.step(x.tolist(), [program.slot()], [21], every=True)
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()


UNEQUAL = {name for name in CASES if "dynamic" in name or "longrope" in name}
