"""Adapters under FSDP2: two processes that share out every weight find the gradients of one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.tune import adapters
from terakoya.tune.plans import Added, Dora, Lora
from tests.tune.tune_fakes import loud, small

RANKS = 2
PLANS = {"lora": Lora(4, 8.0), "dora": Dora(4, 8.0)}


def made(plan: Added) -> Model:
    model = small()
    adapters.add(model, plan)
    loud(model)
    return model


def learn(model: nn.Module) -> float:
    """Go forward and back over the same two documents; return the loss."""
    tokens = torch.arange(24) % 50
    loss = model(tokens, Packed([10, 14])).square().mean()
    loss.backward()
    return loss.item()


def child(rank: int, plan: str, folder: str) -> None:
    torch.set_num_threads(1)
    where, wait = f"file://{folder}/store", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=RANKS, timeout=wait)
    model, mesh = made(PLANS[plan]), init_device_mesh("cpu", (RANKS,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    loss = learn(model)
    grads = {n: p.grad.full_tensor() for n, p in model.named_parameters() if isinstance(p.grad, DTensor)}
    if rank == 0:
        save_file({"loss": torch.tensor(loss)} | grads, f"{folder}/found.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow  # processes that wait for each other are slow where others want the cores
@pytest.mark.parametrize("plan", PLANS)
def test_shared_out_over_two_processes_the_gradients_are_the_same(plan: str, tmp_path: Path) -> None:
    spawn(child, (plan, str(tmp_path)), nprocs=RANKS)
    found: dict[str, Tensor] = load_file(tmp_path / "found.safetensors")
    model = made(PLANS[plan])
    assert found.pop("loss").item() == pytest.approx(learn(model), rel=1e-6)
    want = {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    assert want.keys() == found.keys()
    assert len(want) > 4
    for name, grad in want.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-7)
