"""The Gemma line."""

from __future__ import annotations

from typing import Any

from terakoya.model.spec import MLP, Attention, Block, Branch, Full, Linear, QKNorm, RMSNorm, Rope, Window
from terakoya.zoo.codec import Act, Codec, Maybe, Must, Power
from terakoya.zoo.families.llama import size
from terakoya.zoo.layers import Layers
from terakoya.zoo.node import Family, Note, Size
from terakoya.zoo.rotary import TwoRotaries

L, H = "layers.{i}.", "model.layers.{i}."
NORM = RMSNorm(1e-6, offset=1.0)
KINDS = {"sliding_attention": {"attention.reach": Window(4096)}, "full_attention": {"attention.reach": Full()}}


def sandwich(attention: Attention, hidden: int) -> Block:
    """A norm before and one after each branch."""
    mlp = MLP(hidden, "gelu_tanh", gated=True)
    return Block(tuple(Branch((m,), pre=NORM, post=NORM) for m in (attention, mlp)))


def gemma2(reach: Window | Full) -> Block:
    """One of the two blocks that take turns."""
    return sandwich(
        Attention(8, kv_heads=4, head_dim=256, position=Rope(), reach=reach, scale=256**-0.5, softcap=50.0), 9216
    )


def gemma3(rope: Rope, reach: Window | Full) -> Block:
    """One of the two kinds of block."""
    norm = QKNorm(NORM)
    return sandwich(
        Attention(4, kv_heads=1, head_dim=256, position=rope, reach=reach, scale=256**-0.5, qk_norm=norm), 6912
    )


def row(parameters: int, *shape: int, head_dim: int = 256, scalar: int = 256, **more: Any) -> Size:
    """One row: heads are wide, and the scale of scores is told apart from their width."""
    return size(parameters, *shape, **{"attention.head_dim": head_dim, "attention.scale": scalar**-0.5}, **more)


WIDE = {"vocab": 262_208, "context": 131_072, "window.size": 1024, "blocks.5.rope.scaling": Linear(8.0)}

FAMILIES = (
    Family(
        name="gemma",
        title="Gemma",
        born="2024-02",
        note=Note(
            "GeGLU, norms that multiply by 1 + w, a tied table of 256,000 tokens scaled by sqrt(d)",
            "GeGLU、1 + w を掛ける正規化、25.6 万語の共有表を √d 倍",
        ),
        parent="llama2",
        takes=("gemini", "palm"),
        paper="Gemma Team 2024, arXiv:2403.08295",
        licence="Gemma",
        changes={
            "rmsnorm.offset": 1.0,
            "rmsnorm.eps": 1e-6,
            "mlp.act": "gelu_tanh",
            "embed.scale": "sqrt_dim",
            "head.tied": True,
            "vocab": 256_000,
            "context": 8192,
            "dim": 3072,
            "depth": 28,
            "attention.heads": 16,
            "attention.head_dim": 256,
            "mlp.hidden": 24_576,
        },
        sizes={
            "2b": size(2_506_172_416, 2048, 18, 8, 16_384, 1),
            "7b": Size(8_537_680_896),
        },
        model_type="gemma",
        architecture="GemmaForCausalLM",
        keys={"mlp_bias": None, "hidden_activation": Act(), "use_bidirectional_attention": Must(False)},
        defaults={"tie_word_embeddings": True},
    ),
    Family(
        name="gemma2",
        title="Gemma 2",
        born="2024-06",
        note=Note(
            "norms on both sides of a branch; every other layer has a window; scores and logits are capped softly",
            "枝の前後に正規化。一層おきに窓。スコアとロジットを緩やかに抑える",
        ),
        parent="gemma",
        takes=("mistral", "gpt-neo"),
        paper="Gemma Team 2024, arXiv:2408.00118",
        licence="Gemma",
        changes={
            "blocks": (gemma2(Window(4096)), gemma2(Full())),
            "head.softcap": 30.0,
            "dim": 2304,
            "depth": 26,
        },
        sizes={
            "2b": Size(2_614_341_888),
            "9b": row(9_241_705_984, 3584, 42, 16, 14_336, 8),
            "27b": row(27_227_128_320, 4608, 46, 32, 36_864, 16, head_dim=128, scalar=144),
        },
        model_type="gemma2",
        architecture="Gemma2ForCausalLM",
        keys={
            "hidden_act": Codec(),  # files say it; hidden_activation counts
            "layer_types": Layers(KINDS),
            "sliding_window": "window.size",
            "query_pre_attn_scalar": Power("attention.scale", -0.5),
            "attn_logit_softcapping": Maybe("attention.softcap"),
            "final_logit_softcapping": Maybe("head.softcap"),
        },
        names=(
            (L + "attn_post.*", H + "post_attention_layernorm.*"),
            (L + "mlp_pre.*", H + "pre_feedforward_layernorm.*"),
            (L + "mlp_post.*", H + "post_feedforward_layernorm.*"),
        ),
    ),
    Family(
        name="gemma3",
        title="Gemma 3",
        born="2025-03",
        note=Note(
            "five layers with a short window, one that sees all and turns slowly; q and k normed in place of caps",
            "短い窓の五層に全体を見る一層、回転はゆっくり。上限の代わりに q と k を正規化",
        ),
        parent="gemma2",
        takes=("qwen3", "olmo2"),
        paper="Gemma Team 2025, arXiv:2503.19786",
        licence="Gemma",
        changes={
            "blocks": (gemma3(Rope(1e4), Window(512)),) * 5 + (gemma3(Rope(1e6), Full()),),
            "head.softcap": None,
            "vocab": 262_144,
            "context": 32_768,
            "dim": 1152,
        },
        sizes={
            "270m": row(268_098_176, 640, 18, 4, 2048, 1),
            "1b": Size(999_885_952),
            "4b": row(3_880_263_168, 2560, 34, 8, 10_240, 4, **WIDE),
            "12b": row(11_766_034_176, 3840, 48, 16, 15_360, 8, **WIDE),
            "27b": row(27_009_346_304, 5376, 62, 32, 21_504, 16, head_dim=128, scalar=168, **WIDE),
        },
        model_type="gemma3_text",
        architecture="Gemma3ForCausalLM",
        keys={
            "layer_types": Layers(KINDS, period=("sliding_window_pattern", "_sliding_window_pattern")),
            "rope_parameters": TwoRotaries(),
        },
        defaults={"rope_theta": 1e6},
        names=tuple((L + f"attn.{x}_norm.*", H + f"self_attn.{x}_norm.*") for x in "qk"),
    ),
)
