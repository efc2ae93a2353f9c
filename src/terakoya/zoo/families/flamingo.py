"""Models that take more than words, known from papers: pictures beside the text, or everything in one stream."""

from __future__ import annotations

from terakoya.model.spec import (
    MLP,
    Attention,
    Block,
    Branch,
    Glance,
    LayerNorm,
    Relative,
    Resampler,
    RMSNorm,
    Sight,
    pre,
)
from terakoya.zoo.node import Family, Note, Size

NORM = LayerNorm()


def gated(heads: int, hidden: int) -> Block:
    """Cross-attention to the picture and an FFN, each behind a gate that starts closed."""
    return Block(
        (
            Branch((Glance(heads, 128),), pre=NORM, gate=True),
            Branch((MLP(hidden, "relu2"),), pre=NORM, gate=True),
        )
    )


def words(heads: int, hidden: int) -> Block:
    """Chinchilla's layer."""
    return pre(RMSNorm(), Attention(heads, head_dim=128, position=Relative()), MLP(hidden, "gelu_tanh"))


FAMILIES = (
    Family(
        name="flamingo",
        title="Flamingo",
        born="2022-04",
        note=Note(
            "pictures enter a frozen language model through gated cross-attention",
            "固定した言語モデルに、門つきの交差注意で画像を入れる",
        ),
        parent="chinchilla",
        paper="Alayrac 2022, arXiv:2204.14198",
        licence="not released",
        proof="the resampler of transformers' IDEFICS; the paper's formulas; its parameters beside the image encoder, "
        "which is a CLIP here (as in OpenFlamingo) and an NFNet there",
        changes={
            "dim": 2048,
            "depth": 48,
            "blocks": (gated(16, 8192), words(16, 8192)),
            "sight": Sight(224, resampler=Resampler(64, 6, 16, 64, "relu2"), join=None),
        },
        sizes={"3b": Size(2_860_632_112)},
    ),
    Family(
        name="palm-e",
        title="PaLM-E",
        born="2023-03",
        note=Note(
            "images and robot states enter PaLM as if they were words",
            "画像とロボットの状態を、単語と同じように PaLM へ入れる",
        ),
        parent="palm",
        takes=("llava",),
        paper="Driess 2023, arXiv:2303.03378",
        licence="not released",
        proof="LLaVA's way into the text; the 562 billion of its title (its ViT-22B has its branches side by side and "
        "norms queries and keys, which changes few of them)",
        changes={"sight": Sight(224, 14, 6144, 48, 48, 24_576, "gelu", cut=1, join=None, token=255_999)},
        sizes={"562b": Size(562_222_067_712)},
    ),
    Family(
        name="gato",
        title="Gato",
        born="2022-05",
        note=Note(
            "words, pictures and a robot's motions in one stream of tokens",
            "言葉も画像もロボットの動きも一本のトークン列に",
        ),
        parent="gpt2",
        takes=("transformer",),
        paper="Reed 2022, arXiv:2205.06175",
        licence="not released",
        proof="GPT-2's, whose shape it has; its tokens of numbers by the paper's formulas; 1.2 billion in the layers",
        changes={
            "vocab": 33_024,  # 32,000 pieces and 1,024 values
            "dim": 2048,
            "depth": 24,
            "context": 1024,
            "attention.heads": 16,
            "mlp.hidden": 8196,
            "mlp.act": "gelu",
        },
        sizes={"1.2b": Size(1_278_726_240)},
    ),
)
