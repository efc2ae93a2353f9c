"""T5's line: text to text, with norms before each branch and one table of distances per half."""

from __future__ import annotations

from typing import Any

from terakoya.model.spec import MLP, Attention, Buckets, Cross, Embed, Head, Model, MoE, RMSNorm, pre
from terakoya.zoo.codec import Act, Both, Codec, Told
from terakoya.zoo.families.transformer import BARE
from terakoya.zoo.names import Rule
from terakoya.zoo.node import Family, Note, Size
from terakoya.zoo.paired import Depth, Projection, Scaled, Sparse, Tied

NORM, NEAR = RMSNorm(), Buckets(shared=True)
SELF = Attention(8, head_dim=64, position=NEAR, scale=1.0)
SEEN = Attention(8, head_dim=64, position=NEAR, scale=1.0, causal=False)
CROSS, FFN = Cross(8, head_dim=64, scale=1.0), MLP(2048, "relu")
EXPERTS = MoE(FFN, 8, 1, normalize=False, capacity=64)


def size(parameters: int, dim: int, depth: int, heads: int, hidden: int, head: int = 64, **more: Any) -> Size:
    """One row; the original scales its logits by dim ** -0.5."""
    changes = {"dim": dim, "encoder.dim": dim, "depth": depth, "encoder.depth": depth, "mlp.hidden": hidden}
    changes |= {f"{kind}.heads": heads for kind in ("attention", "cross")}
    changes |= {f"{kind}.head_dim": head for kind in ("attention", "cross")}
    return Size(parameters, changes | more)


def v1(parameters: int, dim: int, depth: int, heads: int, hidden: int, head: int = 64) -> Size:
    return size(parameters, dim, depth, heads, hidden, head, **{"head.scale": dim**-0.5})


def half(ours: str, theirs: str, ffn: int) -> tuple[Rule, ...]:
    """Where one half keeps its layers; the feed-forward net is the `ffn`-th part of each."""
    L, H = f"{ours}layers.{{i}}.", f"{theirs}.block.{{i}}.layer."
    return (
        *((f"{L}attn.{x}.*", f"{H}0.SelfAttention.{x}.*") for x in "qkvo"),
        *((f"{L}cross.{x}.*", f"{H}1.EncDecAttention.{x}.*") for x in "qkvo"),
        (f"{L}attn.position.weight", f"{H}0.SelfAttention.relative_attention_bias.weight"),
        (f"{ours}relative.weight", f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        (f"{L}attn_pre.*", f"{H}0.layer_norm.*"),
        (f"{L}cross_pre.*", f"{H}1.layer_norm.*"),
        (f"{L}mlp_pre.*", f"{H}{ffn}.layer_norm.*"),
        (f"{L}mlp.up.*", f"{H}{ffn}.DenseReluDense.wi.*"),
        (f"{L}mlp.down.*", f"{H}{ffn}.DenseReluDense.wo.*"),
        (f"{ours}norm.*", f"{theirs}.final_layer_norm.*"),
    )


def gated(ours: str, theirs: str, ffn: int) -> tuple[Rule, ...]:
    """Where one half keeps gated feed-forward nets."""
    L, H = f"{ours}layers.{{i}}.mlp.", f"{theirs}.block.{{i}}.layer.{ffn}.DenseReluDense."
    return ((f"{L}gate.*", f"{H}wi_0.*"), (f"{L}up.*", f"{H}wi_1.*"))


def switched(ours: str, theirs: str, ffn: int) -> tuple[Rule, ...]:
    """Where one half of Switch keeps its feed-forward nets, dense or chosen."""
    L, H = f"{ours}layers.{{i}}.mlp.", f"{theirs}.block.{{i}}.layer.{ffn}.mlp."
    return (
        (f"{L}up.*", f"{H}wi.*"),
        (f"{L}down.*", f"{H}wo.*"),
        (f"{L}router.*", f"{H}router.classifier.*"),
        (f"{L}experts.up.*", f"{H}experts.expert_{{e}}.wi.*"),
        (f"{L}experts.down.*", f"{H}experts.expert_{{e}}.wo.*"),
    )


GATED = (*gated("", "decoder", 2), *gated("encoder.", "encoder", 1))

FAMILIES = (
    Family(
        name="t5",
        title="T5",
        born="2019-10",
        note=Note(
            "every task as text to text; relative position buckets, missing spans restored",
            "どの課題も文から文へ。区切った相対位置、抜けた区間の復元",
        ),
        parent="transformer",
        takes=("bert",),
        paper="Raffel 2019, arXiv:1910.10683",
        licence="Apache-2.0",
        changes={
            "vocab": 32_128,
            "blocks": (pre(NORM, SELF, CROSS, FFN),),
            "norm": NORM,
            "embed": Embed(shared=True),
            "head": Head(scale=512**-0.5),
            "encoder": Model(
                vocab=32_128, dim=512, depth=6, context=512, blocks=(pre(NORM, SEEN, FFN),), norm=NORM, head=BARE
            ),
        },
        sizes={
            "small": v1(60_506_624, 512, 6, 8, 2048),
            "base": v1(222_903_552, 768, 12, 12, 3072),
            "large": v1(737_668_096, 1024, 24, 16, 4096),
            "3b": v1(2_851_598_336, 1024, 24, 32, 16_384, 128),
            "11b": v1(11_307_321_344, 1024, 24, 128, 65_536, 128),
        },
        model_type="t5",
        architecture="T5ForConditionalGeneration",
        fresh=True,
        keys={
            "vocab_size": Both(("vocab", "encoder.vocab")),
            "d_model": Both(("dim", "encoder.dim")),
            "d_kv": Both(("attention.head_dim", "cross.head_dim")),
            "num_layers": "encoder.depth",
            "num_decoder_layers": Depth(),
            "num_heads": Both(("attention.heads", "cross.heads")),
            "d_ff": "mlp.hidden",
            "relative_attention_num_buckets": "buckets.count",
            "relative_attention_max_distance": "buckets.furthest",
            "layer_norm_epsilon": "rmsnorm.eps",
            "feed_forward_proj": Projection(),
            "tie_word_embeddings": Tied(),
            "scale_decoder_outputs": Scaled(),
            "n_positions": Both(("context", "encoder.context")),
            "dense_act_fn": Codec(),  # both said by feed_forward_proj
            "is_gated_act": Codec(),
            "dropout_rate": Codec(),
            "initializer_factor": Codec(),
            "output_past": Codec(),
        },
        names=(
            ("embed.token.weight", "shared.weight"),
            ("head.weight", "lm_head.weight"),
            *half("", "decoder", 2),
            *half("encoder.", "encoder", 1),
        ),
        copies={
            "encoder.embed_tokens.weight": "shared.weight",
            "decoder.embed_tokens.weight": "shared.weight",
        },
    ),
    Family(
        name="t5-v1.1",
        title="T5 v1.1",
        born="2020-08",
        note=Note(
            "gated GELU, an untied head, pretraining on C4 alone",
            "門つき GELU、出力層は別の重み、C4 だけで事前学習",
        ),
        parent="t5",
        paper="Shazeer 2020, arXiv:2002.05202",
        licence="Apache-2.0",
        changes={"mlp.gated": True, "mlp.act": "gelu_tanh", "head": Head(tied=False)},
        sizes={
            "small": size(76_961_152, 512, 8, 6, 1024),
            "base": size(247_577_856, 768, 12, 12, 2048),
            "large": size(783_150_080, 1024, 24, 16, 2816),
            "xl": size(2_849_757_184, 2048, 24, 32, 5120),
            "xxl": size(11_135_332_352, 4096, 24, 64, 10_240),
        },
        model_type="t5",
        architecture="T5ForConditionalGeneration",
        when={"feed_forward_proj": "gated-gelu"},
        names=GATED,
    ),
    Family(
        name="mt5",
        title="mT5",
        born="2020-10",
        note=Note("T5 v1.1 in 101 languages", "101 言語の T5 v1.1"),
        parent="t5-v1.1",
        takes=("t5",),
        paper="Xue 2020, arXiv:2010.11934",
        licence="Apache-2.0",
        changes={"vocab": 250_112, "encoder.vocab": 250_112, "depth": 8, "encoder.depth": 8},
        sizes={
            "small": size(300_176_768, 512, 8, 6, 1024),
            "base": size(582_401_280, 768, 12, 12, 2048),
            "large": size(1_229_581_312, 1024, 24, 16, 2816),
            "xl": size(3_742_619_648, 2048, 24, 32, 5120),
            "xxl": size(12_921_057_280, 4096, 24, 64, 10_240),
        },
        model_type="mt5",
        architecture="MT5ForConditionalGeneration",
        keys={"tie_word_embeddings": "head.tied", "scale_decoder_outputs": None},
        defaults={"tie_word_embeddings": True},
    ),
    Family(
        name="umt5",
        title="umT5",
        born="2023-04",
        note=Note(
            "languages sampled evenly; every layer has its own table of distances",
            "言語を均等に取り出して学び、層ごとに距離の表を持つ",
        ),
        parent="mt5",
        paper="Chung 2023, arXiv:2304.09151",
        licence="Apache-2.0",
        changes={"buckets.shared": False, "vocab": 256_384, "encoder.vocab": 256_384},
        sizes={"small": size(306_601_984, 512, 8, 6, 1024)},
        model_type="umt5",
        architecture="UMT5ForConditionalGeneration",
        defaults={"tie_word_embeddings": True, "vocab_size": 250_112},
    ),
    Family(
        name="ul2",
        title="UL2",
        born="2022-05",
        note=Note(
            "three kinds of denoising told apart by a token, at 20B",
            "印のトークンで区別する三種の復元。20B",
        ),
        parent="t5-v1.1",
        takes=("t5",),
        paper="Tay 2022, arXiv:2205.05131",
        licence="Apache-2.0",
        changes={"mlp.act": "silu"},
        sizes={"20b": size(19_591_209_984, 4096, 32, 16, 16_384, 256)},  # the files' own head is 131.6M of it
        model_type="t5",
        architecture="T5ForConditionalGeneration",
        when={"feed_forward_proj": "gated-silu"},
    ),
    Family(
        name="switch",
        title="Switch Transformer",
        born="2021-01",
        note=Note(
            "T5 whose every other layer sends each token to one expert of many, as long as it has room",
            "一層おきに各トークンを多数の専門家の一つへ送る T5。席が埋まれば素通りさせる",
        ),
        parent="t5",
        paper="Fedus 2021, arXiv:2101.03961",
        licence="Apache-2.0",
        changes={
            "blocks": (pre(NORM, SELF, CROSS, FFN), pre(NORM, SELF, CROSS, EXPERTS)),
            "encoder.blocks": (pre(NORM, SEEN, FFN), pre(NORM, SEEN, EXPERTS)),
        },
        sizes={"base-8": v1(619_339_008, 768, 12, 12, 3072)},
        model_type="switch_transformers",
        architecture="SwitchTransformersForConditionalGeneration",
        keys={
            "num_layers": Told("encoder.depth"),  # read with the kinds of the encoder's layers
            "num_sparse_encoder_layers": Sparse("encoder", "num_layers", FFN, EXPERTS),
            "num_sparse_decoder_layers": Sparse("decoder", "num_decoder_layers", FFN, EXPERTS),
            "num_decoder_layers": Depth(),
            "feed_forward_proj": None,
            "dense_act_fn": Act(),
            "num_experts": "moe.count",
            "expert_capacity": "moe.capacity",
            "router_bias": "moe.router_bias",
            "scale_decoder_outputs": None,
            "tie_word_embeddings": Tied(),
            **dict.fromkeys(("router_dtype", "router_ignore_padding_tokens", "router_z_loss_coef"), Codec()),
            **dict.fromkeys(("add_router_probs", "router_type", "num_sparse_layers"), Codec()),
        },
        defaults={"d_model": 768, "num_layers": 12, "num_heads": 12, "dense_act_fn": "relu"},
        names=(*switched("", "decoder", 2), *switched("encoder.", "encoder", 1)),
    ),
)
