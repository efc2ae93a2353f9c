"""The Mistral line."""

from __future__ import annotations

from terakoya.model.spec import MLP, Full, MoE, Window
from terakoya.zoo.codec import Sliding
from terakoya.zoo.families.llama import size
from terakoya.zoo.node import Family, Note, Size

L, H = "layers.{i}.", "model.layers.{i}."
EXPERTS = (("gate", "w1"), ("down", "w2"), ("up", "w3"))

FAMILIES = (
    Family(
        name="mistral",
        title="Mistral",
        born="2023-09",
        note=Note(
            "every layer sees the last 4096 tokens; grouped queries at 7B",
            "各層は直近 4096 トークンだけを見る。7B でもグループ化クエリ",
        ),
        parent="llama2",
        takes=("sparse-transformer",),
        paper="Jiang 2023, arXiv:2310.06825",
        licence="Apache-2.0",
        changes={
            "context": 32_768,
            "attention.reach": Window(4096),
            "attention.kv_heads": 8,
            "mlp.hidden": 14_336,
        },
        sizes={
            "7b": Size(7_241_732_096),
            "nemo-12b": size(
                12_247_782_400,
                *(5120, 40, 32, 14_336, 8),
                **{
                    "vocab": 131_072,
                    "context": 131_072,
                    "rope.theta": 1e6,
                    "attention.head_dim": 128,
                    "attention.reach": Full(),
                },
            ),
        },
        model_type="mistral",
        architecture="MistralForCausalLM",
        keys={"sliding_window": Sliding(), "attention_bias": None, "mlp_bias": None},
        defaults={"rms_norm_eps": 1e-6},
    ),
    Family(
        name="mixtral",
        title="Mixtral",
        born="2023-12",
        note=Note(
            "eight experts, two at a time; the window is gone",
            "八つのエキスパートから二つずつ。窓はなくなった",
        ),
        parent="mistral",
        takes=("glam",),
        paper="Jiang 2024, arXiv:2401.04088",
        licence="Apache-2.0",
        changes={
            "attention.reach": Full(),
            "blocks.0.branches.1.mix": (MoE(MLP(14_336, "silu", gated=True), 8, 2),),
            "rope.theta": 1e6,
        },
        sizes={
            "8x7b": Size(46_702_792_704),
            "8x22b": size(140_620_634_112, 6144, 56, 48, 16_384, 8, context=65_536),
        },
        model_type="mixtral",
        architecture="MixtralForCausalLM",
        keys={"num_local_experts": "moe.count", "num_experts_per_tok": "moe.top_k"},
        defaults={"rms_norm_eps": 1e-5},
        names=(
            (L + "mlp.router.*", H + "block_sparse_moe.gate.*"),
            *((L + f"mlp.experts.{a}.*", H + f"block_sparse_moe.experts.{{e}}.{b}.*") for a, b in EXPERTS),
        ),
    ),
)
