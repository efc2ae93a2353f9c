"""The Transformer of 2017 in Marian's layout, and BART's line: encoder–decoders that norm after each branch."""

from __future__ import annotations

from typing import Any

from terakoya.model.spec import (
    MLP,
    Attention,
    Block,
    Branch,
    Cross,
    Embed,
    Head,
    LayerNorm,
    Learned,
    Model,
    Sinusoid,
    pre,
)
from terakoya.zoo.codec import Act, Both, Codec
from terakoya.zoo.names import Layout, Rule
from terakoya.zoo.node import Family, Note, Size
from terakoya.zoo.paired import Depth, OtherVocabulary, SharedTable, SqrtDim

NORM = LayerNorm()
SELF, SEEN = Attention(8, bias=True, out_bias=True), Attention(8, bias=True, out_bias=True, causal=False)
CROSS, FFN = Cross(8, bias=True, out_bias=True), MLP(2048, "relu", bias=True)
BARE = Head(tied=False, scores="nothing")
HEADS = Both(("attention.heads", "cross.heads"))


def post(*mixers: Any) -> Block:
    """Norm after every branch (Vaswani 2017)."""
    return Block(tuple(Branch((m,), out=NORM) for m in mixers))


def size(parameters: int, dim: int, encoder: int, decoder: int, heads: int, hidden: int, **more: Any) -> Size:
    """One row: both halves are of one width."""
    changes = {"dim": dim, "encoder.dim": dim, "depth": decoder, "encoder.depth": encoder}
    changes |= {"attention.heads": heads, "cross.heads": heads, "mlp.hidden": hidden}
    return Size(parameters, changes | more)


def half(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Where one half keeps its layers: fairseq's names."""
    L, H = f"{ours}layers.{{i}}.", f"{theirs}.layers.{{i}}."
    return (
        *((f"{L}attn.{a}.*", f"{H}self_attn.{b}_proj.*") for a, b in (*zip("qkv", "qkv", strict=True), ("o", "out"))),
        *(
            (f"{L}cross.{a}.*", f"{H}encoder_attn.{b}_proj.*")
            for a, b in (*zip("qkv", "qkv", strict=True), ("o", "out"))
        ),
        (f"{L}mlp.up.*", f"{H}fc1.*"),
        (f"{L}mlp.down.*", f"{H}fc2.*"),
        *((f"{L}{ours}_{at}.*", f"{H}{theirs}_layer_norm.*") for at in ("pre", "out") for ours, theirs in NORMS),
        (f"{ours}embed.position.weight", f"{theirs}.embed_positions.weight"),
        (f"{ours}embed.norm.*", f"{theirs}.layernorm_embedding.*"),
        (f"{ours}norm.*", f"{theirs}.layer_norm.*"),
    )


NORMS = (("attn", "self_attn"), ("cross", "encoder_attn"), ("mlp", "final"))

FAMILIES = (
    Family(
        name="transformer",
        title="Transformer",
        born="2017-06",
        note=Note(
            "attention alone, no recurrence: heads, positions as waves, a feed-forward net in every layer",
            "回帰をやめ注意だけで組む。多頭、波で表す位置、各層の順伝播網",
        ),
        takes=("attention",),
        paper="Vaswani 2017, arXiv:1706.03762",
        licence="Apache-2.0",
        root=Model(
            vocab=37_000,
            dim=512,
            depth=6,
            context=512,
            blocks=(post(SELF, CROSS, FFN),),
            embed=Embed(Sinusoid(), scale="sqrt_dim", shared=True),
            norm=None,
            head=Head(shift=True),
            encoder=Model(
                vocab=37_000,
                dim=512,
                depth=6,
                context=512,
                blocks=(post(SEEN, FFN),),
                embed=Embed(Sinusoid(), scale="sqrt_dim"),
                norm=None,
                head=BARE,
            ),
        ),
        sizes={
            "base": size(63_082_496, 512, 6, 6, 8, 2048),
            "big": size(214_245_376, 1024, 6, 6, 16, 4096),
            "opus-mt-en-de": size(73_886_208, 512, 6, 6, 8, 2048, vocab=58_101, **{"encoder.vocab": 58_101}),
        },
        model_type="marian",
        architecture="MarianMTModel",
        keys={
            "vocab_size": Both(("vocab", "encoder.vocab")),
            "decoder_vocab_size": OtherVocabulary(),
            "d_model": Both(("dim", "encoder.dim")),
            "encoder_layers": "encoder.depth",
            "decoder_layers": Depth("encoder_layers"),
            "encoder_attention_heads": "encoder.blocks.attention.heads",
            "decoder_attention_heads": Both(("blocks.attention.heads", "blocks.cross.heads")),
            "encoder_ffn_dim": "encoder.blocks.mlp.hidden",
            "decoder_ffn_dim": "blocks.mlp.hidden",
            "max_position_embeddings": Both(("context", "encoder.context")),
            "activation_function": Act(),
            "scale_embedding": SqrtDim(("embed.scale", "encoder.embed.scale")),
            "share_encoder_decoder_embeddings": SharedTable(),
            "tie_word_embeddings": "head.tied",
            "num_hidden_layers": Codec(),  # says again how many layers the encoder has
            "static_position_embeddings": Codec(),
            "normalize_before": Codec(),
            "normalize_embedding": Codec(),
            "add_final_layer_norm": Codec(),
            "add_bias_logits": Codec(),
            "encoder_layerdrop": Codec(),
            "decoder_layerdrop": Codec(),
        },
        defaults={"scale_embedding": False, "activation_function": "gelu"},
        names=(
            ("embed.token.weight", "model.decoder.embed_tokens.weight", Layout(beside="encoder.embed.token.weight")),
            ("encoder.embed.token.weight", "model.encoder.embed_tokens.weight"),
            ("embed.token.weight", "model.shared.weight"),
            ("head.shift", "final_logits_bias"),
            ("head.weight", "lm_head.weight"),
            *half("", "model.decoder"),
            *half("encoder.", "model.encoder"),
        ),
        copies={
            "model.encoder.embed_tokens.weight": "model.shared.weight",
            "model.decoder.embed_tokens.weight": "model.shared.weight",
        },
    ),
    Family(
        name="bart",
        title="BART",
        born="2019-10",
        note=Note(
            "an encoder like BERT and a decoder like GPT, trained to mend broken text",
            "BERT のような符号化と GPT のような復号。壊した文章を直して学ぶ",
        ),
        parent="transformer",
        takes=("bert", "gpt"),
        paper="Lewis 2019, arXiv:1910.13461",
        licence="MIT",
        changes={
            "embed": Embed(Learned(2), norm=NORM, shared=True),
            "encoder.embed": Embed(Learned(2), norm=NORM),
            "vocab": 50_265,
            "encoder.vocab": 50_265,
            "context": 1024,
            "encoder.context": 1024,
            "mlp.act": "gelu",
        },
        sizes={
            "base": size(139_420_416, 768, 6, 6, 12, 3072),
            "large": size(406_291_456, 1024, 12, 12, 16, 4096),
        },
        model_type="bart",
        architecture="BartForConditionalGeneration",
        keys={"share_encoder_decoder_embeddings": None, "decoder_vocab_size": None},
    ),
    Family(
        name="mbart",
        title="mBART",
        born="2020-01",
        note=Note("BART in 25 languages, norms before each branch", "25 言語の BART。正規化は各枝の前"),
        parent="bart",
        paper="Liu 2020, arXiv:2001.08210",
        licence="MIT",
        changes={
            "blocks": (pre(NORM, SELF, CROSS, FFN),),
            "encoder.blocks": (pre(NORM, SEEN, FFN),),
            "norm": NORM,
            "encoder.norm": NORM,
            "mlp.act": "gelu",
            "embed.scale": "sqrt_dim",
            "encoder.embed.scale": "sqrt_dim",
            "vocab": 250_027,
            "encoder.vocab": 250_027,
        },
        sizes={"large-cc25": size(610_851_840, 1024, 12, 12, 16, 4096)},
        model_type="mbart",
        architecture="MBartForConditionalGeneration",
    ),
    Family(
        name="alexatm",
        title="AlexaTM",
        born="2022-08",
        note=Note(
            "a multilingual encoder–decoder of 20 billion, trained to denoise and to continue",
            "二百億パラメータの多言語エンコーダー・デコーダー。復元と続きの生成の両方で訓練",
        ),
        parent="mbart",
        paper="Soltan 2022, arXiv:2208.01448",
        changes={
            "vocab": 150_000,
            "encoder.vocab": 150_000,
            "dim": 4096,
            "encoder.dim": 4096,
            "depth": 32,
            "encoder.depth": 46,
            "attention.heads": 32,
            "cross.heads": 32,
            "mlp.hidden": 16_384,
        },
        proof="mBART's layout",
        fresh=True,
    ),
    Family(
        name="alphacode",
        title="AlphaCode",
        born="2022-02",
        note=Note(
            "a shallow encoder and a deep decoder write many programs; tests choose",
            "浅い符号化と深い復号で多くのプログラムを書き、テストで選ぶ",
        ),
        parent="transformer",
        paper="Li 2022, arXiv:2203.07814",
        changes={
            "vocab": 8000,
            "encoder.vocab": 8000,
            "context": 768,
            "encoder.context": 1536,
            "blocks": (pre(NORM, Attention(48, 16, 128), Cross(48, 16, 128), MLP(36_864, "gelu")),),
            "encoder.blocks": (pre(NORM, Attention(48, 16, 128, causal=False), MLP(36_864, "gelu")),),
            "embed": Embed(Learned(), shared=True),
            "encoder.embed": Embed(Learned()),
            "norm": NORM,
            "encoder.norm": NORM,
            "head": Head(),
        },
        sizes={
            "41b": Size(41_136_218_112, {"dim": 6144, "encoder.dim": 6144, "depth": 56, "encoder.depth": 8}),
        },
        proof="the paper's 41.1 billion; mBART's layout with fewer heads for keys",
        fresh=True,
    ),
)
