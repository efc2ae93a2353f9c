"""A model as a GGUF file that llama.cpp opens: LLaMA's structure, in the types and mixtures that it has names for.

Metadata: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; which tensor gets which type: `llama-quant.cpp`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from terakoya.config import select
from terakoya.errors import TerakoyaError, nearest
from terakoya.model import spec
from terakoya.model.build import parameters
from terakoya.quant.blocks import BF16, F16, F32, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, BlockType
from terakoya.quant.encode import quantise
from terakoya.quant.linear import unpacked
from terakoya.tokenizer.gguf_write import to_gguf
from terakoya.zoo import lineage
from terakoya.zoo.config_json import in_their_words
from terakoya.zoo.convert import Loaded, fuse
from terakoya.zoo.gguf_write import write_gguf
from terakoya.zoo.names import expand

FAMILY = "llama"  # the architecture that is written
Choose = Callable[[str, int, int], BlockType]  # (tensor, layer or -1, layers) -> its type
NARROW = {Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0}  # for rows that are not whole blocks of 256


def _plain(kind: BlockType) -> Choose:
    return lambda name, layer, layers: kind


def _narrow(kind: BlockType) -> Choose:
    """All in one type, but for what makes the scores: that is finer."""
    return lambda name, layer, layers: Q6_K if name == "output.weight" else kind


def _medium(name: str, layer: int, layers: int) -> BlockType:
    """Q4_K_M: values and the way down are finer in the first and last eighth and every third layer between."""
    if name == "output.weight":
        return Q6_K
    finer = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    return Q6_K if finer and name.endswith(("attn_v.weight", "ffn_down.weight")) else Q4_K


@dataclass(frozen=True)
class Mixture:
    """A name of llama.cpp's: its number in `general.file_type`, and the type of every matrix."""

    number: int
    choose: Choose


MIXTURES: Mapping[str, Mixture] = MappingProxyType({
    "f32": Mixture(0, _plain(F32)),
    "f16": Mixture(1, _plain(F16)),
    "bf16": Mixture(32, _plain(BF16)),
    "q8_0": Mixture(7, _plain(Q8_0)),
    "q5_0": Mixture(8, _narrow(Q5_0)),
    "q5_1": Mixture(9, _narrow(Q5_1)),
    "q4_0": Mixture(2, _narrow(Q4_0)),
    "q4_1": Mixture(3, _narrow(Q4_1)),
    "q4_k_m": Mixture(15, _medium),
    "q6_k": Mixture(18, _plain(Q6_K)),
})  # fmt: skip


def save_gguf(loaded: Loaded, path: Path, mixture: str = "f16") -> Counter[str]:
    """Write a model and its tokenizer; return how many tensors have which type.

    Rows that are no whole blocks get the nearest finer type that fits, as llama.cpp does. Raise TerakoyaError for
    structures and tokenizers that llama.cpp's `llama` architecture cannot say.
    """
    wanted = mixture.lower()
    if wanted not in MIXTURES:
        raise TerakoyaError("type", given=mixture, allowed=list(MIXTURES), hint=nearest(wanted, MIXTURES))
    if loaded.tokenizer is None:
        raise TerakoyaError("model", "has no tokenizer beside it, and a GGUF file holds one")
    s = loaded.spec
    facts = metadata(s, loaded.family) | {"general.file_type": MIXTURES[wanted].number}
    facts |= {"general.name": loaded.tokenizer.name} | to_gguf(loaded.tokenizer, s.vocab)
    weights = theirs(unpacked(loaded.model), s)
    out = {}
    for name, tensor in weights.items():
        kind = kind_of(name, tensor, s, MIXTURES[wanted].choose)
        data = quantise(tensor.detach().float().cpu().contiguous().numpy(), kind)
        out[name] = kind, data, tuple(tensor.shape)
    write_gguf(path, facts, out)
    return Counter(kind.name for kind, _, _ in out.values())


def theirs(model: torch.nn.Module, s: spec.Model) -> dict[str, Tensor]:
    """Return the weights under llama.cpp's names, in its order of rows."""
    own = parameters(model)
    plan = expand(lineage.rules(FAMILY, "gguf"), list(own), "GGUF")
    return {m.theirs: fuse([own[n].detach() for n in m.ours], m.layout, s) for m in plan}


def kind_of(name: str, tensor: Tensor, s: spec.Model, choose: Choose) -> BlockType:
    """Return the type a tensor is stored in: vectors as numbers, rows in blocks that they fill."""
    if tensor.dim() < 2:
        return F32
    parts = name.split(".")
    layer = int(parts[1]) if parts[0] == "blk" else -1
    scores = name == "output.weight" or (name == "token_embd.weight" and s.head.tied)
    kind = choose("output.weight" if scores else name, layer, s.depth)
    if tensor.shape[-1] % kind.elements:
        kind = NARROW.get(kind, F16)
    return kind if tensor.shape[-1] % kind.elements == 0 else F16


def metadata(s: spec.Model, family: str) -> dict[str, Any]:
    """Return what llama.cpp must know of a structure, if its `llama` architecture is that structure."""
    parts = select(s, "attention") and select(s, "mlp")  # without either there are no words of LLaMA's to look for
    if not parts or in_their_words(s, FAMILY) is None:
        raise TerakoyaError(
            f"family {family}",
            "is not built like LLaMA, and other structures are not written as GGUF yet",
            hint="a Hugging Face folder can be written: leave out --to gguf",
        )
    attention: spec.Attention = select(s, "attention")[0]
    rope = attention.position
    if not isinstance(rope, spec.Rope) or rope.scaling is not None:
        raise TerakoyaError(f"family {family}", "has scaled positions, which are not written as GGUF yet")
    if attention.bias or attention.out_bias or select(s, "mlp")[0].bias:
        raise TerakoyaError(f"family {family}", "has biases, which are not written as GGUF yet")
    width = spec.head_dim(s, attention)
    facts: dict[str, Any] = {
        "context_length": s.context,
        "embedding_length": s.dim,
        "block_count": s.depth,
        "feed_forward_length": select(s, "mlp")[0].hidden,
        "attention.head_count": attention.heads,
        "attention.head_count_kv": attention.kv_heads or attention.heads,
        "attention.key_length": width,
        "attention.value_length": width,
        "rope.dimension_count": width,
        "rope.freq_base": float(rope.theta),
        "attention.layer_norm_rms_epsilon": float(select(s, "rmsnorm")[0].eps),
        "vocab_size": s.vocab,
    }
    general = {"general.architecture": FAMILY, "general.quantization_version": 2}
    return general | {f"{FAMILY}.{key}": value for key, value in facts.items()}
