"""Japanese models in LLaMA's shape."""

from __future__ import annotations

from terakoya.model.spec import (
    MLP,
    Attention,
    Block,
    Branch,
    RMSNorm,
    Rope,
)
from terakoya.zoo.codec import (
    Codec,
    Shared,
)
from terakoya.zoo.families.llama import size
from terakoya.zoo.names import Layout
from terakoya.zoo.node import Family, Note

L, P = "layers.{i}.", "model.layers.layers.{i}."


FAMILIES = (
    Family(
        name="plamo",
        title="PLaMo",
        born="2023-09",
        note=Note(
            "both branches under one norm; eight query heads share a key head; English and Japanese",
            "二枝を一つの正規化の下に。クエリ 8 ヘッドがキーを共有。英語と日本語",
        ),
        parent="llama",
        takes=("palm",),
        paper="https://huggingface.co/pfnet/plamo-13b",
        licence="Apache-2.0",
        proof="its attention, tiled key heads included, written out in the tests",
        changes={
            "vocab": 50_432,
            "context": 4096,
            "dim": 5120,
            "depth": 40,
            "blocks": (
                Block(
                    (
                        Branch(
                            (
                                Attention(40, kv_heads=5, position=Rope()),
                                MLP(13_824, "silu", gated=True),
                            ),
                            pre=RMSNorm(),
                        ),
                    )
                ),
            ),
        },
        model_type="plamo",
        architecture="PlamoForCausalLM",
        keys={
            "num_key_value_heads": Codec(),
            "head_dim": None,
            "attention_bias": None,
            "mlp_bias": None,
            "hidden_act": None,
            "rope_parameters": None,
            "n_shared_head": Shared(),
        },
        names=(
            ("embed.token.weight", "model.embed_tokens.weight"),
            ("norm.*", "model.norm.*"),
            (L + "attn_pre.*", P + "norm.*"),
            (L + "attn.q.*", P + "self_attn.q_proj.*", Layout(tiled=True)),
            (L + "attn.o.*", P + "self_attn.o_proj.*", Layout(tiled=True, dim=1)),
            *((L + f"attn.{x}.*", P + f"self_attn.{x}_proj.*") for x in "kv"),
            *((L + f"mlp.{x}.*", P + f"mlp.{x}_proj.*") for x in ("gate", "up", "down")),
        ),
    ),
    Family(
        name="llm-jp",
        title="LLM-jp",
        born="2023-10",
        note=Note(
            "made in the open in Japan: GPT-2's shape in its first version, LLaMA's since the second",
            "日本で公開のうちに作られた。初版は GPT-2 の形、第二版から LLaMA の形",
        ),
        parent="llama2",
        paper="LLM-jp 2024, arXiv:2407.03963",
        licence="Apache-2.0",
        changes={"vocab": 99_584},
        sizes={
            "3-1.8b": size(1_867_614_208, 2048, 24, 16, 7168),
            "3-3.7b": size(3_782_913_024, 3072, 28, 24, 8192),
            "3-13b": size(13_707_924_480, 5120, 40, 40, 13824),
        },
    ),
    Family(
        name="calm2",
        title="CALM2",
        born="2023-11",
        note=Note(
            "LLaMA with a Japanese vocabulary and 32,768 tokens of context",
            "日本語の語彙と 32,768 トークンの文脈を持つ LLaMA",
        ),
        parent="llama2",
        paper="https://huggingface.co/cyberagent/calm2-7b",
        licence="Apache-2.0",
        changes={"vocab": 65_024, "context": 32_768, "rope.theta": 500_000.0},
        sizes={"7b": size(7_008_948_224, 4096, 32, 32, 11008)},
    ),
    Family(
        name="tanuki",
        title="Tanuki",
        born="2024-08",
        note=Note("a Japanese model built by volunteers from nothing", "有志が一から作った日本語モデル"),
        parent="llama2",
        takes=("llm-jp",),
        paper="https://huggingface.co/weblab-GENIAC/Tanuki-8B-dpo-v1.0",
        licence="Apache-2.0",
        changes={"vocab": 65_024},
        sizes={"8b": size(7_512_264_704, 4096, 32, 32, 14_336, 8)},
    ),
)
