"""A frozen base in four bits (QLoRA, Dettmers 2023): NF4 in the linear layers of the blocks."""

from __future__ import annotations

from terakoya.model.model import Model
from terakoya.quant import linear
from terakoya.quant.codecs import NF4
from terakoya.quant.linear import PackedLinear as NF4Linear
from terakoya.quant.linear import nbytes as held
from terakoya.quant.nf4 import codebook, pack, unpack

__all__ = ["NF4Linear", "codebook", "held", "pack", "quantise", "unpack"]


def quantise(model: Model) -> None:
    """Turn every linear layer of the blocks into NF4; embeddings, norms and head stay as they are."""
    linear.quantise(model, NF4(), table=None)
