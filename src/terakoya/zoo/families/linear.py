"""Attention made linear, and the state spaces before Mamba."""

from __future__ import annotations

from dataclasses import replace

from terakoya.model.spec import MLP, Attention, Block, Embed, LayerNorm, RMSNorm, Window, pre
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
from terakoya.model.spec_sparse import Fixed, Lsh, Strided
from terakoya.zoo.node import Family, Note, Size

NORM = LayerNorm()
WIDE = MLP(3072, bias=True)


def rwkv7(heads: int, decay: int, rate: int, gate: int, value: int) -> tuple[Block, Block]:
    """The first layer and the others."""
    first, feed = Rwkv7(heads, decay, rate, gate, value=None), Rwkv7Channel(256 * heads)
    return pre(NORM, first, feed), pre(NORM, replace(first, value=value), feed)


SPARSE = Attention(8, bias=True, out_bias=True)

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
        proof="full attention where one chunk holds all; gradients of the layers as they stand",
        changes={
            "depth": 6,
            "context": 65_536,
            "blocks": (pre(NORM, Lsh(8, buckets=64, rounds=2, chunk=128), MLP(2048, "relu", bias=True)),),
            "reversible": True,
        },
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
