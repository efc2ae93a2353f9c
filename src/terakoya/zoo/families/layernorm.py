"""LLaMA's relatives that keep LayerNorm: StableLM, StarCoder2, Nemotron, Command."""

from __future__ import annotations

from terakoya.model.spec import (
    MLP,
    Attention,
    Block,
    Branch,
    Full,
    Head,
    LayerNorm,
    QKNorm,
    Rope,
    Window,
    pre,
)
from terakoya.zoo.codec import Both, Codec, Flag, HeadDim, Must
from terakoya.zoo.families.llama import size
from terakoya.zoo.layers import Layers
from terakoya.zoo.node import Family, Note, Size
from terakoya.zoo.rotary import Rotary

L, H = "layers.{i}.", "model.layers.{i}."
BARE = LayerNorm(bias=False)
QK_NAMES = tuple((L + f"attn.{x}_norm.*", H + f"self_attn.{x}_norm.*") for x in "qk")


def parallel(norm: LayerNorm, attention: Attention, mlp: MLP) -> Block:
    """Attention and FFN side by side under one norm."""
    return Block((Branch((attention, mlp), pre=norm),))


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
)
