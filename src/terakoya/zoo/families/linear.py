"""Attention made linear, and the state spaces before Mamba."""

from __future__ import annotations

from dataclasses import replace

from terakoya.model.spec import MLP, Attention, Block, Embed, Head, LayerNorm, RMSNorm, Window, pre
from terakoya.model.spec_recurrent import (
    H3,
    S4,
    S4D,
    GatedDelta,
    Hyena,
    LinearAttention,
    Retention,
    Rwkv7,
    Rwkv7Channel,
)
from terakoya.model.spec_sparse import Axial, Fixed, Local, Lsh, Strided
from terakoya.zoo.codec import Act, Codec, Constant, Has, Maybe, Must, Told
from terakoya.zoo.node import Family, Note, Size
from terakoya.zoo.reformer import AxialShape, AxialWidths, BucketCount, Causal, Each, HeadWidth, LayerList

NORM = LayerNorm()
WIDE = MLP(3072, bias=True)


def rwkv7(heads: int, decay: int, rate: int, gate: int, value: int) -> tuple[Block, Block]:
    """The first layer and the others."""
    first, feed = Rwkv7(heads, decay, rate, gate, value=None), Rwkv7Channel(256 * heads)
    return pre(NORM, first, feed), pre(NORM, replace(first, value=value), feed)


SPARSE = Attention(8, bias=True, out_bias=True)
FINE = LayerNorm(1e-12)
LOCAL, HASHED = Attention(8, reach=Local(64)), Lsh(8, rounds=2, chunk=64)
R = "reformer.encoder.layers.{i}."
UNREAD = ("axial_norm_std", "chunk_size_lm_head", "local_attention_probs_dropout_prob", "output_past",
          "lsh_attention_probs_dropout_prob", "num_chunks_before", "num_chunks_after", "intermediate_size")  # fmt: skip
ABSENT = {
    "vocab_size": 320, "hidden_size": 256, "num_attention_heads": 12, "attention_head_size": 64, "num_hashes": 1,
    "attn_layers": ["local", "lsh"] * 3, "feed_forward_size": 512, "max_position_embeddings": 4096,
    "axial_pos_shape": [64, 64], "axial_pos_embds_dim": [64, 192],
}  # fmt: skip

FAMILIES = (
    Family(
        name="sparse-transformer",
        title="Sparse Transformer",
        born="2019-04",
        note=Note(
            "each position sees a local band and a stride: cost n√n instead of n²",
            "近くの帯と一定間隔だけを見る。計算量は n² から n√n へ",
        ),
        parent="gpt2",
        takes=("transformer",),
        paper="Child 2019, arXiv:1904.10509",
        proof="attention under the pattern's mask",
        changes={
            "vocab": 256,
            "dim": 512,
            "depth": 30,
            "context": 12_288,
            "blocks": tuple(
                pre(NORM, replace(SPARSE, reach=reach), MLP(2048, bias=True)) for reach in (Window(128), Strided(128))
            ),
        },
    ),
    Family(
        name="sparse-transformer-fixed",
        title="Sparse Transformer (fixed)",
        born="2019-04",
        note=Note(
            "blocks that each leave their last positions to all later ones: for text, which has no columns",
            "各区画の末尾を後のすべてに見せる。列のない文章のための型",
        ),
        parent="sparse-transformer",
        paper="Child 2019, arXiv:1904.10509",
        proof="attention under the pattern's mask",
        changes={"blocks": (pre(NORM, replace(SPARSE, reach=Fixed(128, 32)), MLP(2048, bias=True)),)},
    ),
    Family(
        name="reformer",
        title="Reformer",
        born="2020-01",
        note=Note(
            "hashing finds the near keys, and reversible layers keep no activations",
            "ハッシュで近い鍵を探し、可逆な層で中間値を保存しない",
        ),
        parent="sparse-transformer",
        takes=("transformer",),
        paper="Kitaev 2020, arXiv:2001.04451",
        changes={
            "dim": 512,
            "depth": 6,
            "context": 65_536,
            "blocks": tuple(pre(FINE, mix, MLP(2048, "relu", bias=True)) for mix in (LOCAL, HASHED)),
            "embed": Embed(Axial(256, 256, 128)),
            "norm": FINE,
            "head": Head(tied=False, bias=True),
            "reversible": True,
        },
        sizes={
            "crime-and-punishment": Size(
                2_748_224,
                {"vocab": 320, "dim": 256, "context": 524_288, "embed.position": Axial(512, 1024, 64)}
                | {"attention.heads": 2, "lsh.heads": 2, "attention.head_dim": 64, "lsh.head_dim": 64}
                | {"lsh.rounds": 1, "lsh.buckets": (64, 128), "mlp.hidden": 512},
            ),
            "enwik8": Size(
                149_182_722,
                {"vocab": 258, "dim": 1024, "depth": 12, "embed.position": Axial(128, 512, 256), "mlp.hidden": 4096}
                | {"local.size": 128, "lsh.chunk": 256, "lsh.rounds": 4, "lsh.buckets": (512,)}
                | {"layout": (0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0)},
            ),
        },
        model_type="reformer",
        architecture="ReformerModelWithLMHead",
        fresh=True,
        keys={
            "vocab_size": "vocab",
            "hidden_size": "dim",
            "attn_layers": LayerList({"local": {"branches.0.mix": (LOCAL,)}, "lsh": {"branches.0.mix": (HASHED,)}}),
            "num_hidden_layers": Told("depth"),
            "num_attention_heads": Each(("attention.heads", "lsh.heads")),
            "attention_head_size": HeadWidth(),
            "local_attn_chunk_length": "local.size",
            "local_num_chunks_before": Must(1),
            "local_num_chunks_after": Must(0),
            "lsh_attn_chunk_length": "lsh.chunk",
            "lsh_num_chunks_before": Must(1),
            "lsh_num_chunks_after": Must(0),
            "num_buckets": BucketCount(),
            "num_hashes": "lsh.rounds",
            "hash_seed": Maybe("lsh.seed"),
            "feed_forward_size": "mlp.hidden",
            "hidden_act": Act(),
            "layer_norm_eps": "layernorm.eps",
            "max_position_embeddings": "context",
            "axial_pos_shape": AxialShape(),
            "axial_pos_embds": Has("axial"),
            "axial_pos_embds_dim": AxialWidths(),
            "is_decoder": Causal(),
            "pad_token_id": Constant(0),  # transformers fills chunks up with it, and hides it
            "tie_word_embeddings": Must(False),
        }
        | {key: Codec() for key in UNREAD},
        defaults=ABSENT,
        names=(
            ("embed.token.weight", "reformer.embeddings.word_embeddings.weight"),
            ("embed.position.weight", "reformer.embeddings.position_embeddings.embedding.weight"),
            ("embed.position.rows", "reformer.embeddings.position_embeddings.weights.0"),
            ("embed.position.columns", "reformer.embeddings.position_embeddings.weights.1"),
            ("norm.*", "reformer.encoder.layer_norm.*"),
            ("head.weight", "lm_head.decoder.weight"),
            ("head.bias", "lm_head.bias"),
            ("layers.{i}.attn_pre.*", R + "attention.layer_norm.*"),
            *(
                (f"layers.{{i}}.attn.{a}.weight", R + f"attention.self_attention.{b}.weight")
                for a, b in (("q", "query"), ("k", "key"), ("v", "value"), ("qk", "query_key"))
            ),
            ("layers.{i}.attn.o.weight", R + "attention.output.dense.weight"),
            ("layers.{i}.mlp_pre.*", R + "feed_forward.layer_norm.*"),
            ("layers.{i}.mlp.up.*", R + "feed_forward.dense.dense.*"),
            ("layers.{i}.mlp.down.*", R + "feed_forward.output.dense.*"),
        ),
        copies={"lm_head.decoder.bias": "lm_head.bias"},
    ),
    Family(
        name="linear-attention",
        title="Linear Transformer",
        born="2020-06",
        note=Note(
            "without the softmax the past is one matrix: attention that is an RNN",
            "softmax を外せば過去は一つの行列になる。RNN でもある注意",
        ),
        parent="gpt2",
        takes=("transformer",),
        paper="Katharopoulos 2020, arXiv:2006.16236",
        proof="the sum over all pairs (eq. 8) and the recurrence (eq. 18-20)",
        changes={"blocks": (pre(NORM, LinearAttention(12), WIDE),)},
    ),
    Family(
        name="s4",
        title="S4",
        born="2021-10",
        note=Note(
            "a linear system per channel that holds the past as HiPPO's polynomials: very long memory",
            "チャネルごとの線形系が過去を HiPPO の多項式として持つ。とても長い記憶",
        ),
        parent="gpt2",
        takes=("rnn",),
        paper="Gu 2021, arXiv:2111.00396",
        proof="the recurrence of eq. 3 with HiPPO-LegS's matrix",
        changes={"blocks": (pre(NORM, S4(64), WIDE),), "embed": Embed()},
    ),
    Family(
        name="s4d",
        title="S4D",
        born="2022-06",
        note=Note("S4 with a diagonal matrix, and nearly as good", "行列を対角にした S4。ほとんど劣らない"),
        parent="s4",
        paper="Gu 2022, arXiv:2206.11893",
        proof="the recurrence",
        changes={"blocks": (pre(NORM, S4D(64), WIDE),)},
    ),
    Family(
        name="h3",
        title="H3",
        born="2022-12",
        note=Note(
            "two state-space models and multiplications stand in for attention",
            "二つの状態空間モデルと掛け算で注意を置きかえる",
        ),
        parent="s4d",
        takes=("transformer", "linear-attention"),
        paper="Fu 2022, arXiv:2212.14052",
        licence="Apache-2.0",
        proof="the recurrence",
        changes={"blocks": (pre(NORM, H3(64, taps=64), WIDE),)},
    ),
    Family(
        name="hyena",
        title="Hyena",
        born="2023-02",
        note=Note(
            "long convolutions whose filters a small network writes, and gates",
            "小さな網が書き出すフィルターによる長い畳み込みと、門",
        ),
        parent="h3",
        takes=("transformer",),
        paper="Poli 2023, arXiv:2302.10866",
        licence="Apache-2.0",
        proof="the sum over all distances",
        changes={"blocks": (pre(NORM, Hyena(64, bands=1), WIDE),), "context": 2048},
    ),
    Family(
        name="retnet",
        title="RetNet",
        born="2023-07",
        note=Note(
            "linear attention that forgets at a fixed pace: parallel to learn, recurrent to speak, in chunks if long",
            "一定の速さで忘れる線形注意。学習は並列、発話は逐次、長文は区切って",
        ),
        parent="linear-attention",
        takes=("transformer", "s4"),
        paper="Sun 2023, arXiv:2307.08621",
        licence="MIT",
        proof="the parallel form (eq. 5), the recurrent (eq. 6) and the chunks (eq. 7) are one function",
        changes={
            "blocks": (pre(RMSNorm(), Retention(3, expand=2), MLP(1536, "silu", gated=True)),),
            "norm": RMSNorm(),
            "embed": Embed(),
            "vocab": 32_000,
            "context": 2048,
        },
    ),
    Family(
        name="gated-deltanet",
        title="Gated DeltaNet",
        born="2024-12",
        note=Note(
            "a memory that overwrites what it holds at a key, and fades: the delta rule with Mamba-2's gate",
            "鍵の場所を書きかえ、全体は薄れていく記憶。デルタ則に Mamba-2 の門",
        ),
        parent="retnet",
        takes=("mamba2",),
        paper="Yang 2024, arXiv:2412.06464",
        licence="MIT",
        proof="Qwen3NextGatedDeltaNet of transformers",
        changes={
            "blocks": (pre(RMSNorm(), GatedDelta(6, 6, 96, 192, conv=4), MLP(2048, "silu", gated=True)),),
            "context": 4096,
        },
    ),
    Family(
        name="rwkv7",
        title="RWKV-7",
        born="2025-03",
        note=Note(
            "a matrix for a state, corrected by a delta rule whose decay and rate differ by channel",
            "状態を行列にし、チャネルごとの減衰と学習率をもつデルタ則で書きかえる",
        ),
        parent="rwkv",
        takes=("gated-deltanet",),
        paper="Peng 2025, arXiv:2503.14456",
        licence="Apache-2.0",
        proof="the public reference's formulas, token after token (BlinkDL/RWKV-LM, RWKV-v7)",
        changes={
            "vocab": 65_536,
            "context": 4096,
            "blocks": rwkv7(12, 64, 64, 128, 32),
            "layout": (0, 1),
        },
        sizes={
            "0.1b": Size(191_034_624),
            "1.5b": Size(1_527_404_544, {"dim": 2048, "depth": 24, "blocks": rwkv7(32, 96, 96, 256, 64)}),
        },
        fresh=True,
    ),
)
