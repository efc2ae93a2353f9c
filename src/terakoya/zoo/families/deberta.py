"""DeBERTa: what a word says and where it stands, told apart in the scores."""

from __future__ import annotations

from typing import Any

from terakoya.model.spec import (
    MLP,
    Attention,
    Block,
    Branch,
    Conv,
    Disentangled,
    Embed,
    Head,
    LayerNorm,
    Learned,
    Transform,
)
from terakoya.zoo.codec import Codec, Flag, Must
from terakoya.zoo.families.bert import body
from terakoya.zoo.families.transformer import BARE
from terakoya.zoo.names import Layout
from terakoya.zoo.node import Family, Note, Part, Size
from terakoya.zoo.paired import Apart, ApartSaid, Convolution, ConvSaid, Narrow

NORM = LayerNorm(1e-7)
L, H = "layers.{i}.attn.", "deberta.encoder.layer.{i}.attention.self."


def size(parameters: int, dim: int, depth: int, heads: int, **more: Any) -> Size:
    return Size(parameters, {"dim": dim, "depth": depth, "attention.heads": heads, "mlp.hidden": 4 * dim} | more)


FAMILIES = (
    Family(
        name="deberta",
        title="DeBERTa",
        born="2020-06",
        note=Note("content and position kept apart in the attention scores", "注意の得点で内容と位置を分けて扱う"),
        parent="bert",
        takes=("transformer-xl",),
        paper="He 2020, arXiv:2006.03654",
        licence="MIT",
        changes={
            "vocab": 50_265,
            "blocks": (
                Block(
                    (
                        Branch(
                            (Attention(12, None, None, True, True, False, False, Disentangled()),),
                            out=NORM,
                        ),
                        Branch((MLP(3072, "gelu", bias=True),), out=NORM),
                    )
                ),
            ),
            "embed": Embed(norm=NORM),
            "head": Head(bias=True, transform=Transform(norm=NORM)),
            "pool": None,
        },
        sizes={"base": size(139_244_121, 768, 12, 12), "large": size(406_264_921, 1024, 24, 16)},
        model_type="deberta",
        architecture="DebertaForMaskedLM",
        architectures={"DebertaModel": {"head": BARE}},
        keys={
            "relative_attention": Apart(),
            "max_relative_positions": ApartSaid("reach"),
            "pos_att_type": ApartSaid("terms"),
            "norm_rel_ebd": ApartSaid("norm", ((True, "layer_norm"), (False, "none"))),
            "position_biased_input": Flag("embed.position", Learned(), None),
            "embedding_size": Narrow(whole=False),
            "legacy": Must(True),
            "talking_head": Must(False),
            "pooler_dropout": Codec(),
            "pooler_hidden_act": Codec(),
            "pooler_hidden_size": Codec(),
            "padding_idx": Codec(),
        },
        defaults={
            "layer_norm_eps": 1e-7,
            "type_vocab_size": 0,
            "relative_attention": False,
            "position_biased_input": True,
        },
        names=(
            (L + "(q,k,v).weight", H + "in_proj.weight", Layout(groups="heads")),
            (L + "q.bias", H + "q_bias"),
            (L + "v.bias", H + "v_bias"),
            (L + "position.k.*", H + "pos_proj.*"),
            (L + "position.q.*", H + "pos_q_proj.*"),
            ("relative.table.weight", "deberta.encoder.rel_embeddings.weight"),
            ("relative.norm.*", "deberta.encoder.LayerNorm.*"),
            ("embed.project.*", "deberta.embeddings.embed_proj.*"),
            *body("deberta"),
        ),
        parts=(Part("cls.predictions.bias", absent={"head": BARE}),),
    ),
    Family(
        name="deberta-v2",
        title="DeBERTa v2",
        born="2021-02",
        note=Note(
            "distances in buckets that grow by logarithm; a convolution after the first layer",
            "距離を対数で広がる区切りに入れ、最初の層のあとに畳み込みを置く",
        ),
        parent="deberta",
        paper="He 2020, arXiv:2006.03654",
        licence="MIT",
        changes={
            "vocab": 128_100,
            "attention.key_bias": True,
            "disentangled.buckets": 256,
            "disentangled.own": False,
            "disentangled.norm": True,
            "conv": Conv(act="gelu"),
        },
        sizes={"xlarge": size(887_085_156, 1536, 24, 24)},
        model_type="deberta-v2",
        architecture="DebertaV2ForMaskedLM",
        architectures={"DebertaV2Model": {"head": BARE}},
        keys={
            "position_buckets": ApartSaid("buckets", ((None, -1),)),
            "share_att_key": ApartSaid("own", ((True, False), (False, True))),
            "conv_kernel_size": Convolution(),
            "conv_act": ConvSaid("act"),
            "conv_groups": ConvSaid("groups"),
            "attention_head_size": "attention.head_dim",
        },
        defaults={
            "layer_norm_eps": 1e-7,
            "type_vocab_size": 0,
            "relative_attention": False,
            "position_biased_input": True,
            "conv_kernel_size": 0,
        },
        names=(
            (L + "q.*", H + "query_proj.*"),
            (L + "k.*", H + "key_proj.*"),
            (L + "v.*", H + "value_proj.*"),
            (L + "position.k.*", H + "pos_key_proj.*"),
            (L + "position.q.*", H + "pos_query_proj.*"),
            ("conv.conv.*", "deberta.encoder.conv.conv.*"),
            ("conv.norm.*", "deberta.encoder.conv.LayerNorm.*"),
        ),
    ),
    Family(
        name="deberta-v3",
        title="DeBERTa v3",
        born="2021-11",
        note=Note(
            "ELECTRA's objective with embeddings that the two networks share without pulling at each other",
            "ELECTRA の目的関数。二つの網が引っぱり合わない共有埋め込み",
        ),
        parent="deberta-v2",
        takes=("electra",),
        paper="He 2021, arXiv:2111.09543",
        licence="MIT",
        changes={"conv": None},
        sizes={"base": size(184_551_780, 768, 12, 12), "large": size(435_191_908, 1024, 24, 16)},
    ),
)
