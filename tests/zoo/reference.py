"""Tiny random models of transformers, one row per structure to prove, and the same weights in ours."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch

from terakoya.zoo.convert import Loaded, load

TINY = {"vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
GPT = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
LLAMA = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
MHA = {"num_key_value_heads": 4}

# name: (model_type, config)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt": ("openai-gpt", GPT),
    "gpt2": ("gpt2", GPT),
    "gpt2-scales": ("gpt2", GPT | {"scale_attn_by_inverse_layer_idx": True, "n_inner": 100}),
    "gpt2-unscaled": ("gpt2", GPT | {"scale_attn_weights": False}),
    "llama": ("llama", LLAMA | MHA | {"rms_norm_eps": 1e-6}),
    "llama-bias": ("llama", LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-linear": ("llama", LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "llama-head-dim": ("llama", LLAMA | {"head_dim": 16}),
}

# Parameters that transformers keeps but a language model does not use.
FP32_NORMS = 2e-5  # transformers computes norms, rotary tables and softmax in fp32 whatever the model's dtype


@functools.cache
def pair(name: str) -> tuple[Any, Loaded, Path]:
    """Return (their model, ours loaded from their saved folder, the folder); every parameter is randomised."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, config = CASES[name]
    torch.manual_seed(len(name))
    config = AutoConfig.for_model(model_type, **(TINY | config))
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * 0.08 if p.dim() > 1 else p + 0.2 * torch.randn_like(p))
    folder = Path(tempfile.mkdtemp()) / name
    theirs.save_pretrained(folder)
    return theirs, load(folder), folder


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    """Return random token ids (length,)."""
    return torch.randint(3, 99, (length,), generator=torch.Generator().manual_seed(seed))
