"""Adapters under FSDP2 and tensor parallelism: two processes that share out weights find the gradients of one."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.multiprocessing.spawn import spawn

from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.tune import adapters
from terakoya.tune.plans import IA3, AdaLora, Added, Dora, Lora
from tests.tune.tune_fakes import loud, small

RANKS = 2
PLANS: dict[str, Added] = {
    "lora": Lora(4, 8.0),
    "pissa": Lora(4, 8.0, init="pissa"),
    "dora": Dora(4, 8.0),
    "adalora": AdaLora(),
    "ia3": IA3(),
}
COLUMNS, ROWS = ("attn.q", "attn.k", "attn.v", "mlp.gate", "mlp.up"), ("attn.o", "mlp.down")


def made(plan: Added) -> Model:
    model = small()
    adapters.add(model, plan)
    loud(model)
    return model


def learn(model: nn.Module) -> float:
    """Go forward and back over the same two documents; return the loss."""
    tokens = torch.arange(24) % 50
    x = model(tokens, Packed([10, 14]))
    loss = (x * torch.linspace(-1, 1, x.shape[1])).mean()  # the mean of squares would be 1, whatever the weights
    loss.backward()
    return loss.item()


def fsdp(plan: Added, mesh: DeviceMesh) -> nn.Module:
    model = made(plan)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(plan: Added, mesh: DeviceMesh) -> nn.Module:
    """Cut the base by torch's own plan (Megatron's columns and rows), then add the adapter as on any model."""
    model = small()
    styles = {n: ColwiseParallel() for n in COLUMNS} | {n: RowwiseParallel() for n in ROWS}
    for layer in model.layers:
        parallelize_module(layer, mesh, styles)
    adapters.add(model, plan)
    moved = adapters.trained(made(plan))
    with torch.no_grad():
        for name, p in adapters.trained(model).items():
            assert isinstance(p, DTensor)
            p.copy_(distribute_tensor(moved[name].detach(), mesh, p.placements))
    return model


WAYS = {"fsdp": fsdp, "tp": tensor_parallel}


def child(rank: int, way: str, folder: str) -> None:
    torch.set_num_threads(1)
    where, wait = f"file://{folder}/store", timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=RANKS, timeout=wait)
    mesh = init_device_mesh("cpu", (RANKS,))
    for name, plan in PLANS.items():
        model = WAYS[way](plan, mesh)
        loss = learn(model)
        grads = {n: p.grad.full_tensor() for n, p in model.named_parameters() if isinstance(p.grad, DTensor)}
        if rank == 0:
            save_file({"loss": torch.tensor(loss)} | grads, f"{folder}/{name}.safetensors")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # at once: threads of torch's own may still be there when an interpreter takes itself apart


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_find_the_gradients_of_one(way: str, tmp_path: Path) -> None:
    spawn(child, (way, str(tmp_path)), nprocs=RANKS)
    for name, plan in PLANS.items():
        found: dict[str, Tensor] = load_file(tmp_path / f"{name}.safetensors")
        model = made(plan)
        assert found.pop("loss").item() == pytest.approx(learn(model), rel=1e-5), name
        want = {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
        assert want.keys() == found.keys(), name
        assert len(want) > 4
        for parameter, grad in want.items():
            assert grad.abs().max() > 1e-5, (name, parameter)  # or the comparison would say nothing
            torch.testing.assert_close(found[parameter], grad, rtol=1e-4, atol=1e-6, msg=lambda m: f"{name}: {m}")  # noqa: B023
