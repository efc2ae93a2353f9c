"""Open models since 2023 beside the great lines: StarCoder 2, StableLM, Granite, Command, GLM, gpt-oss, nanochat …"""

from __future__ import annotations

from terakoya.model.spec import (
    MLP,
    Attention,
    Block,
    Branch,
    Embed,
    Full,
    Head,
    LayerNorm,
    MoE,
    QKNorm,
    RMSNorm,
    Rope,
    Window,
    Yarn,
    pre,
)
from terakoya.zoo.codec import Both, Codec, Flag, HeadDim, Inner, KVHeads, Layers, Maybe, Must, Power
from terakoya.zoo.families.llama import size
from terakoya.zoo.names import Layout
from terakoya.zoo.node import Family, Note, Size
from terakoya.zoo.rotary import Rotary

L, H = "layers.{i}.", "model.layers.{i}."
SWIGLU = MLP(11_008, "silu", gated=True)
BARE = LayerNorm(bias=False)
QK_NAMES = tuple((L + f"attn.{x}_norm.*", H + f"self_attn.{x}_norm.*") for x in "qk")
GATE_UP = (L + "mlp.(gate,up).*", H + "mlp.gate_up_proj.*")
TURNS = Rope(fraction=0.5, interleaved=True)
ROWS = Layout(transpose=True, groups="rows", dim=1)
COLUMNS = Layout(transpose=True, dim=1)


def parallel(norm: LayerNorm, attention: Attention, mlp: MLP) -> Block:
    """Attention and FFN side by side under one norm."""
    return Block((Branch((attention, mlp), pre=norm),))


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
        name="stablelm",
        title="StableLM",
        born="2023-09",
        note=Note(
            "LLaMA with LayerNorm; a quarter of each head turns",
            "LayerNorm の LLaMA。各ヘッドの四分の一が回る",
        ),
        parent="llama2",
        takes=("gpt-neox",),
        paper="Tow 2023, StableLM 3B 4E1T; Bellagente 2024, arXiv:2402.17834",
        licence="CC BY-SA 4.0",
        changes={
            "vocab": 50_304,
            "dim": 2560,
            "blocks": (pre(LayerNorm(), Attention(32, position=Rope(fraction=0.25)), MLP(6912, "silu", gated=True)),),
            "norm": LayerNorm(),
        },
        sizes={
            "3b": Size(2_795_443_200),
            "2-1.6b": size(1_644_515_328, 2048, 24, 32, 5632, vocab=100_352, **{"attention.bias": True}),
        },
        model_type="stablelm",
        architecture="StableLmForCausalLM",
        keys={
            "rms_norm_eps": None,
            "attention_bias": None,
            "mlp_bias": None,
            "head_dim": None,
            "layer_norm_eps": "layernorm.eps",
            "use_qkv_bias": "attention.bias",
            "qk_layernorm": Must(False),
            "use_parallel_residual": Must(False),
            "rope_parameters": Rotary(partial=True),
        },
    ),
    Family(
        name="stablelm2-12b",
        title="Stable LM 2 12B",
        born="2024-04",
        note=Note(
            "both branches under one norm; each head norms its queries and keys by itself",
            "二枝を一つの正規化の下に。q と k はヘッドごとに別々の正規化",
        ),
        parent="stablelm",
        takes=("cohere",),
        paper="Bellagente 2024, arXiv:2402.17834",
        licence="Stability AI non-commercial",
        changes={
            "vocab": 100_352,
            "dim": 5120,
            "depth": 40,
            "blocks": (
                parallel(
                    LayerNorm(),
                    Attention(
                        32,
                        kv_heads=8,
                        position=Rope(fraction=0.25),
                        qk_norm=QKNorm(LayerNorm(bias=False), over="heads"),
                    ),
                    MLP(13_824, "silu", gated=True),
                ),
            ),
        },
        sizes={"12b": Size(12_143_185_920)},
        model_type="stablelm",
        architecture="StableLmForCausalLM",
        when={"use_parallel_residual": True},
        keys={
            "qk_layernorm": Flag("attention.qk_norm", QKNorm(LayerNorm(bias=False), over="heads"), None),
            "use_parallel_residual": Must(True),
        },
        defaults={"qk_layernorm": False},
        names=tuple((L + f"attn.{x}_norm.*", H + f"self_attn.{x}_layernorm.norms.{{e}}.*") for x in "qk"),
    ),
    Family(
        name="starcoder2",
        title="StarCoder2",
        born="2024-02",
        note=Note(
            "code in 600 languages; rotary positions, grouped queries, a window; the MLP stays GPT-2's",
            "600 言語のコード。回転位置・グループ化クエリ・窓。MLP は GPT-2 のまま",
        ),
        parent="mistral",
        takes=("gpt-bigcode",),
        paper="Lozhkov 2024, arXiv:2402.19173",
        licence="OpenRAIL-M",
        changes={
            "vocab": 49_152,
            "context": 16_384,
            "dim": 3072,
            "depth": 30,
            "blocks": (
                pre(
                    LayerNorm(),
                    Attention(
                        24, kv_heads=2, bias=True, out_bias=True, position=Rope(999_999.4420358813), reach=Window(4096)
                    ),
                    MLP(12_288, bias=True),
                ),
            ),
            "norm": LayerNorm(),
            "head.tied": True,
        },
        sizes={
            "3b": Size(3_030_371_328),
            "7b": size(7_173_923_840, 4608, 32, 36, 18_432, 4, **{"rope.theta": 1e6}),
            "15b": size(15_957_889_024, 6144, 40, 48, 24_576, 4, **{"rope.theta": 1e5, "head.tied": False}),
        },
        model_type="starcoder2",
        architecture="Starcoder2ForCausalLM",
        keys={
            "rms_norm_eps": None,
            "head_dim": None,
            "norm_epsilon": "layernorm.eps",
            "norm_type": Must("layer_norm"),
            "mlp_type": Must("default"),
            "use_bias": Both(("attention.bias", "attention.out_bias", "mlp.bias")),
        },
        defaults={"tie_word_embeddings": True, "rope_theta": 1e4, "sliding_window": None},
        names=(
            (L + "mlp.up.*", H + "mlp.c_fc.*"),
            (L + "mlp.down.*", H + "mlp.c_proj.*"),
        ),
    ),
    Family(
        name="nemotron",
        title="Nemotron-4",
        born="2024-02",
        note=Note(
            "squared ReLU; LayerNorm that multiplies by 1 + w; half of each head turns",
            "二乗した ReLU、1 + w を掛ける LayerNorm、各ヘッドの半分が回る",
        ),
        parent="llama2",
        takes=("megatron-lm",),
        paper="Parmar 2024, arXiv:2402.16819",
        licence="NVIDIA open model licence",
        changes={
            "vocab": 256_000,
            "dim": 6144,
            "blocks": (
                pre(
                    LayerNorm(offset=1.0), Attention(48, kv_heads=8, position=Rope(fraction=0.5)), MLP(24_576, "relu2")
                ),
            ),
            "norm": LayerNorm(offset=1.0),
        },
        sizes={"15b": Size(15_628_775_424)},
        model_type="nemotron",
        architecture="NemotronForCausalLM",
        keys={"rms_norm_eps": None, "norm_eps": "layernorm.eps", "rope_parameters": Rotary(partial=True)},
        defaults={"hidden_act": "relu2"},
    ),
    Family(
        name="cohere",
        title="Command R",
        born="2024-03",
        note=Note(
            "both branches under one norm without bias; neighbours turn together; logits divided by 16",
            "二枝をバイアスなしの一つの正規化の下に。隣り合う成分が回り、ロジットは 16 で割る",
        ),
        parent="llama2",
        takes=("palm", "gpt-j"),
        paper="Cohere 2024, Command R model card",
        licence="CC BY-NC 4.0",
        changes={
            "vocab": 256_000,
            "context": 131_072,
            "dim": 8192,
            "depth": 40,
            "blocks": (
                parallel(BARE, Attention(64, position=Rope(8e6, interleaved=True)), MLP(22_528, "silu", gated=True)),
            ),
            "norm": BARE,
            "head": Head(scale=0.0625),
        },
        sizes={
            "r": Size(34_980_831_232),
            "r-plus": size(
                *(103_810_674_688, 12_288, 64, 96, 33_792, 8),
                **{"rope.theta": 75e6, "attention.qk_norm": QKNorm(BARE, over="heads")},
            ),
            "aya-8b": size(8_028_033_024, 4096, 32, 32, 14_336, 8, context=8192, **{"rope.theta": 1e4}),
        },
        model_type="cohere",
        architecture="CohereForCausalLM",
        keys={
            "rms_norm_eps": None,
            "mlp_bias": None,
            "head_dim": None,
            "layer_norm_eps": "layernorm.eps",
            "logit_scale": "head.scale",
            "use_qk_norm": Flag("attention.qk_norm", QKNorm(BARE, over="heads"), None),
        },
        defaults={"tie_word_embeddings": True, "rope_theta": 5e5},
        names=QK_NAMES,
    ),
    Family(
        name="cohere2",
        title="Command R7B, Command A",
        born="2024-12",
        note=Note(
            "three layers with a window and rotary positions, then one that sees all and has none",
            "窓と回転位置の三層に、位置なしで全体を見る一層",
        ),
        parent="cohere",
        takes=("gemma2",),
        paper="Cohere 2025, arXiv:2504.00698",
        licence="CC BY-NC 4.0",
        changes={
            "dim": 4096,
            "depth": 32,
            "blocks": tuple(
                parallel(BARE, Attention(32, kv_heads=8, position=rope, reach=reach), MLP(14_336, "silu", gated=True))
                for rope, reach in ((Rope(5e4, interleaved=True), Window(4096)),) * 3 + ((None, Full()),)
            ),
            "head.scale": 0.25,
        },
        sizes={"r7b": Size(8_028_033_024)},
        model_type="cohere2",
        architecture="Cohere2ForCausalLM",
        keys={
            "use_qk_norm": Must(False),
            "head_dim": HeadDim(),
            "layer_types": Layers(
                {
                    "sliding_attention": {
                        "attention.reach": Window(4096),
                        "attention.position": Rope(interleaved=True),
                    },
                    "full_attention": {"attention.reach": Full(), "attention.position": None},
                },
                period=("sliding_window_pattern", "_sliding_window_pattern"),
            ),
            "sliding_window": "window.size",
            "layer_switch": Codec(),
            "order_of_interleaved_layers": Must("local_attn_first"),
            "position_embedding_type": Must("rope_gptj"),
            "rotary_pct": Must(1.0),
            "use_embedding_sharing": Must(True),
            "use_gated_activation": Must(True),
            "use_parallel_block": Must(True),
            "use_parallel_embedding": Codec(),
            "rope_parameters": Rotary(),
        },
        defaults={"logit_scale": 0.0625, "rope_theta": 1e4},
    ),
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
