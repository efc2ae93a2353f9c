"""The LLaMA line."""

from __future__ import annotations

from typing import Any

from terakoya.model.spec import (
    MLP,
    Attention,
    Embed,
    Head,
    Llama3,
    RMSNorm,
    Rope,
    pre,
)
from terakoya.zoo.codec import (
    Act,
    Both,
    HeadDim,
    Inner,
    KVHeads,
    Must,
)
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
            "intermediate_size": Inner(),
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
    Family(
        name="code-llama",
        title="Code Llama",
        born="2023-08",
        note=Note(
            "LLaMA 2 taught code: slower rotation for long files, infilling between prefix and suffix",
            "コードを学んだ LLaMA 2。長いファイルのため回転を遅くし、前後の間も埋める",
        ),
        parent="llama2",
        takes=("codex",),
        paper="Rozière 2023, arXiv:2308.12950",
        licence="Llama 2 Community",
        changes={"vocab": 32_016, "context": 16_384, "rope.theta": 1e6},
        sizes={
            "7b": size(6_738_546_688, 4096, 32, 32, 11008),
            "13b": size(13_016_028_160, 5120, 40, 40, 13824),
            "34b": size(33_743_970_304, 8192, 48, 64, 22016, 8, vocab=32_000),
        },
    ),
    Family(
        name="tinyllama",
        title="TinyLlama",
        born="2023-09",
        note=Note("a small LLaMA 2 that read three trillion tokens", "3 兆トークンを読んだ小さな LLaMA 2"),
        parent="llama2",
        paper="Zhang 2024, arXiv:2401.02385",
        licence="Apache-2.0",
        changes={"context": 2048, "attention.kv_heads": 4},
        sizes={"1.1b": size(1_100_048_384, 2048, 22, 32, 5632, 4)},
    ),
    Family(
        name="llama3",
        title="Llama 3",
        born="2024-04",
        note=Note(
            "a vocabulary of 128k, grouped queries at every size, slower rotation",
            "語彙は 12.8 万、どの大きさもグループ化クエリ、回転は遅く",
        ),
        parent="llama2",
        paper="Grattafiori 2024, arXiv:2407.21783",
        licence="Llama 3 Community",
        changes={
            "vocab": 128_256,
            "context": 8192,
            "rope.theta": 500_000.0,
            "attention.kv_heads": 8,
            "mlp.hidden": 14_336,
        },
        sizes={
            "8b": size(8_030_261_248, 4096, 32, 32, 14_336, 8),
            "70b": size(70_553_706_496, 8192, 80, 64, 28_672, 8),
        },
    ),
    Family(
        name="llama3.1",
        title="Llama 3.1",
        born="2024-07",
        note=Note(
            "sixteen times the context, by slowing only the frequencies that the training never saw whole",
            "訓練で一周しなかった周波数だけを遅くし、文脈を十六倍に",
        ),
        parent="llama3",
        takes=("code-llama",),
        paper="Grattafiori 2024, arXiv:2407.21783",
        licence="Llama 3.1 Community",
        changes={"context": 131_072, "rope.scaling": Llama3(8.0)},
        sizes={
            "8b": size(8_030_261_248, 4096, 32, 32, 14_336, 8),
            "70b": size(70_553_706_496, 8192, 80, 64, 28_672, 8),
            "405b": size(405_853_388_800, 16_384, 126, 128, 53_248, 8),
        },
    ),
    Family(
        name="llama3.2",
        title="Llama 3.2",
        born="2024-09",
        note=Note(
            "Llama 3.1 pruned and distilled to fit a telephone", "枝刈りと蒸留で電話に入る大きさにした Llama 3.1"
        ),
        parent="llama3.1",
        paper="Meta 2024, Llama 3.2 model card",
        licence="Llama 3.2 Community",
        changes={"rope.scaling": Llama3(32.0), "head.tied": True},
        sizes={
            "1b": size(1_235_814_400, 2048, 16, 32, 8192, 8),
            "3b": size(3_212_749_824, 3072, 28, 24, 8192, 8),
        },
    ),
)
