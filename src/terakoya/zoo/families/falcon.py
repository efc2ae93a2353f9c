"""The Falcon line."""

from __future__ import annotations

from terakoya.model.spec import MLP, Alibi, Attention, Block, Branch, Embed, LayerNorm, Rope, pre
from terakoya.zoo.codec import Act, Codec, Flag, Hidden, KVHeads, Must
from terakoya.zoo.families.gpt import size
from terakoya.zoo.names import Layout
from terakoya.zoo.node import Family, Note, Size
from terakoya.zoo.rotary import Rotary

NORM = LayerNorm()
L, H = "layers.{i}.", "transformer.h.{i}."
FUSED = Layout(groups="kv_heads")
FALCON_NAMES = (
    ("embed.token.weight", "transformer.word_embeddings.weight"),
    ("norm.*", "transformer.ln_f.*"),
    ("head.*", "lm_head.*"),
    (L + "attn_pre.*", H + "input_layernorm.*"),
    (L + "mlp_pre.*", H + "post_attention_layernorm.*"),
    (L + "attn.(q,k,v).*", H + "self_attention.query_key_value.*", FUSED),
    (L + "attn.o.*", H + "self_attention.dense.*"),
    (L + "mlp.up.*", H + "mlp.dense_h_to_4h.*"),
    (L + "mlp.down.*", H + "mlp.dense_4h_to_h.*"),
)


def falcon(parameters: int, dim: int, depth: int, heads: int, kv_heads: int) -> Size:
    """One row of Falcon's table: heads are 64 wide."""
    return size(parameters, dim, depth, heads, **{"attention.kv_heads": kv_heads})


FAMILIES = (
    Family(
        name="falcon-rw",
        title="Falcon-RW",
        born="2023-04",
        note=Note(
            "GPT-3's shape with ALiBi, taught on nothing but filtered web pages",
            "GPT-3 の形に ALiBi。ろ過したウェブ文書だけで訓練",
        ),
        parent="gpt3",
        takes=("bloom",),
        paper="Penedo 2023, arXiv:2306.01116",
        licence="Apache-2.0",
        changes={
            "vocab": 50_304,
            "blocks": (
                pre(
                    NORM,
                    Attention(32, bias=True, out_bias=True, position=Alibi(before_scale=True, rounded=True)),
                    MLP(8192, "gelu", bias=True),
                ),
            ),
            "embed": Embed(),
            "dim": 2048,
            "depth": 24,
        },
        sizes={"1b": Size(1_311_625_216), "7b": size(7_455_727_616, 4096, 36, 64)},
        model_type="falcon",
        architecture="FalconForCausalLM",
        when={"alibi": True},
        fresh=True,
        keys={
            "vocab_size": "vocab",
            "hidden_size": "dim",
            "num_hidden_layers": "depth",
            "num_attention_heads": "attention.heads",
            "max_position_embeddings": "context",
            "ffn_hidden_size": Hidden(width="hidden_size"),
            "activation": Act(),
            "layer_norm_epsilon": "layernorm.eps",
            "num_kv_heads": Codec(),  # transformers fills it in
            "bias": Must(True),
            "alibi": Must(True),
            "multi_query": Must(False),
            "parallel_attn": Must(False),
            "new_decoder_architecture": Must(False),
            "num_ln_in_parallel_attn": Codec(),
            "tie_word_embeddings": "head.tied",
            "rope_parameters": Codec(),
            "rope_theta": Codec(),
        },
        names=FALCON_NAMES,
    ),
    Family(
        name="falcon",
        title="Falcon",
        born="2023-05",
        note=Note(
            "one key-value head for all; both branches under one norm; filtered web text",
            "キーとバリューは全ヘッドで一組。二枝を一つの正規化の下に。ろ過したウェブ文書",
        ),
        parent="gpt-j",
        takes=("palm", "falcon-rw"),
        paper="Almazrouei 2023, arXiv:2311.16867",
        licence="Apache-2.0",
        changes={
            "vocab": 65_024,
            "dim": 4544,
            "depth": 32,
            "blocks": (
                Block(
                    (Branch((Attention(71, kv_heads=1, position=Rope()), MLP(18_176, "gelu")), pre=NORM),),
                ),
            ),
            "head.tied": True,
            "head.bias": False,
        },
        sizes={"7b": Size(6_921_720_704)},
        model_type="falcon",
        architecture="FalconForCausalLM",
        fresh=True,
        keys={
            "vocab_size": "vocab",
            "hidden_size": "dim",
            "num_hidden_layers": "depth",
            "n_layer": "depth",
            "num_attention_heads": "attention.heads",
            "n_head": "attention.heads",
            "max_position_embeddings": "context",
            "ffn_hidden_size": Hidden(width="hidden_size"),
            "activation": Act(),
            "layer_norm_epsilon": "layernorm.eps",
            "num_kv_heads": Codec(),  # transformers writes heads here whatever multi_query says
            "bias": Must(False),
            "alibi": Must(False),
            "multi_query": Flag("attention.kv_heads", 1, None),
            "parallel_attn": Must(True),
            "new_decoder_architecture": Must(False),
            "num_ln_in_parallel_attn": Codec(),
            "tie_word_embeddings": "head.tied",
            "rope_parameters": Rotary(),
        },
        names=FALCON_NAMES,
    ),
    Family(
        name="falcon-40b",
        title="Falcon-40B",
        born="2023-05",
        note=Note(
            "eight groups of queries; each branch has its own norm",
            "クエリを 8 組に。枝ごとに正規化",
        ),
        parent="falcon",
        takes=("gpt-neox",),
        paper="Almazrouei 2023, arXiv:2311.16867",
        licence="Apache-2.0",
        changes={
            "branch.each": True,
            "dim": 8192,
            "depth": 60,
            "attention.heads": 128,
            "attention.kv_heads": 8,
            "mlp.hidden": 32_768,
        },
        sizes={"40b": falcon(41_303_293_952, 8192, 60, 128, 8)},
        model_type="falcon",
        architecture="FalconForCausalLM",
        when={"new_decoder_architecture": True},
        keys={
            "num_kv_heads": KVHeads(),
            "multi_query": Codec(),
            "parallel_attn": Codec(),
            "new_decoder_architecture": Must(True),
            "num_ln_in_parallel_attn": Must(2),
        },
        names=(
            (L + "attn_pre.*", H + "ln_attn.*"),
            (L + "mlp_pre.*", H + "ln_mlp.*"),
        ),
    ),
    Family(
        name="falcon-180b",
        title="Falcon-180B",
        born="2023-09",
        note=Note("Falcon-40B four times larger, on 3.5 trillion tokens", "Falcon-40B の四倍。3.5 兆トークンで訓練"),
        parent="falcon-40b",
        paper="Almazrouei 2023, arXiv:2311.16867",
        licence="Falcon-180B TII licence",
        changes={"dim": 14_848, "depth": 80, "attention.heads": 232, "mlp.hidden": 59_392},
        sizes={"180b": Size(178_557_088_768)},
    ),
)
