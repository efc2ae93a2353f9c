"""The LLaMA line with layers that use no positions: Llama 4, SmolLM3."""

from __future__ import annotations

from terakoya.model.spec import (
    MLP,
    Attention,
    Chunk,
    Full,
    MoE,
    QKNorm,
    RMSNorm,
    Rope,
    Temper,
    Window,
    pre,
)
from terakoya.zoo.codec import Both, Codec, Has
from terakoya.zoo.layers import Dense, Layers, Still, Turned
from terakoya.zoo.names import Layout
from terakoya.zoo.node import Family, Note, Size
from terakoya.zoo.rotary import Rotary

L, H = "layers.{i}.", "model.layers.{i}."
LAYER_TYPES = Layers(
    {"full_attention": {"attention.reach": Full()}, "sliding_attention": {"attention.reach": Window(4096)}}
)
L2 = RMSNorm(1e-5, affine=False)
LLAMA4_MLP = MLP(16_384, "silu", gated=True)
LLAMA4_MOE = MoE(
    MLP(8192, "silu", gated=True),
    16,
    1,
    score="sigmoid",
    normalize=False,
    scale_input=True,
    shared=MLP(8192, "silu", gated=True),
)
LLAMA4_TURNS = {"attention.position": Rope(5e5, interleaved=True), "attention.temper": None}
LLAMA4_LOCAL = Attention(
    40,
    kv_heads=8,
    head_dim=128,
    position=Rope(5e5, interleaved=True),
    reach=Chunk(8192),
    qk_norm=QKNorm(L2, after_rope=True),
)
LLAMA4_GLOBAL = Attention(40, kv_heads=8, head_dim=128, temper=Temper(8192, 0.1))


FAMILIES = (
    Family(
        name="llama4",
        title="Llama 4",
        born="2025-04",
        note=Note(
            "experts beside a shared one; three layers of four see chunks and rotate, one sees all without positions",
            "共有エキスパートつきの混合。三層は 8192 ごとに区切って回転、四層目は位置なしで全体を見る",
        ),
        parent="llama3",
        takes=("deepseek-v3", "cohere2"),
        paper="Meta 2025, The Llama 4 herd",
        licence="Llama 4 Community",
        changes={
            "vocab": 202_048,
            "dim": 5120,
            "depth": 48,
            "context": 131_072,
            "blocks": tuple(
                pre(RMSNorm(1e-5), attention, LLAMA4_MOE)
                for attention in (LLAMA4_LOCAL, LLAMA4_LOCAL, LLAMA4_LOCAL, LLAMA4_GLOBAL)
            ),
            "norm.eps": 1e-5,
        },
        sizes={"scout-text": Size(107_769_861_120)},
        model_type="llama4_text",
        architecture="Llama4ForCausalLM",
        keys={
            "mlp_bias": None,
            "intermediate_size_mlp": "mlp.hidden",
            "intermediate_size": Both(("moe.expert.hidden", "moe.shared.hidden")),
            "num_local_experts": "moe.count",
            "num_experts_per_tok": "moe.top_k",
            "moe_layers": Dense("experts", {"branches.1.mix": (LLAMA4_MLP,)}, {"branches.1.mix": (LLAMA4_MOE,)}),
            "interleave_moe_layer_step": Codec(),
            "no_rope_layers": Layers(
                {1: LLAMA4_TURNS, 0: {"attention.position": None, "attention.qk_norm": None}},
                period=("no_rope_layer_interval",),
            ),
            "layer_types": Layers(
                {
                    "chunked_attention": {"attention.reach": Chunk(8192)},
                    "full_attention": {"attention.reach": Full()},
                }
            ),
            "use_qk_norm": Turned(QKNorm(L2, after_rope=True)),
            "attn_temperature_tuning": Still(Temper(8192, 0.1)),
            "floor_scale": "temper.floor",
            "attn_scale": "temper.scale",
            "attention_chunk_size": "chunk.size",
            "rope_parameters": Rotary(),
        },
        names=(
            (L + "mlp.router.*", H + "feed_forward.router.*"),
            (
                L + "mlp.experts.(gate,up).weight",
                H + "feed_forward.experts.gate_up_proj",
                Layout(transpose=True, dim=1),
            ),
            (L + "mlp.experts.down.weight", H + "feed_forward.experts.down_proj", Layout(transpose=True, dim=1)),
            *((L + f"mlp.shared.{x}.*", H + f"feed_forward.shared_expert.{x}_proj.*") for x in ("gate", "up", "down")),
            *((L + f"mlp.{x}.*", H + f"feed_forward.{x}_proj.*") for x in ("gate", "up", "down")),
        ),
    ),
    Family(
        name="smollm3",
        title="SmolLM3",
        born="2025-07",
        note=Note(
            "every fourth layer has no positions at all; six languages; two ways to answer",
            "四層に一層は位置をまったく使わない。六言語、考えてからも即座にも答える",
        ),
        parent="smollm2",
        takes=("llama4", "qwen3"),
        paper="Hugging Face 2025, https://huggingface.co/blog/smollm3",
        licence="Apache-2.0",
        changes={
            "vocab": 128_256,
            "context": 65_536,
            "blocks": tuple(
                pre(RMSNorm(), Attention(16, kv_heads=4, position=rope), MLP(11_008, "silu", gated=True))
                for rope in (Rope(5e6), Rope(5e6), Rope(5e6), None)
            ),
            "norm.eps": 1e-6,
            "dim": 2048,
            "depth": 36,
        },
        sizes={"3b": Size(3_075_098_624)},
        model_type="smollm3",
        architecture="SmolLM3ForCausalLM",
        keys={
            "no_rope_layers": Layers(
                {1: {"attention.position": Rope()}, 0: {"attention.position": None}},
                period=("no_rope_layer_interval",),
            ),
            "layer_types": LAYER_TYPES,
            "use_sliding_window": Has("window"),
            "max_window_layers": Codec(),
            "sliding_window": "window.size",
            "rope_parameters": Rotary(),
        },
        defaults={"tie_word_embeddings": True, "rope_theta": 2e6},
    ),
)
