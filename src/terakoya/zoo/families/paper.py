"""Families that were never released: built from their papers, proven by parameter counts and by their parts."""

from __future__ import annotations

from terakoya.model.spec import (
    MLP,
    Attention,
    Block,
    Branch,
    Buckets,
    Embed,
    LayerNorm,
    MoE,
    Relative,
    RMSNorm,
    Rope,
    pre,
)
from terakoya.zoo.families.gpt import size
from terakoya.zoo.node import Family, Note, Size

WIDE = Attention(128, head_dim=128, position=Buckets())
GATED = MLP(32_768, "gelu", gated=True)


def gopher(parameters: int, dim: int, depth: int, heads: int, head_dim: int) -> Size:
    """One row of Gopher's table."""
    return size(parameters, dim, depth, heads, **{"attention.head_dim": head_dim})


FAMILIES = (
    Family(
        name="lamda",
        title="LaMDA",
        born="2021-05",
        note=Note(
            "a decoder for dialogue: gated FFN, T5's buckets of distance, heads wider than the model",
            "対話のためのデコーダー。ゲートつき FFN、T5 の距離の区分、モデルより広いヘッド",
        ),
        parent="gpt2",
        takes=("meena", "t5-v1.1"),
        paper="Thoppilan 2022, arXiv:2201.08239",
        licence="not released",
        proof="parameter count of the paper",
        changes={
            "vocab": 32_000,
            "dim": 8192,
            "depth": 64,
            "blocks": (pre(RMSNorm(), WIDE, MLP(65_536, "gelu", gated=True)),),
            "norm": RMSNorm(),
            "embed": Embed(),
        },
        sizes={"137b": Size(137_702_416_384)},
    ),
    Family(
        name="gopher",
        title="Gopher",
        born="2021-12",
        note=Note(
            "RMSNorm, and Transformer-XL's relative positions in place of a table",
            "RMSNorm と、表の代わりに Transformer-XL の相対位置",
        ),
        parent="gpt2",
        takes=("gpt3", "transformer-xl"),
        paper="Rae 2021, arXiv:2112.11446",
        licence="not released",
        proof="parameter counts of the paper",
        changes={
            "vocab": 32_000,
            "context": 2048,
            "dim": 16_384,
            "depth": 80,
            "blocks": (
                pre(
                    RMSNorm(),
                    Attention(128, bias=True, out_bias=True, position=Relative()),
                    MLP(65_536, bias=True),
                ),
            ),
            "norm": RMSNorm(),
            "embed": Embed(),
        },
        sizes={
            "44m": gopher(43_700_736, 512, 8, 16, 32),
            "117m": gopher(116_709_120, 768, 12, 12, 64),
            "417m": gopher(417_443_328, 1536, 12, 12, 128),
            "1.4b": gopher(1_374_799_872, 2048, 24, 16, 128),
            "7.1b": gopher(7_112_101_888, 4096, 32, 32, 128),
            "280b": gopher(279_714_217_984, 16_384, 80, 128, 128),
        },
    ),
    Family(
        name="glam",
        title="GLaM",
        born="2021-12",
        note=Note(
            "every other layer has 64 experts, two per token: 1.2 trillion weights, 97 billion at work",
            "一層おきに 64 のエキスパートから二つ。重み 1.2 兆、働くのは 970 億",
        ),
        parent="lamda",
        takes=("transformer",),
        paper="Du 2021, arXiv:2112.06905",
        licence="not released",
        proof="parameter count of the paper",
        changes={
            "vocab": 256_000,
            "blocks": (pre(RMSNorm(), WIDE, GATED), pre(RMSNorm(), WIDE, MoE(MLP(32_768, "gelu"), 64, 2))),
        },
        sizes={"64b-64e": Size(1_161_756_418_048)},
    ),
    Family(
        name="chinchilla",
        title="Chinchilla",
        born="2022-03",
        note=Note(
            "a quarter of Gopher's size and four times its tokens at the same cost, and better",
            "同じ計算量で Gopher の四分の一の大きさ、四倍のトークン、そして優れる",
        ),
        parent="gopher",
        paper="Hoffmann 2022, arXiv:2203.15556",
        licence="not released",
        proof="parameter count of the paper",
        changes={"dim": 8192, "attention.heads": 64, "mlp.hidden": 32_768},
        sizes={"70b": Size(70_063_890_432)},
    ),
    Family(
        name="palm",
        title="PaLM",
        born="2022-04",
        note=Note(
            "both branches side by side, one key-value head, SwiGLU, no biases anywhere",
            "二枝を並列に、キーとバリューは一組、SwiGLU、バイアスなし",
        ),
        parent="gpt-j",
        takes=("lamda", "glam"),
        paper="Chowdhery 2022, arXiv:2204.02311",
        licence="not released",
        proof="parameter counts of the paper",
        changes={
            "vocab": 256_000,
            "dim": 18_432,
            "depth": 118,
            "blocks": (
                Block(
                    (
                        Branch(
                            (
                                Attention(48, kv_heads=1, head_dim=256, position=Rope(interleaved=True)),
                                MLP(73_728, "silu", gated=True),
                            ),
                            pre=LayerNorm(bias=False),
                        ),
                    )
                ),
            ),
            "norm": LayerNorm(bias=False),
            "head.tied": True,
            "head.bias": False,
        },
        sizes={
            "8b": size(8_632_012_800, 4096, 32, 16),
            "62b": size(62_495_662_080, 8192, 64, 32),
            "540b": Size(540_356_474_880),
        },
    ),
)
