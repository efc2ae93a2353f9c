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
NEOX = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}

OPT = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 80,
    "max_position_embeddings": 64,
}
BLOOM = {"hidden_size": 48, "n_layer": 3, "n_head": 4}
FALCON = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_hidden_size": 80,
    "max_position_embeddings": 64,
}
MPT = {"d_model": 48, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}

# name: (model_type, config)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt": ("openai-gpt", GPT),
    "gpt2": ("gpt2", GPT),
    "gpt2-scales": ("gpt2", GPT | {"scale_attn_by_inverse_layer_idx": True, "n_inner": 100}),
    "gpt2-unscaled": ("gpt2", GPT | {"scale_attn_weights": False}),
    "ctrl": ("ctrl", GPT | {"dff": 80}),
    "gpt-neo": (
        "gpt_neo",
        {
            "hidden_size": 48,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 5,
            "max_position_embeddings": 64,
        },
    ),
    "gpt-bigcode": ("gpt_bigcode", GPT),
    "gpt-bigcode-mha": ("gpt_bigcode", GPT | {"multi_query": False}),
    "gpt-j": ("gptj", GPT | {"rotary_dim": 8}),
    "codegen": ("codegen", GPT | {"rotary_dim": 8}),
    "gpt-neox": ("gpt_neox", NEOX | {"rotary_pct": 0.5}),
    "gpt-neox-sequential": (
        "gpt_neox",
        NEOX | {"rotary_pct": 1.0, "use_parallel_residual": False, "attention_bias": False},
    ),
    "gpt-neox-japanese": (
        "gpt_neox_japanese",
        {
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_multiple_size": 2,
            "rotary_pct": 0.5,
            "max_position_embeddings": 64,
        },
    ),
    "opt": ("opt", OPT | {"word_embed_proj_dim": 48}),
    "opt-350m": ("opt", OPT | {"word_embed_proj_dim": 24, "do_layer_norm_before": False}),
    "galactica": ("opt", OPT | {"word_embed_proj_dim": 48, "enable_bias": False, "activation_function": "gelu"}),
    "bloom": ("bloom", BLOOM),
    "bloom-6-heads": ("bloom", BLOOM | {"n_head": 6}),
    "bloom-normed-skip": ("bloom", BLOOM | {"apply_residual_connection_post_layernorm": True}),
    "falcon-7b": ("falcon", FALCON),
    "falcon-mha": ("falcon", FALCON | {"multi_query": False}),
    "falcon-40b": ("falcon", FALCON | {"num_attention_heads": 8, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "falcon-rw": (
        "falcon",
        FALCON | {"num_attention_heads": 6, "multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
    ),
    "mpt": ("mpt", MPT),
    "mpt-clip": ("mpt", MPT | {"n_heads": 6, "attn_config": {"clip_qkv": 0.5, "softmax_scale": 0.3}}),
    "llama": ("llama", LLAMA | MHA | {"rms_norm_eps": 1e-6}),
    "llama-bias": ("llama", LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-linear": ("llama", LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "llama-head-dim": ("llama", LLAMA | {"head_dim": 16}),
}

# Parameters that transformers keeps but a language model does not use.
SDPA = {"falcon-rw"}  # with "eager" transformers adds ALiBi twice there
FP32_NORMS = 2e-5  # transformers computes norms, rotary tables and softmax in fp32 whatever the model's dtype


@functools.cache
def pair(name: str) -> tuple[Any, Loaded, Path]:
    """Return (their model, ours loaded from their saved folder, the folder); every parameter is randomised."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, config = CASES[name]
    torch.manual_seed(len(name))
    config = AutoConfig.for_model(model_type, **(TINY | config))
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation=attention(name)).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * 0.08 if p.dim() > 1 else p + 0.2 * torch.randn_like(p))
    folder = Path(tempfile.mkdtemp()) / name
    theirs.save_pretrained(folder)
    return theirs, load(folder), folder


def attention(name: str) -> str:
    """Return the implementation that is right in transformers."""
    return "sdpa" if name in SDPA else "eager"


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    """Return random token ids (length,)."""
    return torch.randint(3, 99, (length,), generator=torch.Generator().manual_seed(seed))
