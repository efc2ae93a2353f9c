"""DeepSeek's line: latent attention and many small experts."""

from __future__ import annotations

from typing import Any

from terakoya.model.spec import MLP, Groups, Latent, MoE, RMSNorm, Rope, Yarn, pre
from terakoya.zoo.codec import Both, Codec, GroupCount, Maybe, Method, Must, SharedExperts, Told
from terakoya.zoo.layers import Dense
from terakoya.zoo.names import Rule
from terakoya.zoo.node import Family, Note, Size

L, H = "layers.{i}.", "model.layers.{i}."
GATED = ("gate", "up", "down")
TURN = Rope(scaling=Yarn(40.0, 4096, mscale=0.707, mscale_all=0.707), interleaved=True)
MLP2, MLP3 = MLP(12_288, "silu", gated=True), MLP(18_432, "silu", gated=True)
MOE2 = MoE(
    MLP(1536, "silu", gated=True),
    160,
    6,
    normalize=False,
    scale=16.0,
    groups=Groups(8, 3),
    shared=MLP(3072, "silu", gated=True),
)
MOE3 = MoE(
    MLP(2048, "silu", gated=True),
    256,
    8,
    score="sigmoid",
    scale=2.5,
    groups=Groups(8, 4, "top2"),
    choice_bias=True,
    shared=MLP(2048, "silu", gated=True),
)


def latent(**more: Any) -> Latent:
    """The attention of the largest sizes."""
    return Latent(128, kv_rank=512, nope=128, rope=64, value=128, q_rank=1536, **more)


NAMES: tuple[Rule, ...] = (
    (L + "attn.q.*", H + "self_attn.q_proj.*"),
    (L + "attn.q_a.*", H + "self_attn.q_a_proj.*"),
    (L + "attn.q_norm.*", H + "self_attn.q_a_layernorm.*"),
    (L + "attn.q_b.*", H + "self_attn.q_b_proj.*"),
    (L + "attn.kv_a.*", H + "self_attn.kv_a_proj_with_mqa.*"),
    (L + "attn.kv_norm.*", H + "self_attn.kv_a_layernorm.*"),
    (L + "attn.kv_b.*", H + "self_attn.kv_b_proj.*"),
    (L + "mlp.router.*", H + "mlp.gate.*"),
    (L + "mlp.choice_bias", H + "mlp.gate.e_score_correction_bias"),
    *((L + f"mlp.experts.{x}.*", H + f"mlp.experts.{{e}}.{x}_proj.*") for x in GATED),
    *((L + f"mlp.shared.{x}.*", H + f"mlp.shared_experts.{x}_proj.*") for x in GATED),
)

FAMILIES = (
    Family(
        name="deepseek-v2",
        title="DeepSeek-V2",
        born="2024-05",
        note=Note(
            "keys and values of all heads from one small vector; many small experts in groups, two for everyone",
            "全ヘッドのキーとバリューを一つの小さなベクトルから。小さなエキスパート多数を組分け、二つは全員用",
        ),
        parent="llama2",
        takes=("mixtral",),
        paper="DeepSeek-AI 2024, arXiv:2405.04434; Dai 2024, arXiv:2401.06066",
        licence="DeepSeek licence",
        changes={
            "vocab": 102_400,
            "dim": 5120,
            "depth": 60,
            "context": 163_840,
            "blocks": tuple(pre(RMSNorm(), latent(position=TURN), ffn) for ffn in (MLP2, MOE2)),
            "layout": (0, 1),
            "norm.eps": 1e-6,
        },
        sizes={
            "lite": Size(
                15_706_484_224,
                {
                    "dim": 2048,
                    "depth": 27,
                    "latent.heads": 16,
                    "latent.q_rank": None,
                    "mlp.hidden": 10_944,
                    "moe.expert.hidden": 1408,
                    "moe.shared.hidden": 2816,
                    "moe.count": 64,
                    "moe.groups": None,
                    "moe.scale": 1.0,
                },
            ),
            "236b": Size(235_741_434_880),
        },
        model_type="deepseek_v2",
        architecture="DeepseekV2ForCausalLM",
        keys={
            "num_attention_heads": "latent.heads",
            "num_key_value_heads": Told("latent.heads"),
            "head_dim": Told("latent.rope"),
            "qk_head_dim": Codec(),
            "rms_norm_eps": Both(("norm.eps", "branch.pre.eps")),  # those inside attention keep 1e-6
            "attention_bias": "latent.bias",
            "mlp_bias": Must(False),
            "kv_lora_rank": "latent.kv_rank",
            "q_lora_rank": Maybe("latent.q_rank"),
            "qk_nope_head_dim": "latent.nope",
            "qk_rope_head_dim": "latent.rope",
            "v_head_dim": "latent.value",
            "first_k_dense_replace": Dense("first", {"branches.1.mix": (MLP2,)}, {"branches.1.mix": (MOE2,)}),
            "moe_layer_freq": Must(1),
            "n_routed_experts": "moe.count",
            "num_experts_per_tok": "moe.top_k",
            "moe_intermediate_size": "moe.expert.hidden",
            "n_shared_experts": SharedExperts(),
            "routed_scaling_factor": "moe.scale",
            "norm_topk_prob": Must(False),
            "scoring_func": Must("softmax"),
            "topk_method": Method(),
            "n_group": GroupCount("max", method=True),
            "topk_group": "moe.groups.keep",
        },
        defaults={"rope_theta": 1e4},
        names=NAMES,
    ),
    Family(
        name="deepseek-v3",
        title="DeepSeek-V3",
        born="2024-12",
        note=Note(
            "experts scored by sigmoid; a bias that moves the choice alone keeps them busy; trained in fp8",
            "エキスパートの得点はシグモイド。選択だけを動かすバイアスで負荷をならす。fp8 で訓練",
        ),
        parent="deepseek-v2",
        paper="DeepSeek-AI 2024, arXiv:2412.19437",
        licence="DeepSeek licence, later MIT",
        changes={
            "vocab": 129_280,
            "dim": 7168,
            "depth": 61,
            "blocks": tuple(
                pre(
                    RMSNorm(),
                    latent(position=Rope(interleaved=True, scaling=Yarn(40.0, 4096, mscale=1.0, mscale_all=1.0))),
                    ffn,
                )
                for ffn in (MLP3, MOE3)
            ),
            "layout": (0, 0, 0, 1),
        },
        sizes={"671b": Size(671_026_419_200)},
        model_type="deepseek_v3",
        architecture="DeepseekV3ForCausalLM",
        keys={
            "mlp_bias": None,
            "rope_interleave": "rope.interleaved",
            "first_k_dense_replace": Dense("first", {"branches.1.mix": (MLP3,)}, {"branches.1.mix": (MOE3,)}),
            "n_routed_experts": "moe.count",
            "num_experts_per_tok": "moe.top_k",
            "moe_intermediate_size": "moe.expert.hidden",
            "n_shared_experts": SharedExperts(),
            "routed_scaling_factor": "moe.scale",
            "norm_topk_prob": "moe.normalize",
            "scoring_func": Must("sigmoid"),
            "topk_method": Must("noaux_tc"),
            "n_group": GroupCount("top2"),
            "topk_group": "moe.groups.keep",
        },
    ),
)
