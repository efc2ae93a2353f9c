"""The phi line: small models on textbook-like data."""

from __future__ import annotations

from typing import Any

from terakoya.model.spec import MLP, Attention, Block, Branch, Full, LayerNorm, QKNorm, Rope, Window
from terakoya.zoo.codec import Act, Flag, KVHeads, Sliding
from terakoya.zoo.families.llama import size
from terakoya.zoo.node import Family, Note, Size
from terakoya.zoo.rotary import Rotary, Trained

L, H = "layers.{i}.", "model.layers.{i}."


def phi3(parameters: int, dim: int, depth: int, heads: int, hidden: int, kv_heads: int, **more: Any) -> Size:
    """One row of phi-3's table."""
    return size(parameters, dim, depth, heads, hidden, kv_heads, **more)


FAMILIES = (
    Family(
        name="phi1",
        title="phi-1",
        born="2023-06",
        note=Note(
            "GPT-J's block with biases; seven billion tokens of textbooks and exercises teach it Python",
            "バイアスを加えた GPT-J の形。教科書と演習 70 億トークンで Python を学ぶ",
        ),
        parent="gpt-j",
        takes=("codegen", "gpt-neox"),
        paper="Gunasekar 2023, arXiv:2306.11644",
        licence="MIT",
        changes={
            "vocab": 51_200,
            "dim": 2048,
            "depth": 24,
            "blocks": (
                Block(
                    (
                        Branch(
                            (
                                Attention(32, bias=True, out_bias=True, position=Rope(fraction=0.5)),
                                MLP(8192, bias=True),
                            ),
                            pre=LayerNorm(),
                        ),
                    )
                ),
            ),
        },
        sizes={"1.3b": Size(1_418_270_720)},
        model_type="phi",
        architecture="PhiForCausalLM",
        fresh=True,
        keys={
            "vocab_size": "vocab",
            "hidden_size": "dim",
            "num_hidden_layers": "depth",
            "num_attention_heads": "attention.heads",
            "num_key_value_heads": KVHeads(),
            "max_position_embeddings": "context",
            "intermediate_size": "mlp.hidden",
            "hidden_act": Act(),
            "layer_norm_eps": "layernorm.eps",
            "qk_layernorm": Flag("attention.qk_norm", QKNorm(LayerNorm()), None),
            "rope_parameters": Rotary(partial=True),
            "tie_word_embeddings": "head.tied",
        },
        names=(
            ("embed.token.weight", "model.embed_tokens.weight"),
            ("norm.*", "model.final_layernorm.*"),
            ("head.*", "lm_head.*"),
            (L + "attn_pre.*", H + "input_layernorm.*"),
            *((L + f"attn.{x}.*", H + f"self_attn.{x}_proj.*") for x in "qkv"),
            (L + "attn.o.*", H + "self_attn.dense.*"),
            *((L + f"attn.{x}_norm.*", H + f"self_attn.{x}_layernorm.*") for x in "qk"),
            (L + "mlp.up.*", H + "mlp.fc1.*"),
            (L + "mlp.down.*", H + "mlp.fc2.*"),
        ),
    ),
    Family(
        name="phi1.5",
        title="phi-1.5",
        born="2023-09",
        note=Note("the same for common sense in language", "同じ方法で常識的な文章を学ぶ"),
        parent="phi1",
        paper="Li 2023, arXiv:2309.05463",
        licence="MIT",
        sizes={"1.3b": Size(1_418_270_720)},
    ),
    Family(
        name="phi2",
        title="phi-2",
        born="2023-12",
        note=Note("twice as large, begun from phi-1.5's knowledge", "phi-1.5 の知識から始めて倍の大きさに"),
        parent="phi1.5",
        paper="Javaheripi 2023, Phi-2: the surprising power of small language models",
        licence="MIT",
        changes={"dim": 2560, "depth": 32, "mlp.hidden": 10_240, "rope.fraction": 0.4},
        sizes={"2.7b": Size(2_779_683_840)},
    ),
    Family(
        name="phi3",
        title="phi-3",
        born="2024-04",
        note=Note(
            "LLaMA's block with queries, keys and values in one matrix; long context by divided frequencies",
            "LLaMA の形で q・k・v を一つの行列に。周波数を割って長い文脈に",
        ),
        parent="llama2",
        takes=("phi2", "mistral"),
        paper="Abdin 2024, arXiv:2404.14219",
        licence="MIT",
        changes={"vocab": 32_064, "attention.reach": Window(2047), "mlp.hidden": 8192, "dim": 3072},
        sizes={
            "mini": Size(3_821_079_552),
            "medium": phi3(13_960_238_080, 5120, 40, 40, 17_920, 10),
        },
        model_type="phi3",
        architecture="Phi3ForCausalLM",
        keys={
            "sliding_window": Sliding(),
            "attention_bias": None,
            "mlp_bias": None,
            "head_dim": None,
            "original_max_position_embeddings": Trained(),
        },
        defaults={"rms_norm_eps": 1e-5, "sliding_window": None},
        names=(
            (L + "attn.(q,k,v).*", H + "self_attn.qkv_proj.*"),
            (L + "mlp.(gate,up).*", H + "mlp.gate_up_proj.*"),
        ),
    ),
    Family(
        name="phi4",
        title="phi-4",
        born="2024-12",
        note=Note("synthetic data through and through; no window", "大部分を合成データで訓練。窓なし"),
        parent="phi3",
        takes=("llama3",),
        paper="Abdin 2024, arXiv:2412.08905",
        licence="MIT",
        changes={"vocab": 100_352, "context": 16_384, "attention.reach": Full(), "rope.theta": 250_000.0},
        sizes={
            "14b": phi3(14_659_507_200, 5120, 40, 40, 17_920, 10),
            "mini": phi3(
                3_836_021_760,
                *(3072, 32, 24, 8192, 8),
                **{"vocab": 200_064, "rope.fraction": 0.75, "rope.theta": 1e4, "head.tied": True},
            ),
        },
    ),
)
