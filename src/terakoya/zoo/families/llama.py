"""The LLaMA line."""

from __future__ import annotations

from typing import Any

from terakoya.model.spec import MLP, Attention, Embed, Head, RMSNorm, Rope, pre
from terakoya.zoo.codec import Act, Both, HeadDim, KVHeads, Must
from terakoya.zoo.names import Layout
from terakoya.zoo.node import Family, Note, Size
from terakoya.zoo.rotary import Rotary

L, H, B = "layers.{i}.", "model.layers.{i}.", "blk.{i}."


def size(
    parameters: int, dim: int, depth: int, heads: int, hidden: int, kv_heads: int | None = None, **more: Any
) -> Size:
    """One row of the usual table."""
    own = {"attention.heads": heads, "attention.kv_heads": kv_heads}
    return Size(parameters, {"dim": dim, "depth": depth, "mlp.hidden": hidden} | own | more)


FAMILIES = (
    Family(
        name="llama",
        title="LLaMA",
        born="2023-02",
        note=Note(
            "RMSNorm, SwiGLU, rotary positions, no biases, untied head",
            "RMSNorm・SwiGLU・回転位置埋め込み。バイアスなし、出力層は別の重み",
        ),
        parent="gpt2",
        takes=("gpt-neox", "palm", "gopher"),
        paper="Touvron 2023, arXiv:2302.13971",
        licence="research only",
        changes={
            "blocks": (pre(RMSNorm(), Attention(32, position=Rope()), MLP(11008, "silu", gated=True)),),
            "norm": RMSNorm(),
            "embed": Embed(),
            "head": Head(tied=False),
            "vocab": 32_000,
            "dim": 4096,
            "depth": 32,
            "context": 2048,
        },
        sizes={
            "7b": size(6_738_415_616, 4096, 32, 32, 11008),
            "13b": size(13_015_864_320, 5120, 40, 40, 13824),
            "33b": size(32_528_943_616, 6656, 60, 52, 17920),
            "65b": size(65_285_660_672, 8192, 80, 64, 22016),
        },
        model_type="llama",
        architecture="LlamaForCausalLM",
        fresh=True,
        keys={
            "vocab_size": "vocab",
            "hidden_size": "dim",
            "intermediate_size": "mlp.hidden",
            "num_hidden_layers": "depth",
            "num_attention_heads": "attention.heads",
            "num_key_value_heads": KVHeads(),
            "head_dim": HeadDim(),
            "max_position_embeddings": "context",
            "rms_norm_eps": "rmsnorm.eps",
            "hidden_act": Act(),
            "attention_bias": Both(("attention.bias", "attention.out_bias")),
            "mlp_bias": "mlp.bias",
            "rope_parameters": Rotary(),
            "rope_interleaved": Must(False),
            "tie_word_embeddings": "head.tied",
        },
        defaults={"tie_word_embeddings": False},
        names=(
            ("embed.token.weight", "model.embed_tokens.weight"),
            ("norm.*", "model.norm.*"),
            ("head.*", "lm_head.*"),
            (L + "attn_pre.*", H + "input_layernorm.*"),
            (L + "mlp_pre.*", H + "post_attention_layernorm.*"),
            *((L + f"attn.{x}.*", H + f"self_attn.{x}_proj.*") for x in "qkvo"),
            *((L + f"mlp.{x}.*", H + f"mlp.{x}_proj.*") for x in ("gate", "up", "down")),
        ),
        gguf=(
            ("embed.token.weight", "token_embd.weight"),
            ("norm.*", "output_norm.*"),
            ("head.*", "output.*"),
            (L + "attn_pre.*", B + "attn_norm.*"),
            (L + "mlp_pre.*", B + "ffn_norm.*"),
            (L + "attn.q.*", B + "attn_q.*", Layout(paired="heads")),
            (L + "attn.k.*", B + "attn_k.*", Layout(paired="kv_heads")),
            (L + "attn.v.*", B + "attn_v.*"),
            (L + "attn.o.*", B + "attn_output.*"),
            *((L + f"mlp.{x}.*", B + f"ffn_{x}.*") for x in ("gate", "up", "down")),
        ),
    ),
    Family(
        name="llama2",
        title="LLaMA 2",
        born="2023-07",
        note=Note("twice the context; grouped queries at 70B", "文脈を二倍に。70B ではグループ化クエリ"),
        parent="llama",
        paper="Touvron 2023, arXiv:2307.09288",
        licence="Llama 2 Community",
        changes={"context": 4096, "rmsnorm.eps": 1e-5},
        sizes={
            "7b": size(6_738_415_616, 4096, 32, 32, 11008),
            "13b": size(13_015_864_320, 5120, 40, 40, 13824),
            "70b": size(68_976_648_192, 8192, 80, 64, 28672, 8),
        },
    ),
    Family(
        name="smollm2",
        title="SmolLM2",
        born="2024-11",
        note=Note(
            "LLaMA small and tied, taught on much clean text",
            "小さな LLaMA。重みを共有し、大量の良質な文章で訓練",
        ),
        parent="llama2",
        paper="Allal 2025, arXiv:2502.02737",
        licence="Apache-2.0",
        changes={
            "vocab": 49_152,
            "context": 8192,
            "rope.theta": 100_000.0,
            "head.tied": True,
        },
        sizes={
            "135m": size(134_515_008, 576, 30, 9, 1536, 3),
            "360m": size(361_821_120, 960, 32, 15, 2560, 5),
            "1.7b": size(1_711_376_384, 2048, 24, 32, 8192),
        },
    ),
)
