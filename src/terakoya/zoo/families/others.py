"""Other lines since 2024: GLM, Granite, ERNIE, gpt-oss, nanochat."""

from __future__ import annotations

from terakoya.model.spec import (
    MLP,
    Attention,
    Block,
    Branch,
    Embed,
    Full,
    Head,
    MoE,
    QKNorm,
    RMSNorm,
    Rope,
    Window,
    Yarn,
    pre,
)
from terakoya.zoo.codec import Both, Codec, HeadDim, Inner, KVHeads, Maybe, Must, Power
from terakoya.zoo.families.llama import size
from terakoya.zoo.layers import Layers
from terakoya.zoo.names import Layout
from terakoya.zoo.node import Family, Note, Size
from terakoya.zoo.rotary import Rotary

L, H = "layers.{i}.", "model.layers.{i}."
GATE_UP = (L + "mlp.(gate,up).*", H + "mlp.gate_up_proj.*")
TURNS = Rope(fraction=0.5, interleaved=True)
ROWS = Layout(transpose=True, groups="rows", dim=1)
COLUMNS = Layout(transpose=True, dim=1)


def oss(reach: Window | Full) -> Block:
    """One of gpt-oss's two blocks."""
    attention = Attention(
        64,
        kv_heads=8,
        head_dim=64,
        bias=True,
        out_bias=True,
        position=Rope(150_000.0, scaling=Yarn(32.0, 4096, truncate=False)),
        reach=reach,
        sinks=True,
    )
    moe = MoE(
        MLP(2880, "swiglu_clamped", gated=True, bias=True),
        32,
        4,
        score="softmax_topk",
        normalize=False,
        router_bias=True,
    )
    return pre(RMSNorm(1e-5), attention, moe)


FAMILIES = (
    Family(
        name="glm",
        title="GLM-4 (2024)",
        born="2024-06",
        note=Note(
            "half of each head turns, neighbours together; two key heads",
            "各ヘッドの半分が隣同士で回る。キーは二組",
        ),
        parent="llama2",
        takes=("gpt-j",),
        paper="GLM Team 2024, arXiv:2406.12793",
        licence="GLM-4 licence",
        changes={
            "vocab": 151_552,
            "depth": 40,
            "context": 131_072,
            "blocks": (
                pre(
                    RMSNorm(1.5625e-07),
                    Attention(32, kv_heads=2, bias=True, position=TURNS),
                    MLP(13_696, "silu", gated=True),
                ),
            ),
            "norm.eps": 1.5625e-07,
        },
        sizes={"9b": Size(9_399_951_360)},
        model_type="glm",
        architecture="GlmForCausalLM",
        keys={"attention_bias": "attention.bias", "mlp_bias": None, "rope_parameters": Rotary(partial=True)},
        names=(GATE_UP,),
    ),
    Family(
        name="glm4",
        title="GLM-4-0414",
        born="2025-04",
        note=Note("a norm behind each branch too", "各枝の後ろにも正規化"),
        parent="glm",
        takes=("gemma2",),
        paper="GLM Team 2025, GLM-4-0414 model card",
        licence="MIT",
        changes={
            "context": 32_768,
            "blocks": (
                Block(
                    tuple(
                        Branch((m,), pre=RMSNorm(1e-5), post=RMSNorm(1e-5))
                        for m in (
                            Attention(32, kv_heads=2, bias=True, position=TURNS),
                            MLP(13_696, "silu", gated=True),
                        )
                    )
                ),
            ),
            "norm.eps": 1e-5,
        },
        sizes={
            "9b": Size(9_400_279_040),
            "32b": size(
                32_566_081_536, 6144, 61, 48, 23_040, 2, **{"attention.head_dim": 128, "attention.bias": False}
            ),
        },
        model_type="glm4",
        architecture="Glm4ForCausalLM",
        defaults={"rms_norm_eps": 1.5625e-07},
        names=(
            (L + "attn_post.*", H + "post_self_attn_layernorm.*"),
            (L + "mlp_post.*", H + "post_mlp_layernorm.*"),
        ),
    ),
    Family(
        name="granite",
        title="Granite 3",
        born="2024-10",
        note=Note(
            "four constants scale embedding, scores, branches and logits, so that settings carry over between sizes",
            "埋め込み・スコア・枝・ロジットに定数を掛け、設定を大きさの間で使い回せる",
        ),
        parent="llama2",
        takes=("cohere",),
        paper="Granite Team 2024, Granite 3.0 Language Models",
        licence="Apache-2.0",
        changes={
            "vocab": 49_155,
            "embed.scale": 12.0,
            "branch.scale": 0.22,
            "attention.scale": 0.0078125,
            "attention.kv_heads": 8,
            "head.scale": 1 / 16,
            "head.tied": True,
            "depth": 40,
            "mlp.hidden": 12_800,
        },
        sizes={
            "2b": size(*(2_533_531_648, 2048, 40, 32, 8192, 8), **{"attention.scale": 0.015625, "head.scale": 1 / 8}),
            "8b": Size(8_170_848_256),
        },
        model_type="granite",
        architecture="GraniteForCausalLM",
        keys={
            "head_dim": None,
            "embedding_multiplier": "embed.scale",
            "residual_multiplier": "branch.scale",
            "attention_multiplier": "attention.scale",
            "logits_scaling": Power("head.scale", -1.0),
        },
        defaults={
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "attention_multiplier": 1.0,
            "logits_scaling": 1.0,
            "rms_norm_eps": 1e-6,
        },
    ),
    Family(
        name="granite-moe",
        title="Granite 3 MoE",
        born="2024-10",
        note=Note("32 or 40 small experts, eight at a time", "小さなエキスパート 32 か 40 から八つずつ"),
        parent="granite",
        takes=("mixtral",),
        paper="Granite Team 2024, Granite 3.0 Language Models",
        licence="Apache-2.0",
        changes={
            "blocks.0.branches.1.mix": (
                MoE(MLP(512, "silu", gated=True), 32, 8, score="softmax_topk", normalize=False),
            ),
            "dim": 1024,
            "depth": 24,
            "attention.heads": 16,
            "attention.scale": 0.015625,
            "head.scale": 1 / 6,
        },
        sizes={
            "1b-a400m": Size(1_334_628_352),
            "3b-a800m": size(3_298_793_472, 1536, 32, 24, 512, 8, **{"moe.count": 40}),
        },
        model_type="granitemoe",
        architecture="GraniteMoeForCausalLM",
        keys={"mlp_bias": None, "num_local_experts": "moe.count", "num_experts_per_tok": "moe.top_k"},
        names=(
            (L + "mlp.router.*", H + "block_sparse_moe.router.layer.*"),
            (L + "mlp.experts.(gate,up).*", H + "block_sparse_moe.input_linear.*", Layout(dim=1)),
            (L + "mlp.experts.down.*", H + "block_sparse_moe.output_linear.*"),
        ),
    ),
    Family(
        name="ernie4.5",
        title="ERNIE 4.5",
        born="2025-06",
        note=Note("LLaMA whose neighbours turn together", "隣り合う成分が組で回る LLaMA"),
        parent="llama3",
        paper="Baidu 2025, ERNIE 4.5 Technical Report",
        licence="Apache-2.0",
        changes={"vocab": 103_424, "context": 131_072, "rope.interleaved": True, "head.tied": True},
        sizes={"0.3b": size(360_748_032, 1024, 18, 16, 3072, 2, **{"attention.head_dim": 128})},
        model_type="ernie4_5",
        architecture="Ernie4_5ForCausalLM",
        keys={"use_bias": Both(("attention.bias", "attention.out_bias", "mlp.bias")), "attention_bias": None},
        defaults={"tie_word_embeddings": True, "rope_theta": 5e5, "rms_norm_eps": 1e-5},
    ),
    Family(
        name="gpt-oss",
        title="gpt-oss",
        born="2025-08",
        note=Note(
            "every other layer sees 128 tokens; heads may look at a sink, which is nothing; 32 or 128 experts",
            "一層おきに 128 トークンだけ。ヘッドは「何も見ない」先を持つ。エキスパートは 32 か 128",
        ),
        parent="gpt3",
        takes=("mixtral", "llama3"),
        paper="OpenAI 2025, arXiv:2508.10925",
        licence="Apache-2.0",
        changes={
            "vocab": 201_088,
            "dim": 2880,
            "depth": 24,
            "context": 131_072,
            "blocks": (oss(Window(128)), oss(Full())),
            "norm": RMSNorm(1e-5),
            "embed": Embed(),
            "head.tied": False,
        },
        sizes={
            "20b": Size(20_914_757_184),
            "120b": Size(116_829_156_672, {"depth": 36, "moe.count": 128}),
        },
        model_type="gpt_oss",
        architecture="GptOssForCausalLM",
        fresh=True,
        keys={
            "vocab_size": "vocab",
            "hidden_size": "dim",
            "num_hidden_layers": "depth",
            "num_attention_heads": "attention.heads",
            "num_key_value_heads": KVHeads(),
            "head_dim": HeadDim(),
            "max_position_embeddings": "context",
            "rms_norm_eps": "rmsnorm.eps",
            "intermediate_size": Inner(),
            "hidden_act": Must("silu"),
            "swiglu_limit": Must(7.0),
            "swiglu_alpha": Must(1.702),
            "attention_bias": Both(("attention.bias", "attention.out_bias")),
            "num_local_experts": "moe.count",
            "num_experts_per_tok": "moe.top_k",
            "experts_per_token": Codec(),
            "initial_context_length": Codec(),
            "layer_types": Layers(
                {
                    "sliding_attention": {"attention.reach": Window(128)},
                    "full_attention": {"attention.reach": Full()},
                }
            ),
            "sliding_window": "window.size",
            "rope_parameters": Rotary(),
            "tie_word_embeddings": "head.tied",
        },
        defaults={
            "rope_theta": 150_000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
        },
        names=(
            ("embed.token.weight", "model.embed_tokens.weight"),
            ("norm.*", "model.norm.*"),
            ("head.*", "lm_head.*"),
            (L + "attn_pre.*", H + "input_layernorm.*"),
            (L + "mlp_pre.*", H + "post_attention_layernorm.*"),
            *((L + f"attn.{x}.*", H + f"self_attn.{x}_proj.*") for x in "qkvo"),
            (L + "attn.sinks", H + "self_attn.sinks"),
            (L + "mlp.router.*", H + "mlp.router.*"),
            (L + "mlp.experts.(gate,up).weight", H + "mlp.experts.gate_up_proj", ROWS),
            (L + "mlp.experts.(gate,up).bias", H + "mlp.experts.gate_up_proj_bias", ROWS),
            (L + "mlp.experts.down.weight", H + "mlp.experts.down_proj", COLUMNS),
            (L + "mlp.experts.down.bias", H + "mlp.experts.down_proj_bias", COLUMNS),
        ),
    ),
    Family(
        name="nanochat",
        title="nanochat",
        born="2025-10",
        note=Note(
            "a chatbot for a hundred dollars: norms that learn nothing, squared ReLU, normed queries, capped logits",
            "百ドルで作る対話モデル。学習しない正規化、二乗 ReLU、q と k の正規化、ロジットの上限",
        ),
        parent="llama2",
        takes=("gemma2", "qwen3", "nemotron"),
        paper="Karpathy 2025, https://github.com/karpathy/nanochat",
        licence="MIT",
        changes={
            "vocab": 65_536,
            "context": 2048,
            "dim": 1280,
            "depth": 20,
            "blocks": (
                pre(
                    RMSNorm(affine=False),
                    Attention(10, position=Rope(reverse=True), qk_norm=QKNorm(RMSNorm(affine=False), after_rope=True)),
                    MLP(5120, "relu2"),
                ),
            ),
            "norm": RMSNorm(affine=False),
            "embed": Embed(norm=RMSNorm(affine=False)),
            "head": Head(tied=False, softcap=15.0),
        },
        sizes={
            "d20": Size(560_988_160),
            "d32": Size(1_879_048_192, {"dim": 2048, "depth": 32, "attention.heads": 16, "mlp.hidden": 8192}),
        },
        model_type="nanochat",
        architecture="NanoChatForCausalLM",
        keys={"mlp_bias": None, "head_dim": None, "final_logit_softcapping": Maybe("head.softcap")},
        defaults={"hidden_act": "relu2", "rms_norm_eps": 1e-6},
        names=(
            (L + "mlp.up.*", H + "mlp.fc1.*"),
            (L + "mlp.down.*", H + "mlp.fc2.*"),
        ),
    ),
)
