"""torch.compile is a choice of speed: the same losses, to rounding."""

from __future__ import annotations

import pytest
import torch

from terakoya.config import override
from terakoya.data.batch import Batch
from terakoya.model.build import build, initialise
from terakoya.train.objective import causal
from terakoya.train.optim import AdamW, Optimizer
from terakoya.train.step import step
from terakoya.zoo import lineage

TOLERANCE = 1e-5  # relative: fused kernels sum in another order, and three steps carry it on


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_steps_lose_the_same():
    small = {"dim": 32, "depth": 1, "attention.heads": 2, "attention.kv_heads": 1, "mlp.hidden": 64, "vocab": 64}
    spec = override(lineage.sized("llama2/nano"), small | {"context": 32})
    tokens = torch.randint(0, 64, (2 * 33,), generator=torch.Generator().manual_seed(0)).view(2, 33)
    cu, places = torch.tensor([0, 10, 32, 64], dtype=torch.int32), torch.arange(64)
    batch = Batch(tokens[:, :-1].reshape(-1), tokens[:, 1:].reshape(-1), torch.ones(64), cu, places)

    def losses(compiled: bool) -> list[float]:
        model = initialise(build(spec), 0)
        if compiled:
            for layer in model.layers:
                layer.compile(dynamic=True)
        optimizer = Optimizer(model, AdamW())
        return [step(model, [batch], causal, optimizer, factor=1.0).loss for _ in range(3)]

    assert losses(True) == pytest.approx(losses(False), rel=TOLERANCE)
