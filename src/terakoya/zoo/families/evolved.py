"""The Evolved Transformer, found by a search, and Meena, the chatbot built from it. Their weights were not released."""

from __future__ import annotations

from terakoya.model.spec import (
    GLU,
    MLP,
    Attention,
    Block,
    Branch,
    Cross,
    Embed,
    EvolvedConv,
    Head,
    LayerNorm,
    Model,
    Sinusoid,
    pre,
)
from terakoya.zoo.node import Family, Note, Size

NORM = LayerNorm(1e-6)
TABLE = Embed(Sinusoid(), scale="sqrt_dim")


def encoder_layer(heads: int, hidden: int) -> Block:
    """Gate, convolutions, attention, feed-forward net."""
    return pre(NORM, GLU(), EvolvedConv(causal=False), Attention(heads, causal=False), MLP(hidden, "relu", bias=True))


def decoder_layer(heads: int, hidden: int) -> tuple[Block, Block]:
    """Two blocks: both attentions side by side, then convolutions | attention, the source again, a net with a norm."""
    beside = Branch((Attention(max(16, heads)), Cross(heads)), pre=NORM)
    first = Block((beside, Branch((EvolvedConv(),), pre=NORM)))
    return first, pre(NORM, Attention(heads), Cross(heads), MLP(hidden, "silu", bias=True, norm=NORM))


def both(dim: int, encoder: int, decoder: int, heads: int) -> Model:
    """The whole: a decoder layer counts as two blocks."""
    half = Model(
        32_768, dim, encoder, 512, (encoder_layer(heads, 4 * dim),), TABLE, NORM, Head(tied=False, scores="nothing")
    )
    shared = Embed(Sinusoid(), scale="sqrt_dim", shared=True)
    return Model(32_768, dim, 2 * decoder, 512, decoder_layer(heads, 4 * dim), shared, NORM, Head(), encoder=half)


FAMILIES = (
    Family(
        name="evolved-transformer",
        title="Evolved Transformer",
        born="2019-01",
        note=Note(
            "a Transformer improved by an evolutionary search: gates and separable convolutions between attentions",
            "進化的探索で改良した Transformer。注意のあいだに門と分離畳み込み",
        ),
        takes=("transformer",),
        paper="So 2019, arXiv:1901.11117",
        licence="weights not released",
        proof="its layers written out in NumPy from the paper's figure",
        root=both(512, 3, 4, 8),
    ),
    Family(
        name="meena",
        title="Meena",
        born="2020-01",
        note=Note(
            "one encoder layer, thirteen decoder layers, taught on conversations of social media",
            "符号化一層に復号十三層。SNS の会話で学んだ",
        ),
        parent="evolved-transformer",
        paper="Adiwardana 2020, arXiv:2001.09977",
        licence="not released",
        proof="its layers written out in NumPy; the paper's 2.6 billion parameters",
        changes={
            "vocab": 8192,
            "encoder.vocab": 8192,
            "dim": 2560,
            "encoder.dim": 2560,
            "depth": 26,
            "encoder.depth": 1,
            "context": 128,
            "encoder.context": 896,
            "attention.heads": 32,
            "cross.heads": 32,
            "mlp.hidden": 10_240,
        },
        sizes={"2.6b": Size(2_592_236_800)},
    ),
)
