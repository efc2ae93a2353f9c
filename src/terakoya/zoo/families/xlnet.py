"""Positions as distances, and memory beyond the segment: Transformer-XL, and XLNet, which reads in every order."""

from __future__ import annotations

from terakoya.model.spec import MLP, Attention, Block, Branch, Embed, Head, LayerNorm, Relative
from terakoya.zoo.codec import Act, Codec, Must
from terakoya.zoo.families.transformer import post
from terakoya.zoo.names import Layout
from terakoya.zoo.node import Family, Note, Size
from terakoya.zoo.paired import Said

L, H = "layers.{i}.", "transformer.layer.{i}."
NORM = LayerNorm(1e-12)
READS = Attention(12, causal=False, position=Relative(segments=True))

FAMILIES = (
    Family(
        name="transformer-xl",
        title="Transformer-XL",
        born="2019-01",
        note=Note(
            "remembers the previous segment, with positions relative to each other",
            "前の区間を覚えておき、位置は互いの差で表す",
        ),
        parent="transformer",
        paper="Dai 2019, arXiv:1901.02860",
        licence="Apache-2.0",
        changes={
            "encoder": None,
            "vocab": 204,
            "depth": 12,
            "blocks": (post(Attention(8, position=Relative(shared=True)), MLP(2048, "relu", bias=True)),),
            "embed": Embed(),
            "head": Head(bias=True),
        },
        sizes={
            "enwik8-12l": Size(41_055_436),
            "enwik8-24l": Size(
                277_231_820,
                {"dim": 1024, "depth": 24, "attention.heads": 8, "attention.head_dim": 128, "mlp.hidden": 3072},
            ),
        },
        proof="the paper's formulas, written out in tests/zoo/test_xlnet.py",
        fresh=True,
    ),
    Family(
        name="xlnet",
        title="XLNet",
        born="2019-06",
        note=Note(
            "predicts in every order of the words, by two streams of attention",
            "単語をあらゆる順序で予測する。二本の流れの注意機構",
        ),
        parent="transformer-xl",
        takes=("bert",),
        paper="Yang 2019, arXiv:1906.08237",
        licence="Apache-2.0",
        changes={
            "vocab": 32_000,
            "dim": 768,
            "blocks": (Block((Branch((READS,), out=NORM), Branch((MLP(3072, "gelu", bias=True),), out=NORM))),),
            "embed": Embed(asks=True),
        },
        sizes={
            "base": Size(116_750_336),
            "large": Size(360_300_800, {"dim": 1024, "depth": 24, "attention.heads": 16, "mlp.hidden": 4096}),
        },
        model_type="xlnet",
        architecture="XLNetLMHeadModel",
        fresh=True,
        keys={
            "vocab_size": "vocab",
            "d_model": "dim",
            "n_layer": "depth",
            "n_head": "attention.heads",
            "d_head": "attention.head_dim",
            "d_inner": "mlp.hidden",
            "ff_activation": Act(),
            "attn_type": Said("attention.causal", (("uni", True), ("bi", False))),
            "layer_norm_eps": "layernorm.eps",
            "tie_word_embeddings": "head.tied",
            "context_length": "context",  # ours: theirs has no limit to write down
            "clamp_len": Must(-1),
            "bi_data": Must(False),
            "same_length": Must(False),
            "untie_r": Must(True),
            **{
                name: Codec()
                for name in ("mem_len", "reuse_len", "use_mems_eval", "use_mems_train", "start_n_top", "end_n_top")
            },
            **{name: Codec() for name in ("summary_last_dropout", "dropatt", "init", "max_position_embeddings")},
        },
        names=(
            ("embed.token.weight", "transformer.word_embedding.weight"),
            ("embed.asks", "transformer.mask_emb"),
            *((f"{L}attn.{x}.weight", f"{H}rel_attn.{x}", Layout(cube=True, transpose=True)) for x in "qkv"),
            (L + "attn.position.r.weight", H + "rel_attn.r", Layout(cube=True, transpose=True)),
            (L + "attn.o.weight", H + "rel_attn.o", Layout(cube=True)),
            (L + "attn.position.bias.u", H + "rel_attn.r_w_bias"),
            (L + "attn.position.bias.w", H + "rel_attn.r_r_bias"),
            (L + "attn.position.s", H + "rel_attn.r_s_bias"),
            (L + "attn.position.same", H + "rel_attn.seg_embed"),
            (L + "attn_out.*", H + "rel_attn.layer_norm.*"),
            (L + "mlp.up.*", H + "ff.layer_1.*"),
            (L + "mlp.down.*", H + "ff.layer_2.*"),
            (L + "mlp_out.*", H + "ff.layer_norm.*"),
            ("head.bias", "lm_loss.bias"),
            ("head.weight", "lm_loss.weight"),
        ),
    ),
)
