"""The GPT line: OpenAI's decoders."""

from __future__ import annotations

from typing import Any

from terakoya.model.spec import (
    MLP,
    Attention,
    Block,
    Branch,
    Embed,
    Full,
    LayerNorm,
    Learned,
    Model,
    Sinusoid,
    Window,
    pre,
)
from terakoya.zoo.codec import Act, Codec, Flag, Hidden
from terakoya.zoo.names import Layout
from terakoya.zoo.node import Family, Note, Size

CONV1D = Layout(transpose=True)
NORM = LayerNorm()
L, H = "layers.{i}.", "transformer.h.{i}."


def size(parameters: int, dim: int, depth: int, heads: int, **more: Any) -> Size:
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
    Family(
        name="megatron-lm",
        title="Megatron-LM",
        born="2019-09",
        note=Note(
            "GPT-2 made large by cutting each matrix over many GPUs",
            "各行列を多数の GPU に分割し、GPT-2 を大きくしたもの",
        ),
        parent="gpt2",
        paper="Shoeybi 2019, arXiv:1909.08053",
        licence="not released",
        proof="parameter count of the paper",
        changes={"vocab": 51_200},
        sizes={
            "1.2b": size(1_213_479_936, 1536, 40, 16),
            "2.5b": size(2_490_408_960, 1920, 54, 20),
            "8.3b": size(8_317_040_640, 3072, 72, 24),
        },
    ),
    Family(
        name="ctrl",
        title="CTRL",
        born="2019-09",
        note=Note(
            "control codes steer genre and style; sinusoids in place of learned positions",
            "制御コードで分野や文体を操る。位置は学習せず正弦波で表す",
        ),
        parent="gpt2",
        takes=("transformer",),
        paper="Keskar 2019, arXiv:1909.05858",
        licence="BSD-3-Clause",
        changes={
            "vocab": 246_534,
            "dim": 1280,
            "depth": 48,
            "context": 256,
            "blocks": (pre(LayerNorm(1e-6), Attention(16, bias=True, out_bias=True), MLP(8192, "relu", bias=True)),),
            "norm.eps": 1e-6,
            "embed": Embed(position=Sinusoid(), scale="sqrt_dim"),
            "head.bias": True,
        },
        sizes={"1.6b": Size(1_637_964_550)},
        model_type="ctrl",
        architecture="CTRLLMHeadModel",
        keys={
            "dff": "mlp.hidden",
            "layer_norm_epsilon": "norm.eps",
            "n_inner": None,
            "activation_function": None,
            "scale_attn_weights": None,
            "scale_attn_by_inverse_layer_idx": None,
        },
        names=(
            ("embed.token.weight", "transformer.w.weight"),
            ("norm.*", "transformer.layernorm.*"),
            (L + "attn_pre.*", H + "layernorm1.*"),
            (L + "mlp_pre.*", H + "layernorm2.*"),
            *((L + f"attn.{x}.*", H + f"multi_head_attention.W{x}.*") for x in "qkv"),
            (L + "attn.o.*", H + "multi_head_attention.dense.*"),
            (L + "mlp.up.*", H + "ffn.0.*"),
            (L + "mlp.down.*", H + "ffn.2.*"),
        ),
    ),
    Family(
        name="turing-nlg",
        title="Turing-NLG",
        born="2020-02",
        note=Note("Megatron's layout at 17 billion parameters", "Megatron の構造を 170 億パラメータに"),
        parent="megatron-lm",
        paper="Rosset 2020, Turing-NLG: A 17-billion-parameter language model by Microsoft",
        licence="not released",
        proof="parameter count of the announcement",
        changes={"vocab": 50_257},
        sizes={"17b": size(17_176_845_728, 4256, 78, 28)},
    ),
    Family(
        name="gpt3",
        title="GPT-3",
        born="2020-05",
        note=Note(
            "every other layer sees a band only; tasks are learned from examples in the prompt",
            "一層おきに近傍だけを見る。プロンプト中の例から課題を学ぶ",
        ),
        parent="gpt2",
        takes=("sparse-transformer",),
        paper="Brown 2020, arXiv:2005.14165",
        licence="closed",
        proof="parameter counts of the paper; the parts are GPT-2's and GPT-Neo's",
        changes={
            "context": 2048,
            "blocks": tuple(
                pre(NORM, Attention(96, bias=True, out_bias=True, reach=reach), MLP(49_152, bias=True))
                for reach in (Full(), Window(256))  # the paper names the pattern, not the width of its band
            ),
            "dim": 12_288,
            "depth": 96,
        },
        sizes={
            "small": size(125_226_240, 768, 12, 12),
            "medium": size(355_871_744, 1024, 24, 16),
            "large": size(760_300_032, 1536, 24, 16),
            "2.7b": size(2_651_553_280, 2560, 32, 32),
            "6.7b": size(6_658_404_352, 4096, 32, 32),
            "175b": size(174_604_259_328, 12_288, 96, 96),
        },
    ),
    Family(
        name="mt-nlg",
        title="Megatron-Turing NLG",
        born="2021-10",
        note=Note("530 billion parameters, dense", "5300 億パラメータの密なモデル"),
        parent="megatron-lm",
        takes=("turing-nlg",),
        paper="Smith 2022, arXiv:2201.11990",
        licence="not released",
        proof="parameter count of the paper",
        changes={"context": 2048},
        sizes={"530b": size(529_600_819_200, 20_480, 105, 128)},
    ),
    Family(
        name="gpt-bigcode",
        title="GPT-BigCode (SantaCoder, StarCoder)",
        born="2022-12",
        note=Note(
            "GPT-2 with one key-value head, taught on permissively licensed code",
            "キーとバリューを一組にした GPT-2。寛容なライセンスのコードで訓練",
        ),
        parent="gpt2",
        takes=("codegen",),
        paper="Ben Allal 2023, arXiv:2301.03988; Li 2023, arXiv:2305.06161",
        licence="OpenRAIL-M",
        changes={"attention.kv_heads": 1},
        sizes={
            "santacoder": Size(1_124_886_528, {**size(0, 2048, 24, 16).changes, "vocab": 49_280, "context": 2048}),
            "starcoder": Size(15_517_456_384, {**size(0, 6144, 40, 48).changes, "vocab": 49_152, "context": 8192}),
        },
        model_type="gpt_bigcode",
        architecture="GPTBigCodeForCausalLM",
        keys={
            "multi_query": Flag("attention.kv_heads", 1, None),
            "num_key_value_heads": Codec(),
            "inference_runner": Codec(),
            "validate_runner_input": Codec(),
            "pre_allocate_kv_cache": Codec(),
            "max_sequence_length": Codec(),
            "max_batch_size": Codec(),
            "pad_key_length": Codec(),
        },
        names=(
            (L + "attn.(q,k,v).*", H + "attn.c_attn.*", Layout(groups="kv_heads")),
            (L + "attn.o.*", H + "attn.c_proj.*"),
            (L + "mlp.up.*", H + "mlp.c_fc.*"),
            (L + "mlp.down.*", H + "mlp.c_proj.*"),
        ),
    ),
)
