"""Prefix tuning, prompt tuning and P-tuning in peft's format: one tensor, `prompt_embeddings`, one row a position.

What an encoder makes is written, not the encoder: peft keeps no more either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.tune.ahead import Past, Vectors, Virtual, virtual
from terakoya.tune.plans import Prefix, Prompt, PTuning

TENSOR = "prompt_embeddings"
KINDS = {"PREFIX_TUNING": Prefix, "PROMPT_TUNING": Prompt, "P_TUNING": PTuning}


def export(model: Model, part: Virtual) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what adapter_config.json says beside the base, and the tensor."""
    plan, kv = part.plan, isinstance(part, Past)
    flat = part.flat() if isinstance(part, Past) else part.vectors()
    assert flat is not None
    layers, heads, width = part.shape if isinstance(part, Past) else (model.spec.depth, 1, model.spec.dim)
    shared: dict[str, Any] = {
        "peft_type": next(k for k, cls in KINDS.items() if isinstance(plan, cls)),
        "num_virtual_tokens": part.count, "token_dim": heads * width, "num_transformer_submodules": 1,
        "num_attention_heads": heads, "num_layers": layers, "modules_to_save": None,
    }  # fmt: skip
    match plan:
        case Prefix():
            assert kv
            shared |= {"prefix_projection": bool(plan.hidden), "encoder_hidden_size": plan.hidden or None}
        case Prompt():
            shared |= {"prompt_tuning_init": "RANDOM"}
        case PTuning():
            kind = {"encoder_reparameterization_type": plan.encoder.upper(), "encoder_hidden_size": plan.hidden}
            shared |= kind | {"encoder_num_layers": 2, "encoder_dropout": 0.0}
    return shared, {TENSOR: flat}


def read(model: Model, config: Mapping[str, Any], weights: Mapping[str, Tensor], place: str, where: str) -> Virtual:
    """Make what a saved adapter puts before texts; `place` is its config file, `where` that of its tensors."""
    for key, fine in (("num_transformer_submodules", (1, None)), ("modules_to_save", (None,))):
        if config.get(key) not in fine:
            raise TerakoyaError(f"{place}: {key}", given=config[key], allowed=[str(v) for v in fine])
    if weights.keys() != {TENSOR}:
        raise TerakoyaError(where, "has other tensors than one of virtual tokens", given=", ".join(sorted(weights)[:4]))
    rows = weights[TENSOR]
    if rows.dim() != 2 or len(rows) != config.get("num_virtual_tokens"):
        said = f"has the shape {tuple(rows.shape)} where the config says num_virtual_tokens"
        raise TerakoyaError(f"{where}: {TENSOR}", said, given=config.get("num_virtual_tokens"))
    kind = KINDS[config["peft_type"]]
    if kind is Prefix:
        whole = virtual(model, Prefix(len(rows), init="random"), 0)
    else:
        whole = Vectors(Prompt(len(rows)), virtual(model, Prompt(len(rows)), 0).prompt.detach())
    assert isinstance(whole, Past | Vectors)
    if whole.prompt.shape != rows.shape:
        given, allowed = tuple(rows.shape), tuple(whole.prompt.shape)
        raise TerakoyaError(f"{where}: {TENSOR}", "has the wrong shape", given=given, allowed=allowed)
    with torch.no_grad():
        whole.prompt.copy_(rows)
    return whole
