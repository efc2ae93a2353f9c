"""A frozen base in four bits (QLoRA, Dettmers 2023: NF4) or eight, in the linear layers of the blocks."""

from __future__ import annotations

from typing import Literal

from terakoya.model.model import Model
from terakoya.quant import linear
from terakoya.quant.codecs import NF4, Int8
from terakoya.quant.linear import PackedLinear as NF4Linear
from terakoya.quant.linear import nbytes as held
from terakoya.quant.nf4 import codebook, pack, unpack

__all__ = ["Kind", "NF4Linear", "codebook", "held", "pack", "quantise", "unpack"]
Kind = Literal["nf4", "int8"]


def quantise(model: Model, kind: Kind = "nf4") -> None:
    """Pack every linear layer of the blocks; embeddings, norms and head stay as they are."""
    linear.quantise(model, NF4() if kind == "nf4" else Int8(0), table=None)
