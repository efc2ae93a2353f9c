"""LUKE: an encoder for which the things that a text speaks of are tokens too."""

from __future__ import annotations

from terakoya.model.spec import Entities, Pooler
from terakoya.zoo.codec import Act, Codec, Constant
from terakoya.zoo.families.bert import body, size
from terakoya.zoo.families.transformer import BARE
from terakoya.zoo.node import Family, Note, Part

E, L, H = "luke.entity_embeddings.", "layers.{i}.", "luke.encoder.layer.{i}."

FAMILIES = (
    Family(
        name="luke",
        title="LUKE",
        born="2020-10",
        note=Note(
            "entities are tokens of their own, with queries of their own",
            "固有物を独立したトークンとし、専用のクエリで扱う",
        ),
        parent="roberta",
        paper="Yamada 2020, arXiv:2010.01057",
        licence="Apache-2.0",
        changes={
            "vocab": 50_267,
            "embed.entities": Entities(500_000, 256),
            "attention.aware": True,
            "pool": Pooler(),
            "head.tied": False,  # transformers 5 has two tables; files of the authors hold the same one twice
        },
        # The paper's 253 M and 483 M are RoBERTa and the entities' table, without the three further queries.
        sizes={
            "base": size(314_446_971, 768, 12, 12),
            "large": size(613_062_779, 1024, 24, 16),
        },
        model_type="luke",
        architecture="LukeForMaskedLM",
        architectures={"LukeModel": {"head": BARE}},
        keys={
            "hidden_act": Act(),
            "entity_vocab_size": "entities.count",
            "entity_emb_size": "entities.dim",
            "use_entity_aware_attention": "attention.aware",
            "tie_word_embeddings": Constant(True),
            "bert_model_name": Codec(),
            "cls_entity_prediction": Codec(),
        },
        defaults={"type_vocab_size": 2, "layer_norm_eps": 1e-12},
        names=(
            *body("luke"),
            *((f"{L}attn.aware.{x}.*", f"{H}attention.self.{x}_query.*") for x in ("w2e", "e2w", "e2e")),
            ("embed.entity.token.weight", E + "entity_embeddings.weight"),
            ("embed.entity.project.weight", E + "entity_embedding_dense.weight"),
            ("embed.entity.position.weight", E + "position_embeddings.weight"),
            ("embed.entity.segment.weight", E + "token_type_embeddings.weight"),
            ("embed.entity.norm.*", E + "LayerNorm.*"),
            ("head.bias", "lm_head.decoder.bias"),
            ("entities.dense.*", "entity_predictions.transform.dense.*"),
            ("entities.norm.*", "entity_predictions.transform.LayerNorm.*"),
            ("entities.bias", "entity_predictions.bias"),
        ),
        parts=(
            Part("pooler.dense.weight", {"pool": Pooler()}, {"pool": None}),
            Part("lm_head.dense.weight", absent={"head": BARE}),
        ),
        copies={
            "entity_predictions.decoder.weight": E + "entity_embeddings.weight",
            "lm_head.bias": "lm_head.decoder.bias",
        },
    ),
)
