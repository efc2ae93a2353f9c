"""BERT's line: encoders that read a text from both sides."""

from __future__ import annotations

from typing import Any

from terakoya.model.spec import MLP, Attention, Block, Branch, Embed, Head, LayerNorm, Learned, Pooler, Transform
from terakoya.zoo.codec import Act, Codec, Constant, Must
from terakoya.zoo.families.transformer import BARE
from terakoya.zoo.names import Rule
from terakoya.zoo.node import Family, Note, Part, Size
from terakoya.zoo.paired import Narrow, Pad, Rows

NORM = LayerNorm(1e-12)
L = "layers.{i}."


def size(parameters: int, dim: int, depth: int, heads: int, **more: Any) -> Size:
    """One row; the FFN is four times as wide as the stream."""
    return Size(parameters, {"dim": dim, "depth": depth, "attention.heads": heads, "mlp.hidden": 4 * dim} | more)


def body(prefix: str) -> tuple[Rule, ...]:
    """Where BERT and its kin keep the encoder."""
    E, H = f"{prefix}.embeddings.", f"{prefix}.encoder.layer.{{i}}."
    return (
        ("embed.token.weight", E + "word_embeddings.weight"),
        ("embed.position.weight", E + "position_embeddings.weight"),
        ("embed.segment.weight", E + "token_type_embeddings.weight"),
        ("embed.norm.*", E + "LayerNorm.*"),
        *((f"{L}attn.{x[0]}.*", f"{H}attention.self.{x}.*") for x in ("query", "key", "value")),
        (L + "attn.o.*", H + "attention.output.dense.*"),
        (L + "attn_out.*", H + "attention.output.LayerNorm.*"),
        (L + "mlp.up.*", H + "intermediate.dense.*"),
        (L + "mlp.down.*", H + "output.dense.*"),
        (L + "mlp_out.*", H + "output.LayerNorm.*"),
        ("pool.dense.*", f"{prefix}.pooler.dense.*"),
    )


FAMILIES = (
    Family(
        name="bert",
        title="BERT",
        born="2018-10",
        note=Note(
            "an encoder that fills in masked words, seeing both sides",
            "隠した単語を両側から当てるエンコーダー",
        ),
        parent="transformer",
        takes=("elmo", "gpt"),
        paper="Devlin 2018, arXiv:1810.04805",
        licence="Apache-2.0",
        changes={
            "encoder": None,
            "vocab": 30_522,
            "dim": 768,
            "depth": 12,
            "blocks": (
                Block(
                    (
                        Branch((Attention(12, bias=True, out_bias=True, causal=False),), out=NORM),
                        Branch((MLP(3072, "gelu", bias=True),), out=NORM),
                    )
                ),
            ),
            "embed": Embed(Learned(), types=2, norm=NORM),
            "head": Head(bias=True, transform=Transform(norm=NORM)),
            "pool": Pooler(classes=2),
        },
        sizes={"base": size(110_106_428, 768, 12, 12), "large": size(336_226_108, 1024, 24, 16)},
        model_type="bert",
        architecture="BertForPreTraining",
        architectures={"BertModel": {"head": BARE}, "BertForMaskedLM": {"pool": None}},
        fresh=True,
        keys={
            "vocab_size": "vocab",
            "hidden_size": "dim",
            "num_hidden_layers": "depth",
            "num_attention_heads": "attention.heads",
            "intermediate_size": "mlp.hidden",
            "hidden_act": Act(also=("transform.act",)),
            "max_position_embeddings": "context",
            "type_vocab_size": "embed.types",
            "layer_norm_eps": "layernorm.eps",
            "tie_word_embeddings": "head.tied",
            "position_embedding_type": Must("absolute"),
            **dict.fromkeys(("directionality", "pooler_type"), Codec()),
            **{f"pooler_{x}": Codec() for x in ("fc_size", "num_attention_heads", "num_fc_layers", "size_per_head")},
        },
        names=(
            *body("bert"),
            ("head.transform.dense.*", "cls.predictions.transform.dense.*"),
            ("head.transform.norm.*", "cls.predictions.transform.LayerNorm.*"),
            ("head.bias", "cls.predictions.bias"),
            ("head.weight", "cls.predictions.decoder.weight"),
            ("pool.pair.*", "cls.seq_relationship.*"),
        ),
        parts=(
            Part("pooler.dense.weight", {"pool": Pooler()}, {"pool": None}),
            Part("cls.seq_relationship.weight", {"pool": Pooler(classes=2)}),
            Part("cls.predictions.bias", absent={"head": BARE}),
        ),
        copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    ),
    Family(
        name="roberta",
        title="RoBERTa",
        born="2019-07",
        note=Note(
            "BERT trained longer on more text, masks drawn anew, no next-sentence task",
            "より多くの文章で長く訓練した BERT。マスクは毎回引き直し、次文予測はなし",
        ),
        parent="bert",
        paper="Liu 2019, arXiv:1907.11692",
        licence="MIT",
        changes={
            "vocab": 50_265,
            "learned.offset": 2,
            "embed.types": 1,
            "layernorm.eps": 1e-5,
            "pool": None,
        },
        sizes={"base": size(124_697_433, 768, 12, 12), "large": size(355_412_057, 1024, 24, 16)},
        model_type="roberta",
        architecture="RobertaForMaskedLM",
        architectures={"RobertaModel": {"head": BARE}},
        keys={
            "hidden_act": Act(),  # that of the head is always GELU
            "max_position_embeddings": Rows(),
            "pad_token_id": Pad(),
        },
        defaults={"layer_norm_eps": 1e-12, "type_vocab_size": 2, "pad_token_id": 1},
        names=(
            *body("roberta"),
            ("head.transform.dense.*", "lm_head.dense.*"),
            ("head.transform.norm.*", "lm_head.layer_norm.*"),
            ("head.bias", "lm_head.bias"),
            ("head.weight", "lm_head.decoder.weight"),
        ),
        parts=(
            Part("pooler.dense.weight", {"pool": Pooler()}, {"pool": None}),
            Part("lm_head.bias", absent={"head": BARE}),
        ),
        copies={"lm_head.decoder.bias": "lm_head.bias"},
    ),
    Family(
        name="xlm-r",
        title="XLM-R",
        born="2019-11",
        note=Note("RoBERTa on the web in 100 languages", "100 言語のウェブ文書で学んだ RoBERTa"),
        parent="roberta",
        paper="Conneau 2019, arXiv:1911.02116",
        licence="MIT",
        changes={"vocab": 250_002},
        sizes={"base": size(278_295_186, 768, 12, 12), "large": size(560_142_482, 1024, 24, 16)},
        model_type="xlm-roberta",
        architecture="XLMRobertaForMaskedLM",
        architectures={"XLMRobertaModel": {"head": BARE}},
        keys={"output_past": Codec()},
        defaults={"layer_norm_eps": 1e-12, "type_vocab_size": 2, "pad_token_id": 1},
    ),
    Family(
        name="distilbert",
        title="DistilBERT",
        born="2019-08",
        note=Note("half of BERT's layers, taught by BERT itself", "層を半分にし、BERT 自身を教師に学ばせた"),
        parent="bert",
        paper="Sanh 2019, arXiv:1910.01108",
        licence="Apache-2.0",
        changes={"depth": 6, "embed.types": 0, "pool": None},
        sizes={"base": size(66_985_530, 768, 6, 12)},
        model_type="distilbert",
        architecture="DistilBertForMaskedLM",
        architectures={"DistilBertModel": {"head": BARE}},
        fresh=True,
        keys={
            "vocab_size": "vocab",
            "dim": "dim",
            "n_layers": "depth",
            "n_heads": "attention.heads",
            "hidden_dim": "mlp.hidden",
            "activation": Act(also=("transform.act",)),
            "max_position_embeddings": "context",
            "tie_word_embeddings": "head.tied",
            "tie_weights_": Codec(),
            "sinusoidal_pos_embds": Codec(),  # the file holds the table either way
            "qa_dropout": Codec(),
            "seq_classif_dropout": Codec(),
        },
        names=(
            ("embed.token.weight", "distilbert.embeddings.word_embeddings.weight"),
            ("embed.position.weight", "distilbert.embeddings.position_embeddings.weight"),
            ("embed.norm.*", "distilbert.embeddings.LayerNorm.*"),
            *(
                (f"{L}attn.{x}.*", f"distilbert.transformer.{L[:-1].replace('layers', 'layer')}.attention.{y}_lin.*")
                for x, y in (*zip("qkv", "qkv", strict=True), ("o", "out"))
            ),
            (L + "attn_out.*", "distilbert.transformer.layer.{i}.sa_layer_norm.*"),
            (L + "mlp.up.*", "distilbert.transformer.layer.{i}.ffn.lin1.*"),
            (L + "mlp.down.*", "distilbert.transformer.layer.{i}.ffn.lin2.*"),
            (L + "mlp_out.*", "distilbert.transformer.layer.{i}.output_layer_norm.*"),
            ("head.transform.dense.*", "vocab_transform.*"),
            ("head.transform.norm.*", "vocab_layer_norm.*"),
            ("head.bias", "vocab_projector.bias"),
            ("head.weight", "vocab_projector.weight"),
        ),
        parts=(Part("vocab_projector.bias", absent={"head": BARE}),),
    ),
    Family(
        name="albert",
        title="ALBERT",
        born="2019-09",
        note=Note("one layer used many times, and a narrow embedding", "同じ層を何度も使い、埋め込みを細くした"),
        parent="bert",
        paper="Lan 2019, arXiv:1909.11942",
        licence="Apache-2.0",
        changes={
            "vocab": 30_000,
            "embed.factor": 128,
            "embed.whole": True,
            "share": 1,
            "mlp.act": "gelu_tanh",
            "transform.act": "gelu_tanh",
        },
        sizes={
            "base": size(11_813_810, 768, 12, 12),
            "large": size(17_847_474, 1024, 24, 16),
            "xlarge": size(59_021_490, 2048, 24, 16),
            "xxlarge": size(223_158_450, 4096, 12, 64),
        },
        model_type="albert",
        architecture="AlbertForPreTraining",
        architectures={"AlbertModel": {"head": BARE}, "AlbertForMaskedLM": {"pool": None}},
        keys={
            "embedding_size": Narrow(kept=True),
            "num_hidden_groups": "share",
            "inner_group_num": Must(1),
            "net_structure_type": Codec(),
            "gap_size": Codec(),
            "num_memory_blocks": Codec(),
            "down_scale_factor": Codec(),
            "classifier_dropout_prob": Codec(),
        },
        names=(
            *(
                (f"embed.{x}.*", f"albert.embeddings.{y}.*")
                for x, y in (
                    ("token", "word_embeddings"),
                    ("position", "position_embeddings"),
                    ("segment", "token_type_embeddings"),
                    ("norm", "LayerNorm"),
                )
            ),
            ("embed.project.*", "albert.encoder.embedding_hidden_mapping_in.*"),
            *(
                (f"{L}{x}.*", f"albert.encoder.albert_layer_groups.{{i}}.albert_layers.0.{y}.*")
                for x, y in (
                    ("attn.q", "attention.query"),
                    ("attn.k", "attention.key"),
                    ("attn.v", "attention.value"),
                    ("attn.o", "attention.dense"),
                    ("attn_out", "attention.LayerNorm"),
                    ("mlp.up", "ffn"),
                    ("mlp.down", "ffn_output"),
                    ("mlp_out", "full_layer_layer_norm"),
                )
            ),
            ("pool.dense.*", "albert.pooler.*"),
            ("pool.pair.*", "sop_classifier.classifier.*"),
            ("head.transform.dense.*", "predictions.dense.*"),
            ("head.transform.norm.*", "predictions.LayerNorm.*"),
            ("head.bias", "predictions.bias"),
            ("head.weight", "predictions.decoder.weight"),
        ),
        parts=(
            Part("pooler.weight", {"pool": Pooler()}, {"pool": None}),
            Part("sop_classifier.classifier.weight", {"pool": Pooler(classes=2)}),
            Part("predictions.bias", absent={"head": BARE}),
        ),
        copies={"predictions.decoder.bias": "predictions.bias"},
    ),
    Family(
        name="electra",
        title="ELECTRA",
        born="2020-03",
        note=Note(
            "learns to tell replaced words from real ones: every position gives a lesson",
            "置きかえられた単語を見分ける。すべての位置が教材になる",
        ),
        parent="bert",
        paper="Clark 2020, arXiv:2003.10555",
        licence="Apache-2.0",
        changes={"pool": None, "head": Head(False, bias=True, scores="replaced", transform=Transform())},
        sizes={
            "small": size(13_549_057, 256, 12, 4, **{"embed.factor": 128, "embed.whole": True}),
            "base": size(109_483_009, 768, 12, 12),
            "large": size(335_142_913, 1024, 24, 16),
        },
        model_type="electra",
        architecture="ElectraForPreTraining",
        architectures={"ElectraModel": {"head": BARE}},
        keys={
            "embedding_size": Narrow(),
            "tie_word_embeddings": Constant(True),  # a discriminator has nothing to tie
            "summary_last_dropout": Codec(),
        },
        names=(
            *body("electra"),
            ("embed.project.*", "electra.embeddings_project.*"),
            ("head.transform.dense.*", "discriminator_predictions.dense.*"),
            ("head.*", "discriminator_predictions.dense_prediction.*"),
        ),
        parts=(Part("discriminator_predictions.dense.weight", absent={"head": BARE}),),
    ),
    Family(
        name="electra-generator",
        title="ELECTRA's generator",
        born="2020-03",
        note=Note(
            "the small BERT whose guesses ELECTRA learns to find out",
            "ELECTRA が見破る相手。単語を置きかえる小さな BERT",
        ),
        parent="electra",
        takes=("bert",),
        paper="Clark 2020, arXiv:2003.10555",
        licence="Apache-2.0",
        changes={"head": Head(bias=True, transform=Transform(norm=NORM))},
        sizes={"small": size(13_546_682, 256, 12, 4, **{"embed.factor": 128, "embed.whole": True})},
        model_type="electra",
        architecture="ElectraForMaskedLM",
        when={"architectures": ["ElectraForMaskedLM"]},
        keys={"hidden_act": Act(), "tie_word_embeddings": "head.tied"},
        names=(
            ("head.transform.dense.*", "generator_predictions.dense.*"),
            ("head.transform.norm.*", "generator_predictions.LayerNorm.*"),
            ("head.bias", "generator_lm_head.bias"),
            ("head.weight", "generator_lm_head.weight"),
        ),
        parts=(Part("generator_lm_head.bias", absent={"head": BARE}),),
    ),
)
