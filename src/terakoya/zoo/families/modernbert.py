"""ModernBERT: BERT with what decoders had learnt by 2024."""

from __future__ import annotations

from dataclasses import replace

from terakoya.model.spec import (
    MLP,
    Attention,
    Block,
    Branch,
    Embed,
    Full,
    Head,
    LayerNorm,
    Rope,
    Transform,
    Window,
    pre,
)
from terakoya.zoo.codec import Act, Both, Codec
from terakoya.zoo.families.transformer import BARE
from terakoya.zoo.names import Layout
from terakoya.zoo.node import Family, Note, Part, Size
from terakoya.zoo.paired import Alternate, OldThetas, Sided
from terakoya.zoo.rotary import TwoRotaries

NORM = LayerNorm(bias=False)
FFN = MLP(1152, "gelu", gated=True)
WIDE = Attention(12, causal=False, position=Rope(160_000.0))
NEAR = replace(WIDE, position=Rope(10_000.0), reach=Window(65))
FIRST = Block((Branch((WIDE,)), Branch((FFN,), pre=NORM)))
L, H = "layers.{i}.", "model.layers.{i}."


def layout(depth: int) -> tuple[int, ...]:
    """Every third layer sees all; the first has nothing to norm."""
    return (0, *(1 if i % 3 == 0 else 2 for i in range(1, depth)))


FAMILIES = (
    Family(
        name="modernbert",
        title="ModernBERT",
        born="2024-12",
        note=Note(
            "rotary positions, gated FFNs, two layers of three with a window, 8,192 tokens",
            "回転位置、門つき FFN、三層に二層は窓つき、8,192 トークン",
        ),
        parent="bert",
        takes=("roformer", "gemma2"),
        paper="Warner 2024, arXiv:2412.13663",
        licence="Apache-2.0",
        changes={
            "vocab": 50_368,
            "depth": 22,
            "context": 8192,
            "blocks": (FIRST, pre(NORM, WIDE, FFN), pre(NORM, NEAR, FFN)),
            "layout": layout(22),
            "embed": Embed(norm=NORM),
            "norm": NORM,
            "head": Head(bias=True, transform=Transform(norm=NORM, bias=False)),
            "pool": None,
        },
        sizes={
            "base": Size(149_655_232),
            "large": Size(
                395_881_664,
                {"dim": 1024, "depth": 28, "layout": layout(28), "attention.heads": 16, "mlp.hidden": 2624},
            ),
        },
        model_type="modernbert",
        architecture="ModernBertForMaskedLM",
        architectures={"ModernBertModel": {"head": BARE}},
        fresh=True,
        keys={
            "vocab_size": "vocab",
            "hidden_size": "dim",
            "num_hidden_layers": "depth",
            "num_attention_heads": "attention.heads",
            "intermediate_size": "mlp.hidden",
            "hidden_activation": Act(),
            "max_position_embeddings": "context",
            "norm_eps": "layernorm.eps",
            "norm_bias": "layernorm.bias",
            "attention_bias": Both(("attention.bias", "attention.out_bias")),
            "mlp_bias": "mlp.bias",
            "decoder_bias": "head.bias",
            "classifier_bias": "transform.bias",
            "classifier_activation": Act("transform.act"),
            "tie_word_embeddings": "head.tied",
            "layer_types": Alternate(
                {"full_attention": {"attention.reach": Full()}, "sliding_attention": {"attention.reach": Window(65)}}
            ),
            "local_attention": Sided(),
            "rope_parameters": TwoRotaries(),
            "local_rope_theta": OldThetas(),
            **dict.fromkeys(("initializer_cutoff_factor", "classifier_pooling", "deterministic_flash_attn"), Codec()),
            **dict.fromkeys(("sparse_prediction", "sparse_pred_ignore_index", "reference_compile"), Codec()),
            **dict.fromkeys(
                ("cls_token_id", "mlp_dropout", "repad_logits_with_grad", "layer_norm_eps", "position_embedding_type"),
                Codec(),
            ),
        },
        names=(
            ("embed.token.weight", "model.embeddings.tok_embeddings.weight"),
            ("embed.norm.*", "model.embeddings.norm.*"),
            (L + "attn.(q,k,v).*", H + "attn.Wqkv.*"),
            (L + "attn.o.*", H + "attn.Wo.*"),
            (L + "attn_pre.*", H + "attn_norm.*"),
            (L + "mlp.(gate,up).*", H + "mlp.Wi.*", Layout()),
            (L + "mlp.down.*", H + "mlp.Wo.*"),
            (L + "mlp_pre.*", H + "mlp_norm.*"),
            ("norm.*", "model.final_norm.*"),
            ("head.transform.dense.*", "head.dense.*"),
            ("head.transform.norm.*", "head.norm.*"),
            ("head.bias", "decoder.bias"),
            ("head.weight", "decoder.weight"),
        ),
        parts=(Part("decoder.bias", absent={"head": BARE}),),
    ),
)
