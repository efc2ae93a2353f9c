"""The open GPTs: EleutherAI's models and what was built on their code."""

from __future__ import annotations

from terakoya.model.spec import MLP, Attention, Block, Branch, Embed, Full, Head, LayerNorm, Rope, Window, pre
from terakoya.zoo.codec import Act, Both, Hidden, Must, RotaryDim, Times
from terakoya.zoo.families.gpt import size
from terakoya.zoo.layers import Attentions, LastLayer
from terakoya.zoo.names import Layout
from terakoya.zoo.node import Family, Note, Size
from terakoya.zoo.rotary import Rotary

NORM = LayerNorm()
L, H = "layers.{i}.", "transformer.h.{i}."
X, J = "gpt_neox.layers.{i}.", "gpt_neox_japanese.layers.{i}."
PER_HEAD = Layout(groups="heads")
HALF = Rope(fraction=0.25)


def sized(parameters: int, dim: int, depth: int, heads: int, vocab: int) -> Size:
    """One row of a family whose vocabularies are padded differently."""
    return size(parameters, dim, depth, heads, vocab=vocab)


FAMILIES = (
    Family(
        name="gpt-neo",
        title="GPT-Neo",
        born="2021-03",
        note=Note(
            "GPT-3's open copy: every other layer sees 256 tokens; scores are not scaled",
            "GPT-3 の公開版。一層おきに 256 トークンだけを見る。スコアは割らない",
        ),
        parent="gpt2",
        takes=("gpt3",),
        paper="Black 2021, doi:10.5281/zenodo.5297715; Gao 2020, arXiv:2101.00027",
        licence="MIT",
        changes={
            "context": 2048,
            "blocks": tuple(
                pre(NORM, Attention(16, out_bias=True, scale=1.0, reach=reach), MLP(8192, bias=True))
                for reach in (Full(), Window(256))
            ),
            "dim": 2048,
            "depth": 24,
        },
        sizes={
            "125m": size(125_198_592, 768, 12, 12),
            "1.3b": size(1_315_575_808, 2048, 24, 16),
            "2.7b": size(2_651_307_520, 2560, 32, 20),
        },
        model_type="gpt_neo",
        architecture="GPTNeoForCausalLM",
        fresh=True,
        keys={
            "vocab_size": "vocab",
            "hidden_size": "dim",
            "num_layers": "depth",
            "num_heads": "attention.heads",
            "max_position_embeddings": "context",
            "intermediate_size": Hidden(width="hidden_size"),
            "window_size": "window.size",
            "attention_types": Attentions(
                {"global": {"attention.reach": Full()}, "local": {"attention.reach": Window(256)}}
            ),
            "activation_function": Act(),
            "layer_norm_epsilon": "layernorm.eps",
            "tie_word_embeddings": "head.tied",
        },
        names=(
            ("embed.token.weight", "transformer.wte.weight"),
            ("embed.position.weight", "transformer.wpe.weight"),
            ("norm.*", "transformer.ln_f.*"),
            ("head.*", "lm_head.*"),
            (L + "attn_pre.*", H + "ln_1.*"),
            (L + "mlp_pre.*", H + "ln_2.*"),
            *((L + f"attn.{x}.*", H + f"attn.attention.{x}_proj.*") for x in "qkv"),
            (L + "attn.o.*", H + "attn.attention.out_proj.*"),
            (L + "mlp.up.*", H + "mlp.c_fc.*"),
            (L + "mlp.down.*", H + "mlp.c_proj.*"),
        ),
    ),
    Family(
        name="gpt-j",
        title="GPT-J",
        born="2021-06",
        note=Note(
            "attention and FFN side by side under one norm; rotary positions",
            "注意と FFN を一つの正規化の下で並列に。回転位置埋め込み",
        ),
        parent="gpt2",
        takes=("gpt-neo", "roformer"),
        paper="Wang & Komatsuzaki 2021, GPT-J-6B",
        licence="Apache-2.0",
        changes={
            "vocab": 50_400,
            "dim": 4096,
            "depth": 28,
            "context": 2048,
            "blocks": (
                Block(
                    (
                        Branch(
                            (Attention(16, position=Rope(fraction=0.25, interleaved=True)), MLP(16_384, bias=True)),
                            pre=NORM,
                        ),
                    )
                ),
            ),
            "embed": Embed(),
            "head": Head(tied=False, bias=True),
        },
        sizes={"6b": Size(6_050_882_784)},
        model_type="gptj",
        architecture="GPTJForCausalLM",
        keys={
            "rotary_dim": RotaryDim(),
            "rotary": Must(True),
            "scale_attn_weights": Must(True),
            "scale_attn_by_inverse_layer_idx": None,
        },
        defaults={"tie_word_embeddings": False},
        names=(
            *((L + f"attn.{x}.*", H + f"attn.{x}_proj.*") for x in "qkv"),
            (L + "attn.o.*", H + "attn.out_proj.*"),
            (L + "mlp.up.*", H + "mlp.fc_in.*"),
            (L + "mlp.down.*", H + "mlp.fc_out.*"),
        ),
    ),
    Family(
        name="codegen",
        title="CodeGen",
        born="2022-03",
        note=Note("GPT-J taught to program, in several turns", "対話しながらプログラムを書くよう訓練した GPT-J"),
        parent="gpt-j",
        paper="Nijkamp 2022, arXiv:2203.13474",
        licence="BSD-3-Clause",
        changes={"vocab": 51_200},
        sizes={
            "350m": size(356_712_448, 1024, 20, 16, **{"rope.fraction": 0.5}),
            "2b": size(2_779_356_160, 2560, 32, 32, **{"rope.fraction": 0.8}),
            "6b": size(7_064_213_504, 4096, 33, 16),
            "16b": size(16_032_155_648, 6144, 34, 24),
        },
        model_type="codegen",
        architecture="CodeGenForCausalLM",
        names=((L + "attn.(q,v,k).*", H + "attn.qkv_proj.*", Layout(groups=4)),),
    ),
    Family(
        name="gpt-neox",
        title="GPT-NeoX",
        born="2022-02",
        note=Note(
            "a norm for each of the two parallel branches; biases are back; a quarter of each head turns by halves",
            "並列の二枝に別々の正規化。バイアスが戻り、各ヘッドの四分の一が半分ずつ回る",
        ),
        parent="gpt-j",
        takes=("gpt-neo",),
        paper="Black 2022, arXiv:2204.06745",
        licence="Apache-2.0",
        changes={
            "vocab": 50_432,
            "dim": 6144,
            "depth": 44,
            "blocks": (
                Block(
                    (
                        Branch(
                            (
                                Attention(64, bias=True, out_bias=True, position=HALF),
                                MLP(24_576, "gelu", bias=True),
                            ),
                            pre=NORM,
                            each=True,
                        ),
                    )
                ),
            ),
            "head.bias": False,
        },
        sizes={"20b": Size(20_554_567_680)},
        model_type="gpt_neox",
        architecture="GPTNeoXForCausalLM",
        fresh=True,
        keys={
            "vocab_size": "vocab",
            "hidden_size": "dim",
            "num_hidden_layers": "depth",
            "num_attention_heads": "attention.heads",
            "max_position_embeddings": "context",
            "intermediate_size": "mlp.hidden",
            "hidden_act": Act(),
            "layer_norm_eps": "layernorm.eps",
            "attention_bias": Both(("attention.bias", "attention.out_bias")),
            "rope_parameters": Rotary(partial=True),
            "tie_word_embeddings": "head.tied",
            "use_parallel_residual": Must(True),
        },
        names=(
            ("embed.token.weight", "gpt_neox.embed_in.weight"),
            ("norm.*", "gpt_neox.final_layer_norm.*"),
            ("head.*", "embed_out.*"),
            (L + "attn_pre.*", X + "input_layernorm.*"),
            (L + "mlp_pre.*", X + "post_attention_layernorm.*"),
            (L + "attn.(q,k,v).*", X + "attention.query_key_value.*", PER_HEAD),
            (L + "attn.o.*", X + "attention.dense.*"),
            (L + "mlp.up.*", X + "mlp.dense_h_to_4h.*"),
            (L + "mlp.down.*", X + "mlp.dense_4h_to_h.*"),
        ),
    ),
    Family(
        name="pythia",
        title="Pythia",
        born="2023-02",
        note=Note(
            "eight sizes that saw the same data in the same order, with 154 checkpoints each",
            "同じデータを同じ順で見た八つの大きさ。途中経過を 154 個ずつ公開",
        ),
        parent="gpt-neox",
        paper="Biderman 2023, arXiv:2304.01373",
        licence="Apache-2.0",
        changes={"vocab": 50_304},
        sizes={
            "70m": sized(70_426_624, 512, 6, 8, 50_304),
            "160m": sized(162_322_944, 768, 12, 12, 50_304),
            "410m": sized(405_334_016, 1024, 24, 16, 50_304),
            "1b": sized(1_011_781_632, 2048, 16, 8, 50_304),
            "1.4b": sized(1_414_647_808, 2048, 24, 16, 50_304),
            "2.8b": sized(2_775_208_960, 2560, 32, 32, 50_304),
            "6.9b": sized(6_857_302_016, 4096, 32, 32, 50_432),
            "12b": sized(11_846_072_320, 5120, 36, 40, 50_688),
        },
    ),
    Family(
        name="gpt-neox-japanese",
        title="GPT-NeoX-Japanese (ABEJA)",
        born="2022-08",
        note=Note(
            "one branch after the other, no biases but one in the last layer; a tokenizer for Japanese",
            "枝は順番に、バイアスは最終層に一つだけ。日本語のためのトークナイザー",
        ),
        parent="gpt-neox",
        paper="https://huggingface.co/abeja/gpt-neox-japanese-2.7b",
        licence="MIT",
        changes={
            "vocab": 32_000,
            "dim": 2560,
            "depth": 32,
            "blocks": tuple(
                pre(NORM, Attention(32, out_bias=last, position=Rope()), MLP(10_240, "gelu")) for last in (False, True)
            ),
            "layout": (0,) * 31 + (1,),
            "head.tied": True,
        },
        sizes={"2.7b": Size(2_598_837_760)},
        model_type="gpt_neox_japanese",
        architecture="GPTNeoXJapaneseForCausalLM",
        keys={
            "intermediate_size": None,
            "attention_bias": None,
            "use_parallel_residual": None,
            "intermediate_multiple_size": Times("hidden_size"),
            "rope_parameters": Rotary(partial=True),
            "last": LastLayer("num_hidden_layers", {"attention.out_bias": False}, {"attention.out_bias": True}),
        },
        names=(
            ("embed.token.weight", "gpt_neox_japanese.embed_in.weight"),
            ("norm.*", "gpt_neox_japanese.final_layer_norm.*"),
            (L + "attn_pre.*", J + "input_layernorm.*"),
            (L + "mlp_pre.*", J + "post_attention_layernorm.*"),
            (L + "attn.(q,k,v).*", J + "attention.query_key_value.*", PER_HEAD),
            (L + "attn.o.weight", J + "attention.dense.weight"),
            (L + "attn.o.bias", J + "attention.dense_bias"),
            (L + "mlp.up.*", J + "mlp.dense_h_to_4h.*"),
            (L + "mlp.down.*", J + "mlp.dense_4h_to_h.*"),
        ),
    ),
    Family(
        name="japanese-gpt-neox",
        title="Japanese-GPT-NeoX (rinna)",
        born="2023-05",
        note=Note(
            "one branch after the other, whole heads turn; taught on Japanese",
            "枝は順番に、ヘッド全体が回る。日本語で訓練",
        ),
        parent="gpt-neox",
        paper="https://huggingface.co/rinna/japanese-gpt-neox-3.6b",
        licence="MIT",
        changes={
            "vocab": 32_000,
            "dim": 2816,
            "depth": 36,
            "blocks": (
                pre(NORM, Attention(22, bias=True, out_bias=True, position=Rope()), MLP(11_264, "gelu", bias=True)),
            ),
        },
        sizes={"3.6b": Size(3_607_245_312)},
        model_type="gpt_neox",
        architecture="GPTNeoXForCausalLM",
        when={"use_parallel_residual": False},
        keys={"use_parallel_residual": Must(False)},
        defaults={"rotary_pct": 0.25},
    ),
    Family(
        name="opencalm",
        title="OpenCALM",
        born="2023-05",
        note=Note("NeoX in Japanese by CyberAgent", "サイバーエージェントによる日本語の NeoX"),
        parent="japanese-gpt-neox",
        takes=("gpt-neox",),
        paper="https://huggingface.co/cyberagent/open-calm-7b",
        licence="CC BY-SA 4.0",
        changes={"vocab": 52_224, "dim": 4096, "depth": 32, "attention.heads": 32, "mlp.hidden": 16_384},
        sizes={"7b": Size(6_871_982_080)},
    ),
)
