"""The GPT line: OpenAI's decoders."""

from __future__ import annotations

from terakoya.model.spec import MLP, Attention, Block, Branch, Embed, LayerNorm, Learned, Model, pre
from terakoya.zoo.hf import Act, Flag, Hidden
from terakoya.zoo.names import Layout
from terakoya.zoo.node import Family, Note, Size

CONV1D = Layout(transpose=True)
NORM = LayerNorm()
L, H = "layers.{i}.", "transformer.h.{i}."


def size(parameters: int, dim: int, depth: int, heads: int, **more: int) -> Size:
    """One row: GPT's FFN is always four times as wide as the stream."""
    return Size(parameters, {"dim": dim, "depth": depth, "attention.heads": heads, "mlp.hidden": 4 * dim} | more)


FAMILIES = (
    Family(
        name="gpt",
        title="GPT",
        born="2018-06",
        note=Note(
            "a Transformer decoder trained to predict the next token, then tuned per task",
            "次のトークンを予測するよう訓練した Transformer デコーダー。課題ごとに微調整する",
        ),
        takes=("transformer", "elmo", "ulmfit"),
        paper="Radford 2018, Improving Language Understanding by Generative Pre-Training",
        licence="MIT",
        root=Model(
            vocab=40_478,
            dim=768,
            depth=12,
            context=512,
            blocks=(
                Block(
                    (
                        Branch((Attention(12, bias=True, out_bias=True),), out=NORM),
                        Branch((MLP(3072, bias=True),), out=NORM),
                    )
                ),
            ),
            embed=Embed(position=Learned()),
            norm=None,
        ),
        sizes={"base": size(116_534_784, 768, 12, 12)},
        model_type="openai-gpt",
        architecture="OpenAIGPTLMHeadModel",
        keys={
            "vocab_size": "vocab",
            "n_embd": "dim",
            "n_layer": "depth",
            "n_head": "attention.heads",
            "n_positions": "context",
            "layer_norm_epsilon": "layernorm.eps",
            "afn": Act(aliases=(("gelu", "gelu_tanh"),)),  # its "gelu" is the tanh approximation
            "tie_word_embeddings": "head.tied",
            "n_inner": Hidden(),
        },
        names=(
            ("embed.token.weight", "transformer.tokens_embed.weight"),
            ("embed.position.weight", "transformer.positions_embed.weight"),
            (L + "attn_out.*", H + "ln_1.*"),
            (L + "mlp_out.*", H + "ln_2.*"),
            (L + "attn.(q,k,v).*", H + "attn.c_attn.*", CONV1D),
            (L + "attn.o.*", H + "attn.c_proj.*", CONV1D),
            (L + "mlp.up.*", H + "mlp.c_fc.*", CONV1D),
            (L + "mlp.down.*", H + "mlp.c_proj.*", CONV1D),
            ("head.*", "lm_head.*"),
        ),
    ),
    Family(
        name="gpt2",
        title="GPT-2",
        born="2019-02",
        note=Note(
            "norms move before each branch, one more at the end; tasks without tuning",
            "正規化を各枝の前へ移し、最後に一つ加える。微調整なしで課題を解く",
        ),
        parent="gpt",
        paper="Radford 2019, Language Models are Unsupervised Multitask Learners",
        licence="MIT",
        changes={
            "blocks": (pre(NORM, Attention(12, bias=True, out_bias=True), MLP(3072, bias=True)),),
            "norm": NORM,
            "vocab": 50_257,
            "context": 1024,
        },
        sizes={
            "small": size(124_439_808, 768, 12, 12),
            "medium": size(354_823_168, 1024, 24, 16),
            "large": size(774_030_080, 1280, 36, 20),
            "xl": size(1_557_611_200, 1600, 48, 25),
        },
        model_type="gpt2",
        architecture="GPT2LMHeadModel",
        keys={
            "afn": None,
            "activation_function": Act(),
            "scale_attn_weights": Flag("attention.scale", None, 1.0),
            "scale_attn_by_inverse_layer_idx": "attention.scale_by_layer",
        },
        names=(
            ("embed.token.weight", "transformer.wte.weight"),
            ("embed.position.weight", "transformer.wpe.weight"),
            ("norm.*", "transformer.ln_f.*"),
            (L + "attn_pre.*", H + "ln_1.*"),
            (L + "mlp_pre.*", H + "ln_2.*"),
        ),
    ),
)
