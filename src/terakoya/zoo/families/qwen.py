"""The Qwen line."""

from __future__ import annotations

from typing import Any

from terakoya.model.spec import MLP, Full, MoE, QKNorm, RMSNorm, Window
from terakoya.zoo.codec import Both, Codec, Constant, Has, Must
from terakoya.zoo.families.llama import size
from terakoya.zoo.layers import Dense, Layers
from terakoya.zoo.node import Family, Note, Size

L, H = "layers.{i}.", "model.layers.{i}."
KINDS = {"full_attention": {"attention.reach": Full()}, "sliding_attention": {"attention.reach": Window(4096)}}
GATED = ("gate", "up", "down")
MLP2 = MLP(5632, "silu", gated=True)
MOE2 = MoE(
    MLP(1408, "silu", gated=True),
    60,
    4,
    normalize=False,
    shared=MLP(5632, "silu", gated=True),
    shared_gate=True,
)
MOE3 = MoE(MLP(768, "silu", gated=True), 128, 8)


def dense_or(moe: MoE) -> Dense:
    """Which layers have no experts."""
    return Dense("only", {"branches.1.mix": (MLP2,)}, {"branches.1.mix": (moe,)})


def tied(*row: int, **more: Any) -> Size:
    """One row of a small size, whose head is the token table."""
    return size(*row, **{"head.tied": True, "vocab": 151_936}, **more)


FAMILIES = (
    Family(
        name="qwen2",
        title="Qwen2 (and Qwen1.5)",
        born="2024-02",
        note=Note(
            "biases on queries, keys and values; a vocabulary of 152k; tied where small",
            "q・k・v にバイアス、語彙は 15.2 万。小さいものは重みを共有",
        ),
        parent="llama2",
        paper="Yang 2024, arXiv:2407.10671",
        licence="Apache-2.0",
        changes={
            "attention.bias": True,
            "rmsnorm.eps": 1e-6,
            "rope.theta": 1e6,
            "vocab": 152_064,
            "context": 32_768,
            "dim": 3584,
            "depth": 28,
            "attention.heads": 28,
            "attention.kv_heads": 4,
            "mlp.hidden": 18_944,
        },
        sizes={
            "0.5b": tied(494_032_768, 896, 24, 14, 4864, 2),
            "1.5b": tied(1_543_714_304, 1536, 28, 12, 8960, 2),
            "7b": Size(7_615_616_512),
            "72b": size(72_706_203_648, 8192, 80, 64, 29_568, 8),
        },
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        keys={
            "attention_bias": None,
            "mlp_bias": None,
            "layer_types": Layers(KINDS, after=("use_sliding_window", "max_window_layers")),
            "use_sliding_window": Has("window"),
            "max_window_layers": Codec(),
            "sliding_window": "window.size",
            "use_mrope": Must(False),
        },
        defaults={"rope_theta": 1e4},
    ),
    Family(
        name="qwen2.5",
        title="Qwen2.5",
        born="2024-09",
        note=Note("eighteen trillion tokens, more sizes", "18 兆トークン、大きさも増えた"),
        parent="qwen2",
        paper="Yang 2024, arXiv:2412.15115",
        licence="Apache-2.0",
        sizes={
            "0.5b": tied(494_032_768, 896, 24, 14, 4864, 2),
            "1.5b": tied(1_543_714_304, 1536, 28, 12, 8960, 2),
            "3b": tied(3_085_938_688, 2048, 36, 16, 11_008, 2),
            "7b": Size(7_615_616_512),
            "14b": size(14_770_033_664, 5120, 48, 40, 13_824, 8),
            "32b": size(32_763_876_352, 5120, 64, 40, 27_648, 8),
            "72b": size(72_706_203_648, 8192, 80, 64, 29_568, 8),
        },
    ),
    Family(
        name="qwen2-moe",
        title="Qwen2-MoE",
        born="2024-03",
        note=Note(
            "sixty small experts, four at a time, and one that all tokens visit through a gate",
            "小さなエキスパート 60 から四つずつ、さらに全トークンが門を通って訪れる一つ",
        ),
        parent="qwen2",
        takes=("mixtral", "deepseek-v2"),
        paper="Qwen Team 2024, Qwen1.5-MoE; Yang 2024, arXiv:2407.10671",
        licence="Tongyi Qianwen",
        changes={
            "blocks.0.branches.1.mix": (MOE2,),
            "vocab": 151_936,
            "dim": 2048,
            "depth": 24,
            "attention.heads": 16,
            "attention.kv_heads": 16,
        },
        sizes={
            "1.5-a2.7b": Size(14_315_784_192),
            "57b-a14b": Size(
                57_408_658_944,
                {
                    "dim": 3584,
                    "depth": 28,
                    "attention.heads": 28,
                    "attention.kv_heads": 4,
                    "moe.count": 64,
                    "moe.top_k": 8,
                    "moe.expert.hidden": 2560,
                    "moe.shared.hidden": 20_480,
                },
            ),
        },
        model_type="qwen2_moe",
        architecture="Qwen2MoeForCausalLM",
        keys={
            "mlp_only_layers": dense_or(MOE2),
            "decoder_sparse_step": Constant(1),
            "num_experts": "moe.count",
            "num_experts_per_tok": "moe.top_k",
            "moe_intermediate_size": "moe.expert.hidden",
            "shared_expert_intermediate_size": "moe.shared.hidden",
            "norm_topk_prob": "moe.normalize",
            "qkv_bias": "attention.bias",
        },
        names=(
            (L + "mlp.router.*", H + "mlp.gate.*"),
            *((L + f"mlp.experts.{x}.*", H + f"mlp.experts.{{e}}.{x}_proj.*") for x in GATED),
            *((L + f"mlp.shared.{x}.*", H + f"mlp.shared_expert.{x}_proj.*") for x in GATED),
            (L + "mlp.shared_gate.*", H + "mlp.shared_expert_gate.*"),
        ),
    ),
    Family(
        name="qwen3",
        title="Qwen3",
        born="2025-04",
        note=Note(
            "no biases; queries and keys normed head by head; thinks first when asked to",
            "バイアスをなくし、q と k をヘッドごとに正規化。頼めば考えてから答える",
        ),
        parent="qwen2.5",
        takes=("olmo2",),
        paper="Yang 2025, arXiv:2505.09388",
        licence="Apache-2.0",
        changes={
            "attention.bias": False,
            "attention.qk_norm": QKNorm(RMSNorm(1e-6)),
            "attention.head_dim": 128,
            "vocab": 151_936,
            "context": 40_960,
            "dim": 4096,
            "depth": 36,
            "attention.heads": 32,
            "attention.kv_heads": 8,
            "mlp.hidden": 12_288,
        },
        sizes={
            "0.6b": tied(596_049_920, 1024, 28, 16, 3072, 8),
            "1.7b": tied(1_720_574_976, 2048, 28, 16, 6144, 8),
            "4b": tied(4_022_468_096, 2560, 36, 32, 9728, 8),
            "8b": Size(8_190_735_360),
            "14b": size(14_768_307_200, 5120, 40, 40, 17_408, 8),
            "32b": size(32_762_123_264, 5120, 64, 64, 25_600, 8),
        },
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        keys={"attention_bias": Both(("attention.bias", "attention.out_bias"))},
        names=tuple((L + f"attn.{x}_norm.*", H + f"self_attn.{x}_norm.*") for x in "qk"),
    ),
    Family(
        name="qwen3-moe",
        title="Qwen3-MoE",
        born="2025-04",
        note=Note(
            "128 experts, eight at a time, none shared",
            "エキスパート 128 から八つずつ。共有はなし",
        ),
        parent="qwen3",
        takes=("qwen2-moe",),
        paper="Yang 2025, arXiv:2505.09388",
        licence="Apache-2.0",
        changes={
            "blocks.0.branches.1.mix": (MOE3,),
            "dim": 2048,
            "depth": 48,
            "attention.kv_heads": 4,
        },
        sizes={
            "30b-a3b": Size(30_532_122_624),
            "235b-a22b": Size(
                235_093_634_560,
                {"dim": 4096, "depth": 94, "attention.heads": 64, "moe.expert.hidden": 1536},
            ),
        },
        model_type="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        keys={
            "layer_types": None,
            "use_sliding_window": Must(False),
            "sliding_window": Codec(),
            "max_window_layers": Codec(),
            "mlp_only_layers": dense_or(MOE3),
            "decoder_sparse_step": Constant(1),
            "num_experts": "moe.count",
            "num_local_experts": "moe.count",
            "num_experts_per_tok": "moe.top_k",
            "moe_intermediate_size": "moe.expert.hidden",
            "norm_topk_prob": "moe.normalize",
        },
        defaults={"norm_topk_prob": False},
        names=(
            (L + "mlp.router.*", H + "mlp.gate.*"),
            *((L + f"mlp.experts.{x}.*", H + f"mlp.experts.{{e}}.{x}_proj.*") for x in GATED),
        ),
    ),
)
