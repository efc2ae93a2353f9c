"""State spaces and linear recurrences: what came beside the Transformer."""

from __future__ import annotations

from dataclasses import replace

from terakoya.model.spec import (
    MLP,
    Attention,
    Block,
    Branch,
    Embed,
    Head,
    LayerNorm,
    MoE,
    RMSNorm,
    Rope,
    Window,
    pre,
)
from terakoya.model.spec_recurrent import RGLRU, Mamba, Mamba2, Rwkv4, RwkvChannel
from terakoya.zoo.codec import Act, Both, Codec, KVHeads, Must, Told
from terakoya.zoo.node import Family, Note, Size
from terakoya.zoo.rotary import Rotary
from terakoya.zoo.states import Every, Expand, Half, HeadWidth, Offset, Pattern, Rank, Unlimited, Wide

L = "layers.{i}."
MAMBA = Mamba(1536, 48)
STEPS = ("time_step_scale", "time_step_min", "time_step_max", "time_step_init_scheme", "time_step_floor")
UNREAD = {k: Codec() for k in (*STEPS, "residual_in_fp32", "rescale_prenorm_residual", "use_mambapy")}
UNREAD |= {"use_associative_scan": Codec(), "layer_types": Codec()}


def mamba(parameters: int, dim: int, depth: int) -> Size:
    """One row of Mamba's table."""
    return Size(parameters, {"dim": dim, "depth": depth, "mamba.inner": 2 * dim, "mamba.rank": -(-dim // 16)})


def mamba2(parameters: int, dim: int, depth: int) -> Size:
    """One row of Mamba-2's table."""
    return Size(parameters, {"dim": dim, "depth": depth, "mamba2.inner": 2 * dim, "mamba2.heads": dim // 32})


def rwkv(parameters: int, dim: int, depth: int) -> Size:
    """One row of RWKV's table."""
    return Size(parameters, {"dim": dim, "depth": depth, "rwkvchannel.hidden": 4 * dim})


ATTENDS = Every(
    "attn_layer_offset",
    4,
    8,
    {"branches.0.mix": (Attention(32, kv_heads=8),)},
    {"branches.0.mix": (Mamba(8192, 256, norms=1e-6),)},
)
FEED = MLP(14_336, "silu", gated=True)
CHOOSES = Every(
    "expert_layer_offset",
    1,
    2,
    {"branches.1.mix": (MoE(FEED, 16, 2, normalize=False),)},
    {"branches.1.mix": (FEED,)},
)
LOCAL = Attention(10, kv_heads=1, out_bias=True, position=Rope(fraction=0.5), reach=Window(2048))
GRIFFIN = pre(RMSNorm(offset=1.0), RGLRU(2560, 10, conv=4), MLP(7680, "gelu_tanh", gated=True, bias=True))
GRIFFIN_LOCAL = Block((replace(GRIFFIN.branches[0], mix=(LOCAL,)), GRIFFIN.branches[1]))

FAMILIES = (
    Family(
        name="rwkv",
        title="RWKV",
        born="2021-08",
        note=Note(
            "trains in parallel like a Transformer, speaks step by step like an RNN",
            "Transformer のように並列に学び、RNN のように一歩ずつ話す",
        ),
        parent="rnn",
        takes=("transformer",),
        paper="Peng 2023, arXiv:2305.13048",
        licence="Apache-2.0",
        changes={
            "vocab": 50_277,
            "dim": 768,
            "depth": 12,
            "context": 1024,
            "blocks": (pre(LayerNorm(), Rwkv4(), RwkvChannel(3072)),),
            "embed": Embed(norm=LayerNorm()),
            "norm": LayerNorm(),
            "head": Head(tied=False),
        },
        sizes={
            "169m": rwkv(169_342_464, 768, 12),
            "430m": rwkv(430_397_440, 1024, 24),
            "14b": rwkv(14_148_597_760, 5120, 40),
        },
        model_type="rwkv",
        architecture="RwkvForCausalLM",
        fresh=True,
        keys={
            "vocab_size": "vocab",
            "context_length": "context",
            "hidden_size": "dim",
            "num_hidden_layers": "depth",
            "attention_hidden_size": "rwkv4.hidden",
            "intermediate_size": "rwkvchannel.hidden",
            "layer_norm_epsilon": Both(("branch.layernorm.eps", "embed.norm.eps")),
            "rescale_every": Codec(),
            "tie_word_embeddings": "head.tied",
        },
        names=(
            ("embed.token.weight", "rwkv.embeddings.weight"),
            ("embed.norm.*", "rwkv.blocks.0.pre_ln.*"),
            ("norm.*", "rwkv.ln_out.*"),
            ("head.*", "head.*"),
            (L + "time_pre.*", "rwkv.blocks.{i}.ln1.*"),
            (L + "channel_pre.*", "rwkv.blocks.{i}.ln2.*"),
            (L + "time.decay", "rwkv.blocks.{i}.attention.time_decay"),
            (L + "time.first", "rwkv.blocks.{i}.attention.time_first"),
            *(
                (L + f"{a}.mix_{x}", f"rwkv.blocks.{{i}}.{b}.time_mix_{y}")
                for a, b in (("time", "attention"), ("channel", "feed_forward"))
                for x, y in (("k", "key"), ("v", "value"), ("r", "receptance"))
            ),
            *(
                (L + f"time.{x}.weight", f"rwkv.blocks.{{i}}.attention.{y}.weight")
                for x, y in (("k", "key"), ("v", "value"), ("r", "receptance"), ("o", "output"))
            ),
            *(
                (L + f"channel.{x}.weight", f"rwkv.blocks.{{i}}.feed_forward.{y}.weight")
                for x, y in (("k", "key"), ("r", "receptance"), ("o", "value"))
            ),
        ),
    ),
    Family(
        name="mamba",
        title="Mamba",
        born="2023-12",
        note=Note(
            "a state-space model whose parameters depend on the input: it selects what to remember",
            "入力によって係数が変わる状態空間モデル。何を覚えるかを選ぶ",
        ),
        parent="rwkv",
        takes=("h3",),
        paper="Gu and Dao 2023, arXiv:2312.00752",
        licence="Apache-2.0",
        changes={
            "vocab": 50_280,
            "depth": 24,
            "context": 1 << 16,
            "blocks": (Block((Branch((MAMBA,), pre=RMSNorm(1e-5)),)),),
            "embed": Embed(),
            "norm": RMSNorm(1e-5),
            "head": Head(),
        },
        sizes={
            "130m": mamba(129_135_360, 768, 24),
            "370m": mamba(371_516_416, 1024, 48),
            "2.8b": mamba(2_768_345_600, 2560, 64),
        },
        model_type="mamba",
        architecture="MambaForCausalLM",
        fresh=True,
        keys={
            "vocab_size": "vocab",
            "hidden_size": "dim",
            "num_hidden_layers": "depth",
            "state_size": "mamba.state",
            "expand": Expand("mamba.inner"),
            "intermediate_size": Told("mamba.inner"),
            "conv_kernel": "mamba.conv",
            "time_step_rank": Rank(),
            "max_position_embeddings": "context",
            "use_bias": "mamba.bias",
            "use_conv_bias": "mamba.conv_bias",
            "layer_norm_epsilon": "rmsnorm.eps",
            "hidden_act": Must("silu"),
            "tie_word_embeddings": "head.tied",
        }
        | UNREAD,
        names=(
            ("embed.token.weight", "backbone.embeddings.weight"),
            ("norm.*", "backbone.norm_f.*"),
            ("head.*", "lm_head.*"),
            (L + "mamba_pre.*", "backbone.layers.{i}.norm.*"),
            (L + "mamba.(x,z).*", "backbone.layers.{i}.mixer.in_proj.*"),
            (L + "mamba.conv.*", "backbone.layers.{i}.mixer.conv1d.*"),
            (L + "mamba.select.*", "backbone.layers.{i}.mixer.x_proj.*"),
            (L + "mamba.dt.*", "backbone.layers.{i}.mixer.dt_proj.*"),
            (L + "mamba.decay", "backbone.layers.{i}.mixer.A_log"),
            (L + "mamba.through", "backbone.layers.{i}.mixer.D"),
            (L + "mamba.o.*", "backbone.layers.{i}.mixer.out_proj.*"),
        ),
    ),
    Family(
        name="mamba2",
        title="Mamba-2",
        born="2024-05",
        note=Note(
            "Mamba with one decay a head: linear attention that fades, computed by matrix products",
            "ヘッドごとに一つの減衰。薄れていく線形注意として、行列積で計算する Mamba",
        ),
        parent="mamba",
        takes=("linear-attention", "retnet"),
        paper="Dao and Gu 2024, arXiv:2405.21060",
        licence="Apache-2.0",
        changes={
            "blocks": (Block((Branch((Mamba2(1536, 24),), pre=RMSNorm(1e-5)),)),),
            "vocab": 50_288,
        },
        sizes={
            "130m": mamba2(128_989_632, 768, 24),
            "2.7b": mamba2(2_702_599_680, 2560, 64),
        },
        model_type="mamba2",
        architecture="Mamba2ForCausalLM",
        defaults={"tie_word_embeddings": False},
        keys={
            "state_size": "mamba2.state",
            "expand": Expand("mamba2.inner"),
            "num_heads": "mamba2.heads",
            "head_dim": HeadWidth(),
            "n_groups": "mamba2.groups",
            "intermediate_size": None,
            "conv_kernel": "mamba2.conv",
            "time_step_rank": Codec(),
            "time_step_limit": Unlimited(),
            "chunk_size": Codec(),
            "use_bias": "mamba2.bias",
            "use_conv_bias": "mamba2.conv_bias",
            "layer_norm_epsilon": Both(("rmsnorm.eps", "mamba2.eps")),
        },
        names=(
            (L + "mamba.(z,x,dt).*", "backbone.layers.{i}.mixer.in_proj.*"),
            (L + "mamba.step", "backbone.layers.{i}.mixer.dt_bias"),
            (L + "mamba.norm.*", "backbone.layers.{i}.mixer.norm.*"),
        ),
    ),
    Family(
        name="jamba",
        title="Jamba",
        born="2024-03",
        note=Note(
            "one layer of attention to seven of Mamba, experts in every other layer, no positions",
            "Mamba 七層に注意一層、一層おきにエキスパート、位置の情報はなし",
        ),
        parent="mamba",
        takes=("mixtral",),
        paper="Lieber 2024, arXiv:2403.19887",
        licence="Apache-2.0",
        changes={
            "vocab": 65_536,
            "dim": 4096,
            "depth": 32,
            "context": 262_144,
            "blocks": tuple(
                pre(RMSNorm(), *ATTENDS.pick(i)["branches.0.mix"], *CHOOSES.pick(i)["branches.1.mix"]) for i in range(8)
            ),
            "norm": RMSNorm(),
            "head": Head(tied=False),
        },
        sizes={"52b": Size(51_570_323_328)},
        model_type="jamba",
        architecture="JambaForCausalLM",
        fresh=True,
        keys={
            "vocab_size": "vocab",
            "hidden_size": "dim",
            "num_hidden_layers": "depth",
            "max_position_embeddings": "context",
            "attn_layer_period": ATTENDS,
            "attn_layer_offset": Offset(ATTENDS),
            "expert_layer_period": CHOOSES,
            "expert_layer_offset": Offset(CHOOSES),
            "intermediate_size": "mlp.hidden",
            "num_attention_heads": "attention.heads",
            "num_key_value_heads": KVHeads(),
            "num_experts": "moe.count",
            "num_experts_per_tok": "moe.top_k",
            "mamba_d_state": "mamba.state",
            "mamba_d_conv": "mamba.conv",
            "mamba_expand": Expand("mamba.inner"),
            "mamba_dt_rank": Rank(),
            "mamba_conv_bias": "mamba.conv_bias",
            "mamba_proj_bias": "mamba.bias",
            "rms_norm_eps": Both(("rmsnorm.eps", "mamba.norms")),
            "hidden_act": Act(),
            "tie_word_embeddings": "head.tied",
            "use_mamba_kernels": Codec(),
        }
        | UNREAD,
        names=(
            ("embed.token.weight", "model.embed_tokens.weight"),
            ("norm.*", "model.final_layernorm.*"),
            ("head.*", "lm_head.*"),
            *((L + f"{x}_pre.*", "model.layers.{i}.input_layernorm.*") for x in ("mamba", "attn")),
            (L + "mlp_pre.*", "model.layers.{i}.pre_ff_layernorm.*"),
            *((L + f"attn.{x}.*", f"model.layers.{{i}}.self_attn.{x}_proj.*") for x in "qkvo"),
            (L + "mamba.(x,z).*", "model.layers.{i}.mamba.in_proj.*"),
            (L + "mamba.conv.*", "model.layers.{i}.mamba.conv1d.*"),
            (L + "mamba.select.*", "model.layers.{i}.mamba.x_proj.*"),
            (L + "mamba.dt.*", "model.layers.{i}.mamba.dt_proj.*"),
            (L + "mamba.decay", "model.layers.{i}.mamba.A_log"),
            (L + "mamba.through", "model.layers.{i}.mamba.D"),
            (L + "mamba.o.*", "model.layers.{i}.mamba.out_proj.*"),
            *((L + f"mamba.{x}_norm.*", f"model.layers.{{i}}.mamba.{x}_layernorm.*") for x in ("dt", "b", "c")),
            *((L + f"mlp.{x}.*", f"model.layers.{{i}}.feed_forward.{x}_proj.*") for x in ("gate", "up", "down")),
            (L + "mlp.router.*", "model.layers.{i}.feed_forward.router.*"),
            *(
                (L + f"mlp.experts.{x}.*", f"model.layers.{{i}}.feed_forward.experts.{{e}}.{x}_proj.*")
                for x in ("gate", "up", "down")
            ),
        ),
    ),
    Family(
        name="recurrentgemma",
        title="RecurrentGemma",
        born="2024-04",
        note=Note(
            "Griffin: two gated linear recurrences to one window of attention, with Gemma's dress",
            "Griffin。門つき線形回帰二層に窓つき注意一層、装いは Gemma",
        ),
        parent="gemma",
        takes=("rwkv", "mamba"),
        paper="De 2024, arXiv:2402.19427; Botev 2024, arXiv:2404.07839",
        licence="Gemma",
        changes={
            "vocab": 256_000,
            "dim": 2560,
            "depth": 26,
            "context": 8192,
            "blocks": (GRIFFIN, GRIFFIN, GRIFFIN_LOCAL),
            "embed.scale": "sqrt_dim_bf16",
            "head.softcap": 30.0,
        },
        sizes={"2b": Size(2_682_862_080)},
        model_type="recurrent_gemma",
        architecture="RecurrentGemmaForCausalLM",
        fresh=True,
        keys={
            "vocab_size": "vocab",
            "hidden_size": "dim",
            "num_hidden_layers": "depth",
            "block_types": Pattern(
                {
                    "recurrent": {"branches.0.mix": GRIFFIN.branches[0].mix},
                    "attention": {"branches.0.mix": (LOCAL,)},
                },
                ("recurrent", "recurrent", "attention"),
            ),
            "intermediate_size": Half(),
            "num_attention_heads": "attention.heads",
            "num_key_value_heads": KVHeads(),
            "lru_width": Wide(),
            "conv1d_width": "rglru.conv",
            "max_position_embeddings": "context",
            "attention_window_size": "window.size",
            "attention_bias": "attention.bias",
            "logits_soft_cap": "head.softcap",
            "rms_norm_eps": "rmsnorm.eps",
            "hidden_activation": Act(),
            "rope_parameters": Rotary(partial=True),
            "w_init_variance_scale": Codec(),
            "final_w_init_variance_scale": Codec(),
            "head_dim": Codec(),
            "layers_block_type": Codec(),
            "tie_word_embeddings": "head.tied",
        },
        names=(
            ("embed.token.weight", "model.embed_tokens.weight"),
            ("norm.*", "model.final_norm.*"),
            ("head.*", "lm_head.*"),
            *((L + f"{x}_pre.*", "model.layers.{i}.temporal_pre_norm.*") for x in ("rglru", "attn")),
            (L + "mlp_pre.*", "model.layers.{i}.channel_pre_norm.*"),
            *((L + f"attn.{x}.*", f"model.layers.{{i}}.temporal_block.{x}_proj.*") for x in "qkvo"),
            *(
                (L + f"rglru.{x}.*", f"model.layers.{{i}}.temporal_block.{y}.*")
                for x, y in (("gate", "linear_y"), ("x", "linear_x"), ("o", "linear_out"), ("conv", "conv_1d"))
            ),
            *(
                (L + f"rglru.{x}", f"model.layers.{{i}}.temporal_block.rg_lru.{y}")
                for x, y in (
                    ("decay", "recurrent_param"),
                    ("take", "input_gate_weight"),
                    ("take_bias", "input_gate_bias"),
                    ("keep", "recurrent_gate_weight"),
                    ("keep_bias", "recurrent_gate_bias"),
                )
            ),
            *((L + f"mlp.{x}.*", f"model.layers.{{i}}.mlp_block.{x}_proj.*") for x in ("gate", "up", "down")),
        ),
    ),
)
