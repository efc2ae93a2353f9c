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

LLAMA4 = LLAMA | {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "intermediate_size_mlp": 80,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "attention_chunk_size": 6,
    "no_rope_layers": [1, 1, 0, 1],
    "floor_scale": 4,
    "attn_scale": 0.3,
}
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GEMMA = {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 30}
GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.2,
    "logits_scaling": 2.0,
}
DEEPSEEK = (
    LLAMA
    | MHA
    | {
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "v_head_dim": 10,
        "n_routed_experts": 8,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.5,
    }
)
STATE = {"hidden_size": 48, "num_hidden_layers": 3}
REFORMER = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "attention_head_size": 12,
    "feed_forward_size": 80,
    "attn_layers": ["local", "lsh", "local", "lsh"],
    "axial_pos_shape": [4, 16],
    "axial_pos_embds_dim": [16, 32],
    "max_position_embeddings": 64,
    "hash_seed": 3,
    "is_decoder": True,
}
LONG_TABLE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + 0.1 * i for i in range(6)],
    "long_factor": [2.0 + 0.3 * i for i in range(6)],
    "original_max_position_embeddings": 8,
}
LONGROPE = LLAMA | {"original_max_position_embeddings": 8, "rope_parameters": LONG_TABLE}

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
    "llama3": (
        "llama",
        LLAMA
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.5,
                "high_freq_factor": 3.5,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama-dynamic": (
        "llama",
        LLAMA
        | {
            "max_position_embeddings": 8,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        },
    ),
    "llama-yarn": (
        "llama",
        LLAMA
        | {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "beta_fast": 24.0,
                "beta_slow": 2.0,
                "attention_factor": 1.3,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "smollm3": ("smollm3", LLAMA | {"num_hidden_layers": 4}),
    "llama4": ("llama4_text", LLAMA4),
    "llama4-dense": (
        "llama4_text",
        LLAMA4 | {"interleave_moe_layer_step": 2, "attn_temperature_tuning": False, "use_qk_norm": False},
    ),
    "mistral": ("mistral", LLAMA | {"sliding_window": 6}),
    "mistral-full": ("mistral", LLAMA | {"sliding_window": None, "head_dim": 16}),
    "mixtral": ("mixtral", LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "phi": ("phi", LLAMA | {"partial_rotary_factor": 0.5}),
    "phi-qk-norm": ("phi", LLAMA | {"partial_rotary_factor": 0.5, "qk_layernorm": True}),
    "phi3": ("phi3", LLAMA | {"sliding_window": 6}),
    "phi3-partial": ("phi3", LLAMA | {"partial_rotary_factor": 0.5, "tie_word_embeddings": True}),
    "phi3-longrope": ("phi3", LONGROPE),
    "phi3-longrope-factor": ("phi3", LONGROPE | {"rope_parameters": LONG_TABLE | {"factor": 6.0}}),
    "phi3-longrope-gain": ("phi3", LONGROPE | {"rope_parameters": LONG_TABLE | {"attention_factor": 1.2}}),
    "qwen2": ("qwen2", LLAMA),
    "qwen2-windows": ("qwen2", LLAMA | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen2-moe": (
        "qwen2_moe",
        LLAMA
        | {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
            "decoder_sparse_step": 2,
        },
    ),
    "qwen3": ("qwen3", LLAMA | {"head_dim": 16}),
    "qwen3-moe": ("qwen3_moe", LLAMA | MOE | {"head_dim": 16, "norm_topk_prob": True, "mlp_only_layers": [1]}),
    "gemma": ("gemma", LLAMA | {"head_dim": 16}),
    "gemma2": ("gemma2", LLAMA | GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", LLAMA | GEMMA | {"num_hidden_layers": 7}),
    "olmo": ("olmo", LLAMA | {"clip_qkv": 0.4}),
    "olmo2": ("olmo2", LLAMA),
    "olmo3": ("olmo3", LLAMA | {"num_hidden_layers": 5, "sliding_window": 6}),
    "olmoe": ("olmoe", LLAMA | {"num_experts": 4, "num_experts_per_tok": 2}),
    "stablelm": ("stablelm", LLAMA | {"partial_rotary_factor": 0.5, "use_qkv_bias": True}),
    "stablelm2-12b": (
        "stablelm",
        LLAMA | {"partial_rotary_factor": 0.5, "use_parallel_residual": True, "qk_layernorm": True},
    ),
    "starcoder2": ("starcoder2", LLAMA | {"sliding_window": 6}),
    "starcoder2-no-bias": ("starcoder2", LLAMA | {"use_bias": False, "tie_word_embeddings": False}),
    "nemotron": ("nemotron", LLAMA | {"partial_rotary_factor": 0.5}),
    "cohere": ("cohere", LLAMA),
    "cohere-qk-norm": ("cohere", LLAMA | {"use_qk_norm": True, "logit_scale": 0.5}),
    "cohere2": ("cohere2", LLAMA | {"num_hidden_layers": 5, "sliding_window": 6}),
    "glm": ("glm", LLAMA | {"head_dim": 16}),
    "glm4": ("glm4", LLAMA | {"head_dim": 16, "attention_bias": False}),
    "granite": ("granite", LLAMA | GRANITE),
    "granite-moe": ("granitemoe", LLAMA | GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "ernie4.5": ("ernie4_5", LLAMA | {"head_dim": 16, "use_bias": True}),
    "gpt-oss": (
        "gpt_oss",
        LLAMA | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    ),
    "nanochat": ("nanochat", LLAMA),
    "deepseek-v2": (
        "deepseek_v2",
        DEEPSEEK
        | {
            "attention_bias": True,
            "n_shared_experts": 2,
            "num_experts_per_tok": 2,
            "topk_method": "group_limited_greedy",
        },
    ),
    "deepseek-v2-lite": (
        "deepseek_v2",
        DEEPSEEK | {"q_lora_rank": None, "n_group": None, "topk_group": None, "num_experts_per_tok": 3},
    ),
    "deepseek-v3": (
        "deepseek_v3",
        DEEPSEEK
        | {
            "n_shared_experts": 1,
            "num_experts_per_tok": 3,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
            },
        },
    ),
    "deepseek-v3-halves": ("deepseek_v3", DEEPSEEK | {"num_experts_per_tok": 3, "rope_interleave": False}),
    "rwkv": ("rwkv", STATE | {"context_length": 64, "attention_hidden_size": 48, "rescale_every": 0}),
    "mamba": ("mamba", STATE | {"state_size": 8, "time_step_rank": 4}),
    "mamba-bias": ("mamba", STATE | {"state_size": 8, "use_bias": True, "use_conv_bias": False, "conv_kernel": 3}),
    "mamba2": (
        "mamba2",
        STATE
        | {"state_size": 12, "num_heads": 6, "head_dim": 16, "n_groups": 2, "chunk_size": 8, "conv_kernel": 3}
        | {"layer_norm_epsilon": 1e-6},
    ),
    "mamba2-bias": (
        "mamba2",
        STATE
        | {"state_size": 12, "num_heads": 6, "head_dim": 16, "n_groups": 1, "use_bias": True, "use_conv_bias": False},
    ),
    "jamba": (
        "jamba",
        LLAMA
        | {
            "num_hidden_layers": 8,
            "attn_layer_period": 4,
            "attn_layer_offset": 2,
            "num_experts": 4,
            "mamba_d_state": 8,
            "mamba_dt_rank": 6,
        },
    ),
    "recurrentgemma": (
        "recurrent_gemma",
        STATE
        | {
            "intermediate_size": 160,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "attention_window_size": 6,
            "lru_width": 64,
        },
    ),
    "reformer": (  # buckets by the length; chunks that go into no common one but 12
        "reformer",
        REFORMER | {"local_attn_chunk_length": 6, "lsh_attn_chunk_length": 4},
    ),
    "reformer-factors": (
        "reformer",
        REFORMER
        | {"local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_buckets": [2, 4], "attention_head_size": 8},
    ),
    "reformer-rows": (
        "reformer",
        REFORMER | {"attn_layers": ["local", "local"], "local_attn_chunk_length": 4, "axial_pos_embds": False},
    ),
    "reformer-whole": ("reformer", REFORMER | {"num_buckets": 8, "num_hashes": 2}),
    "llama-head-dim": ("llama", LLAMA | {"head_dim": 16}),
}

# Parameters that transformers keeps but a language model does not use.
# Their angles depend on how long the sequence is by now: keys in memory were turned by others. What hashes alike does.
UNCACHED = {"llama-dynamic", "phi3-longrope", "phi3-longrope-factor", "phi3-longrope-gain"}
UNCACHED |= {"reformer", "reformer-factors"}
# transformers takes the longest of the batch for all of it, or (Llama 4) the index in place of the position.
# Recurrent ones read the padding: RWKV, RecurrentGemma; Mamba its bias.
UNPADDED = {"llama-dynamic", "llama4", "rwkv", "recurrentgemma", "mamba-bias", "mamba2-bias"}
UNPADDED |= {"reformer", "reformer-factors", "reformer-rows"}  # padding fills chunks
SDPA = {"falcon-rw"}  # with "eager" transformers adds ALiBi twice there
STRANGERS = {"plamo"}  # transformers has no class for it
SIZES = frozenset(  # keys that every real config.json holds
    """
    vocab_size hidden_size d_model n_embd intermediate_size intermediate_size_mlp n_inner ffn_dim ffn_hidden_size dff
    num_hidden_layers n_layer n_layers num_layers num_attention_heads n_head n_heads num_heads num_key_value_heads
    num_kv_heads head_dim max_position_embeddings n_positions max_seq_len word_embed_proj_dim rotary_dim
    layer_types attention_types attention_layers no_rope_layers moe_layers sliding_window attention_chunk_size
    num_experts num_local_experts n_routed_experts num_experts_per_tok moe_intermediate_size n_shared_experts
    shared_expert_intermediate_size first_k_dense_replace routed_scaling_factor n_group topk_group
    state_size intermediate_size num_experts lru_width attention_window_size mamba_d_state mamba_dt_rank
    attention_hidden_size context_length expand head_dim num_heads n_groups
    encoder_layers decoder_layers encoder_attention_heads decoder_attention_heads encoder_ffn_dim decoder_ffn_dim
    num_decoder_layers d_kv d_ff dim n_heads hidden_dim embedding_size type_vocab_size entity_vocab_size entity_emb_size
    text_config vision_config d_inner d_head num_sparse_encoder_layers num_sparse_decoder_layers
    kv_lora_rank q_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim query_pre_attn_scalar
    """.split()  # noqa: SIM905
)
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
    return mended(theirs), load(folder), folder


def mended(theirs: Any) -> Any:
    """Let Reformer's head add its bias, as it did until transformers 5, which keeps it in files and forgets it."""
    head = getattr(theirs, "lm_head", None)
    if type(head).__name__ == "ReformerOnlyLMHead":
        assert head.decoder.bias is None
        head.decoder.bias = head.bias
    return theirs


def attention(name: str) -> str:
    """Return the implementation that is right in transformers."""
    return "sdpa" if name in SDPA else "eager"


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    """Return random token ids (length,)."""
    return torch.randint(3, 99, (length,), generator=torch.Generator().manual_seed(seed))
