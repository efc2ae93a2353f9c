"""LLaVA: a language model that reads pictures as if they were words."""

from __future__ import annotations

from terakoya.model.spec import Sight
from terakoya.zoo.codec import Act, Codec, Must
from terakoya.zoo.families import llama
from terakoya.zoo.names import Rule
from terakoya.zoo.node import Family, Note, Size
from terakoya.zoo.paired import FromLast, Said, Vision

L, H = "sight.layers.{i}.", "vision_tower.encoder.layers.{i}."
WORDS: tuple[Rule, ...] = next(f.names for f in llama.FAMILIES if f.name == "llama")

SEES: tuple[Rule, ...] = (
    ("sight.patch.weight", "vision_tower.embeddings.patch_embedding.weight"),
    ("sight.first", "vision_tower.embeddings.class_embedding"),
    ("sight.position.weight", "vision_tower.embeddings.position_embedding.weight"),
    ("sight.before.*", "vision_tower.pre_layrnorm.*"),
    ("sight.after.*", "vision_tower.post_layernorm.*"),
    *((f"{L}attn.{x}.*", f"{H}self_attn.{x}_proj.*") for x in "qkv"),
    (L + "attn.o.*", H + "self_attn.out_proj.*"),
    (L + "attn_pre.*", H + "layer_norm1.*"),
    (L + "mlp_pre.*", H + "layer_norm2.*"),
    (L + "mlp.up.*", H + "mlp.fc1.*"),
    (L + "mlp.down.*", H + "mlp.fc2.*"),
    ("sight.join.up.*", "multi_modal_projector.linear_1.*"),
    ("sight.join.down.*", "multi_modal_projector.linear_2.*"),
)


def inside(rule: Rule) -> Rule:
    """Where the language model's weight lies among the picture's."""
    ours, theirs = rule[0], f"language_model.{rule[1]}"
    return (ours, theirs, rule[2]) if len(rule) == 3 else (ours, theirs)


FAMILIES = (
    Family(
        name="llava",
        title="LLaVA",
        born="2023-04",
        note=Note(
            "a projected CLIP image is read by Vicuna as if it were words",
            "CLIP の画像を射影し、Vicuna が言葉のように読む",
        ),
        parent="llama",
        takes=("vicuna",),
        paper="Liu 2023, arXiv:2304.08485",
        changes={"vocab": 32_003, "sight": Sight(224, join=None)},
        proof="LLaVA-1.5's, but for one linear layer in place of two",
        names=SEES,
    ),
    Family(
        name="llava1.5",
        title="LLaVA-1.5",
        born="2023-10",
        note=Note("two layers instead of one projection, larger pictures", "射影を二層にし、画像を大きくした"),
        parent="llava",
        takes=("llama2", "vicuna"),
        paper="Liu 2023, arXiv:2310.03744",
        changes={"vocab": 32_064, "context": 4096, "rmsnorm.eps": 1e-5, "sight": Sight()},
        sizes={"7b": Size(7_063_427_072)},
        model_type="llava",
        architecture="LlavaForConditionalGeneration",
        inside="text_config",
        keys={
            "vision_config": Vision(),
            "vision_feature_layer": FromLast(),
            "vision_feature_select_strategy": Said("sight.whole", (("default", False), ("full", True))),
            "projector_hidden_act": Act("sight.join"),
            "multimodal_projector_bias": Must(True),
            "image_token_index": "sight.token",
            "image_seq_length": Codec(),
            "ignore_index": Codec(),
        },
        names=tuple(inside(rule) for rule in WORDS),
    ),
)
