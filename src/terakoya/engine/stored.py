"""Weights of a GGUF file as the blocks that stand in it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from terakoya.errors import TerakoyaError
from terakoya.model.build import parameters
from terakoya.ops.lower import GGUF_KINDS, Blocks
from terakoya.quant.blocks import BLOCKS, dequantise
from terakoya.zoo import lineage
from terakoya.zoo.convert import Loaded, split
from terakoya.zoo.gguf import GGUF, is_gguf
from terakoya.zoo.names import expand


def gguf_blocks(loaded: Loaded, path: Path) -> dict[str, Blocks]:
    """Return the parameters that stand in the file as blocks which the native library takes without loss.

    What has been trained since it was loaded is no longer what the file says, and is left out.
    """
    if not is_gguf(path):
        raise TerakoyaError(str(path), "is not a GGUF file")
    file = GGUF.open(path)
    own = parameters(loaded.model)
    out: dict[str, Blocks] = {}
    for match in expand(lineage.rules(loaded.family, "gguf"), list(own), str(path)):
        info = file.tensors.get(match.theirs)
        by_rows = match.layout.dim == 0 and not match.layout.transpose
        if info is None or info.kind.id not in GGUF_KINDS or len(info.shape) != 2 or not by_rows:
            continue
        rows = torch.from_numpy(file.raw(match.theirs).reshape(info.shape[0], -1).copy())
        parts = split(rows, [own[n].shape for n in match.ours], match.layout, loaded.spec)
        for name, part in zip(match.ours, parts, strict=True):
            blocks = Blocks(part.contiguous(), info.kind.id, info.shape[1])
            if _same(own[name], blocks):
                out[name] = blocks
    return out


def _same(own: Tensor, blocks: Blocks) -> bool:
    """Whether the first and the last row are still those of the file: training changes all."""
    ends = blocks.rows[[0, -1]].numpy()
    return torch.equal(torch.from_numpy(dequantise(ends, BLOCKS[blocks.kind])).to(own.dtype), own.detach()[[0, -1]])
