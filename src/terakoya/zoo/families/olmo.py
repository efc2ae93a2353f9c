"""The OLMo line: models whose data, code and logs are all open."""

from __future__ import annotations

from terakoya.model.spec import MLP, Attention, Block, Branch, Full, LayerNorm, MoE, QKNorm, RMSNorm, Rope, Window, pre
from terakoya.zoo.codec import Maybe
from terakoya.zoo.families.llama import size
from terakoya.zoo.layers import Layers
from terakoya.zoo.node import Family, Note, Size
from terakoya.zoo.rotary import TwoRotaries

L, H = "layers.{i}.", "model.layers.{i}."
PLAIN = LayerNorm(affine=False)
NORM = RMSNorm(1e-6)
QK_NAMES = tuple((L + f"attn.{x}_norm.*", H + f"self_attn.{x}_norm.*") for x in "qk")
GATED = ("gate", "up", "down")


def after(reach: Window | Full) -> Block:
    """Norms stand after each branch, before the sum."""
    attention = Attention(32, position=Rope(5e5), reach=reach, qk_norm=QKNorm(NORM, over="width"))
    return Block(tuple(Branch((m,), post=NORM) for m in (attention, MLP(11_008, "silu", gated=True))))


FAMILIES = (
    Family(
        name="olmo",
        title="OLMo",
        born="2024-02",
        note=Note(
            "LLaMA with norms that learn nothing; data, code and logs are open",
            "学習する値のない正規化を使う LLaMA。データもコードも記録も公開",
        ),
        parent="llama",
        takes=("mpt",),
        paper="Groeneveld 2024, arXiv:2402.00838",
        licence="Apache-2.0",
        changes={
            "vocab": 50_304,
            "blocks": (pre(PLAIN, Attention(32, position=Rope()), MLP(11_008, "silu", gated=True)),),
            "norm": PLAIN,
        },
        sizes={
            "1b": size(1_176_764_416, 2048, 16, 16, 8192, **{"head.tied": True}),
            "7b": Size(6_888_095_744),
        },
        model_type="olmo",
        architecture="OlmoForCausalLM",
        keys={"rms_norm_eps": None, "mlp_bias": None, "head_dim": None, "clip_qkv": Maybe("attention.clip")},
    ),
    Family(
        name="olmoe",
        title="OLMoE",
        born="2024-09",
        note=Note(
            "64 small experts, eight at a time; queries and keys normed whole",
            "小さなエキスパート 64 から八つずつ。q と k を全体で正規化",
        ),
        parent="olmo",
        takes=("qwen2-moe", "deepseek-v2"),
        paper="Muennighoff 2024, arXiv:2409.02060",
        licence="Apache-2.0",
        changes={
            "blocks": (
                pre(
                    RMSNorm(1e-5),
                    Attention(16, position=Rope(), qk_norm=QKNorm(RMSNorm(1e-5), over="width")),
                    MoE(MLP(1024, "silu", gated=True), 64, 8, normalize=False),
                ),
            ),
            "norm": RMSNorm(1e-5),
            "dim": 2048,
            "depth": 16,
            "context": 4096,
        },
        sizes={"1b-7b": Size(6_919_161_856)},
        model_type="olmoe",
        architecture="OlmoeForCausalLM",
        keys={
            "rms_norm_eps": "rmsnorm.eps",
            "num_experts": "moe.count",
            "num_experts_per_tok": "moe.top_k",
            "norm_topk_prob": "moe.normalize",
        },
        names=(
            *QK_NAMES,
            (L + "mlp.router.*", H + "mlp.gate.*"),
            *((L + f"mlp.experts.{x}.*", H + f"mlp.experts.{{e}}.{x}_proj.*") for x in GATED),
        ),
    ),
    Family(
        name="olmo2",
        title="OLMo 2",
        born="2024-11",
        note=Note(
            "norms move behind each branch, queries and keys are normed whole: training stays calm",
            "正規化を各枝の後ろへ、q と k は全体で正規化。訓練が安定する",
        ),
        parent="olmo",
        takes=("olmoe", "llama3"),
        paper="OLMo Team 2025, arXiv:2501.00656",
        licence="Apache-2.0",
        changes={"blocks": (after(Full()),), "norm": NORM, "vocab": 100_352, "context": 4096},
        sizes={
            "1b": size(1_484_916_736, 2048, 16, 16, 8192),
            "7b": Size(7_298_617_344),
            "13b": size(13_716_198_400, 5120, 40, 40, 13_824),
            "32b": size(32_234_279_936, 5120, 64, 40, 27_648, 8),
        },
        model_type="olmo2",
        architecture="Olmo2ForCausalLM",
        keys={"rms_norm_eps": "rmsnorm.eps", "clip_qkv": None},
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 1e4},
        names=(
            (L + "attn_post.*", H + "post_attention_layernorm.*"),
            (L + "mlp_post.*", H + "post_feedforward_layernorm.*"),
            *QK_NAMES,
        ),
    ),
    Family(
        name="olmo3",
        title="OLMo 3",
        born="2025-11",
        note=Note(
            "three layers with a window, then one that sees all",
            "窓のある三層に、全体を見る一層",
        ),
        parent="olmo2",
        takes=("gemma3",),
        paper="OLMo Team 2025, Olmo 3",
        licence="Apache-2.0",
        changes={"blocks": (after(Window(4096)),) * 3 + (after(Full()),), "vocab": 100_278, "context": 65_536},
        sizes={"7b": Size(7_298_011_136), "32b": size(32_233_522_176, 5120, 64, 40, 27_648, 8)},
        model_type="olmo3",
        architecture="Olmo3ForCausalLM",
        keys={
            "layer_types": Layers(
                {
                    "sliding_attention": {"attention.reach": Window(4096)},
                    "full_attention": {"attention.reach": Full()},
                }
            ),
            "sliding_window": "window.size",
            "rope_parameters": TwoRotaries(local_theta=5e5),
        },
        defaults={"rope_theta": 5e5},
    ),
)
