"""config.json as long-lived files spell it: what is not said has its old meaning, and each gives the released size."""

from __future__ import annotations

from typing import Any

import pytest

from terakoya.zoo import lineage
from terakoya.zoo.convert import spec_of
from terakoya.zoo.hf import simplest

NOISE = {"architectures": ["X"], "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16", "use_cache": True}


def llama(**more: Any) -> dict[str, Any]:
    return {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5} | more


def shape(dim: int, hidden: int, depth: int, heads: int, kv_heads: int, context: int, vocab: int) -> dict[str, Any]:
    return {
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "vocab_size": vocab,
    }


# size of ours: their file
FILES: dict[str, dict[str, Any]] = {
    "gpt2/small": {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "attn_pdrop": 0.1,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    },
    "gpt-neo/125m": {
        "model_type": "gpt_neo",
        "activation_function": "gelu_new",
        "attention_layers": ["global", "local"] * 6,
        "attention_types": [[["global", "local"], 6]],
        "hidden_size": 768,
        "intermediate_size": None,
        "layer_norm_epsilon": 1e-05,
        "max_position_embeddings": 2048,
        "num_heads": 12,
        "num_layers": 12,
        "vocab_size": 50257,
        "window_size": 256,
    },
    "gpt-j/6b": {
        "model_type": "gptj",
        "activation_function": "gelu_new",
        "n_embd": 4096,
        "n_head": 16,
        "n_inner": None,
        "n_layer": 28,
        "n_positions": 2048,
        "rotary": True,
        "rotary_dim": 64,
        "scale_attn_weights": True,
        "tie_word_embeddings": False,
        "vocab_size": 50400,
    },
    "pythia/160m": {
        "model_type": "gpt_neox",
        "hidden_act": "gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "vocab_size": 50304,
    },
    "japanese-gpt-neox/3.6b": {
        "model_type": "gpt_neox",
        "hidden_act": "gelu",
        "hidden_size": 2816,
        "intermediate_size": 11264,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "num_attention_heads": 22,
        "num_hidden_layers": 36,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "tie_word_embeddings": False,
        "use_parallel_residual": False,
        "vocab_size": 32000,
    },
    "opt/125m": {
        "model_type": "opt",
        "_remove_final_layer_norm": False,
        "activation_dropout": 0.0,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "dropout": 0.1,
        "ffn_dim": 3072,
        "hidden_size": 768,
        "init_std": 0.02,
        "layerdrop": 0.0,
        "max_position_embeddings": 2048,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "prefix": "</s>",
        "vocab_size": 50272,
        "word_embed_proj_dim": 768,
    },
    "opt-350m/350m": {
        "model_type": "opt",
        "activation_function": "relu",
        "do_layer_norm_before": False,
        "ffn_dim": 4096,
        "hidden_size": 1024,
        "max_position_embeddings": 2048,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "vocab_size": 50272,
        "word_embed_proj_dim": 512,
    },
    "bloom/560m": {
        "model_type": "bloom",
        "apply_residual_connection_post_layernorm": False,
        "hidden_dropout": 0.0,
        "layer_norm_epsilon": 1e-05,
        "n_embed": 1024,
        "n_layer": 24,
        "num_attention_heads": 16,
        "pretraining_tp": 1,
        "vocab_size": 250880,
    },
    "falcon/7b": {
        "model_type": "falcon",
        "alibi": False,
        "bias": False,
        "hidden_size": 4544,
        "layer_norm_epsilon": 1e-05,
        "multi_query": True,
        "new_decoder_architecture": False,
        "num_attention_heads": 71,
        "num_hidden_layers": 32,
        "parallel_attn": True,
        "vocab_size": 65024,
    },
    "falcon-40b/40b": {
        "model_type": "falcon",
        "alibi": False,
        "bias": False,
        "hidden_size": 8192,
        "layer_norm_epsilon": 1e-05,
        "new_decoder_architecture": True,
        "num_attention_heads": 128,
        "num_hidden_layers": 60,
        "num_kv_heads": 8,
        "parallel_attn": True,
        "vocab_size": 65024,
    },
    "llama/7b": llama(**shape(4096, 11008, 32, 32, 32, 2048, 32000), rms_norm_eps=1e-6, tie_word_embeddings=False),
    "llama2/70b": llama(**shape(8192, 28672, 80, 64, 8, 4096, 32000), rope_scaling=None, pretraining_tp=1),
    "llama3/8b": llama(**shape(4096, 14336, 32, 32, 8, 8192, 128256), rope_theta=500000.0, attention_bias=False),
    "llama3.1/8b": llama(
        **shape(4096, 14336, 32, 32, 8, 131072, 128256),
        rope_theta=500000.0,
        rope_scaling={
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    ),
    "code-llama/34b": llama(**shape(8192, 22016, 48, 64, 8, 16384, 32000), rope_theta=1000000),
    "smollm2/135m": llama(
        **shape(576, 1536, 30, 9, 3, 8192, 49152),
        is_llama_config=True,
        rope_interleaved=False,
        rope_scaling=None,
        rope_theta=100000,
        tie_word_embeddings=True,
    ),
    "mistral/7b": {"model_type": "mistral", "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 10000.0}
    | shape(4096, 14336, 32, 32, 8, 32768, 32000)
    | {"sliding_window": 4096, "tie_word_embeddings": False},
    "mixtral/8x7b": {"model_type": "mixtral", "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 1e6}
    | shape(4096, 14336, 32, 32, 8, 32768, 32000)
    | {"num_experts_per_tok": 2, "num_local_experts": 8, "output_router_logits": False, "sliding_window": None},
    "phi2/2.7b": {"model_type": "phi", "hidden_act": "gelu_new", "layer_norm_eps": 1e-05, "partial_rotary_factor": 0.4}
    | shape(2560, 10240, 32, 32, 32, 2048, 51200)
    | {"qk_layernorm": False, "rope_scaling": None, "rope_theta": 10000.0, "resid_pdrop": 0.1},
    "phi3/mini": {"model_type": "phi3", "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_scaling": None}
    | shape(3072, 8192, 32, 32, 32, 4096, 32064)
    | {"original_max_position_embeddings": 4096, "sliding_window": 2047, "attention_bias": False},
    "qwen2.5/0.5b": {"model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 1e6}
    | shape(896, 4864, 24, 14, 2, 32768, 151936)
    | {"max_window_layers": 24, "sliding_window": 32768, "use_sliding_window": False, "use_mrope": False}
    | {"tie_word_embeddings": True},
    "qwen3/0.6b": {
        "model_type": "qwen3",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "head_dim": 128,
    }
    | shape(1024, 3072, 28, 16, 8, 40960, 151936)
    | {"attention_bias": False, "max_window_layers": 28, "sliding_window": None, "use_sliding_window": False}
    | {"rope_scaling": None, "tie_word_embeddings": True},
    "qwen3-moe/30b-a3b": {
        "model_type": "qwen3_moe",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1e6,
        "head_dim": 128,
    }
    | shape(2048, 6144, 48, 32, 4, 40960, 151936)
    | {"decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True}
    | {"num_experts": 128, "num_experts_per_tok": 8, "max_window_layers": 48, "use_sliding_window": False},
    "gemma2/2b": {
        "model_type": "gemma2",
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
    }
    | shape(2304, 9216, 26, 8, 4, 8192, 256000)
    | {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256}
    | {"rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "cache_implementation": "hybrid"},
    "gemma3/1b": {"model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "head_dim": 256}
    | shape(1152, 6912, 26, 4, 1, 32768, 262144)
    | {"query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_theta": 1000000}
    | {"rope_scaling": None, "sliding_window": 512, "sliding_window_pattern": 6, "attn_logit_softcapping": None},
    "olmo2/7b": {"model_type": "olmo2", "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 500000}
    | shape(4096, 11008, 32, 32, 32, 4096, 100352)
    | {"attention_bias": False, "rope_scaling": None, "tie_word_embeddings": False},
    "starcoder2/3b": {
        "model_type": "starcoder2",
        "hidden_act": "gelu_pytorch_tanh",
        "mlp_type": "default",
        "norm_epsilon": 1e-05,
    }
    | shape(3072, 12288, 30, 24, 2, 16384, 49152)
    | {"norm_type": "layer_norm", "rope_theta": 999999.4420358813, "sliding_window": 4096, "use_bias": True},
    "deepseek-v3/671b": {
        "model_type": "deepseek_v3",
        "aux_loss_alpha": 0.001,
        "ep_size": 1,
        "first_k_dense_replace": 3,
        "hidden_act": "silu",
        "kv_lora_rank": 512,
        "moe_intermediate_size": 2048,
        "moe_layer_freq": 1,
        "n_group": 8,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 8,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "seq_aux": True,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "v_head_dim": 128,
    }
    | shape(7168, 18432, 61, 128, 128, 163840, 129280),
    "gpt-oss/20b": {
        "model_type": "gpt_oss",
        "attention_bias": True,
        "experts_per_token": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "initial_context_length": 4096,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "num_experts_per_tok": 4,
        "num_local_experts": 32,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
    }
    | shape(2880, 2880, 24, 64, 8, 131072, 201088),
    "smollm3/3b": {
        "model_type": "smollm3",
        "attention_bias": False,
        "hidden_act": "silu",
        "layer_types": ["full_attention"] * 36,
        "max_window_layers": 28,
        "mlp_bias": False,
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
    }
    | shape(2048, 11008, 36, 16, 4, 65536, 128256),
}


@pytest.mark.parametrize("size", FILES)
def test_a_long_lived_file_is_the_released_size(size: str) -> None:
    _, found = spec_of(FILES[size] | NOISE, "config.json")
    assert found == simplest(lineage.sized(size))
