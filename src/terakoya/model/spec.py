"""What a model is, as data: one field per design axis, a union per choice. Frozen, hashable, no torch.

The residual stream is data too. A block is a tuple of branches and a branch is

    x <- out( skip * x + scale * sum_i post( f_i( pre_i(x) ) ) )

so pre-, post-, sandwich- and parallel-norm layouts are values of one dataclass, not classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from terakoya.errors import TerakoyaError
from terakoya.model.spec_encoder import Conv as Conv
from terakoya.model.spec_encoder import Cross as Cross
from terakoya.model.spec_encoder import Disentangled as Disentangled
from terakoya.model.spec_encoder import Entities as Entities
from terakoya.model.spec_encoder import Glance as Glance
from terakoya.model.spec_encoder import Pooler as Pooler
from terakoya.model.spec_encoder import Resampler as Resampler
from terakoya.model.spec_encoder import Sight as Sight
from terakoya.model.spec_evolved import GLU as GLU
from terakoya.model.spec_evolved import EvolvedConv as EvolvedConv
from terakoya.model.spec_recurrent import Recurrent
from terakoya.model.spec_sparse import Axial as Axial
from terakoya.model.spec_sparse import Fixed, Local, Lsh, Strided


def _positive(node: object, *names: str) -> None:
    for name in names:
        value = getattr(node, name)
        if value is not None and value < 1:
            raise TerakoyaError(f"{type(node).__name__.lower()}.{name}", given=value, allowed="1 or more")


Act = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu", "quick_gelu", "swiglu_clamped"]


# Norms


@dataclass(frozen=True)
class LayerNorm:
    """Centre and scale (Ba 2016)."""

    eps: float = 1e-5
    bias: bool = True
    affine: bool = True  # False: OLMo 1 learns neither weight nor bias
    offset: float = 0.0  # Nemotron multiplies by (offset + w)


@dataclass(frozen=True)
class RMSNorm:
    """Scale by the root mean square (Zhang & Sennrich 2019)."""

    eps: float = 1e-6
    affine: bool = True  # False: nanochat
    offset: float = 0.0  # Gemma multiplies by (1 + w)


Norm = LayerNorm | RMSNorm


# Positions


@dataclass(frozen=True)
class Linear:
    """Divide every frequency by `factor` (position interpolation, Chen 2023)."""

    factor: float


@dataclass(frozen=True)
class Dynamic:
    """Stretch theta once a sequence passes the trained length (dynamic NTK)."""

    factor: float
    trained: int | None = None  # original length; None: the model's context


@dataclass(frozen=True)
class Yarn:
    """Interpolate low frequencies, keep high ones, sharpen scores (Peng 2023)."""

    factor: float
    trained: int | None = None  # original length; None: the model's context
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention: float | None = None  # multiplier of cos and sin; None: derived from factor and the mscales
    mscale: float | None = None
    mscale_all: float | None = None
    truncate: bool = True  # gpt-oss: False


@dataclass(frozen=True)
class LongRope:
    """One divisor per frequency, for short and for long sequences (Ding 2024)."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    trained: int
    factor: float | None = None
    attention: float | None = None


@dataclass(frozen=True)
class Llama3:
    """Divide only the frequencies whose wave is longer than the trained length allows (Llama 3.1)."""

    factor: float
    low: float = 1.0
    high: float = 4.0
    trained: int = 8192


Scaling = Linear | Dynamic | Yarn | LongRope | Llama3


@dataclass(frozen=True)
class Rope:
    """Rotate pairs of query and key channels by their position (Su 2021)."""

    theta: float = 10_000.0
    fraction: float = 1.0  # of the head that rotates: GPT-J 0.25, phi 0.4
    interleaved: bool = False  # pairs (0,1),(2,3)… as in GPT-J | halves (0,K/2)… as in NeoX and LLaMA
    reverse: bool = False  # nanochat turns the other way
    scaling: Scaling | None = None


@dataclass(frozen=True)
class Alibi:
    """Subtract slope * distance from the scores (Press 2022)."""

    before_scale: bool = False  # Falcon-RW adds it before the 1/sqrt(K)
    rounded: bool = False  # Falcon-RW rounds slope * position to bfloat16


@dataclass(frozen=True)
class Buckets:
    """A learned score per head and bucket of distance, buckets growing by logarithm (Raffel 2019); LaMDA."""

    count: int = 32
    furthest: int = 128
    shared: bool = False  # T5: one table for all layers | LaMDA, umT5: one each


@dataclass(frozen=True)
class Relative:
    """Transformer-XL's term (q + w) · W_r sinusoid(distance) and u · k (Dai 2019); Gopher, Chinchilla."""

    shared: bool = False  # Transformer-XL: one u and w for all layers
    segments: bool = False  # XLNet: and a term for whether both stand in one segment


@dataclass(frozen=True)
class Learned:
    """A table of absolute positions; OPT's starts at row `offset`."""

    offset: int = 0


@dataclass(frozen=True)
class Sinusoid:
    """Fixed sines then cosines (Vaswani 2017), as CTRL lays them out."""


# What a query may look at: every reach is causal where the attention is


@dataclass(frozen=True)
class Full:
    """Everything before."""


@dataclass(frozen=True)
class Window:
    """The last `size` positions, itself included."""

    size: int

    def __post_init__(self) -> None:
        _positive(self, "size")


@dataclass(frozen=True)
class Chunk:
    """Its own chunk of `size` positions (Llama 4)."""

    size: int

    def __post_init__(self) -> None:
        _positive(self, "size")


Reach = Full | Window | Chunk | Strided | Fixed | Local


# Mixers


@dataclass(frozen=True)
class QKNorm:
    """Norm queries and keys."""

    norm: Norm
    over: Literal["head", "heads", "width"] = "head"  # one weight for all heads | one a head | heads as one vector
    after_rope: bool = False  # HunYuan, nanochat, Llama 4


@dataclass(frozen=True)
class Temper:
    """Scale queries by 1 + scale * log(1 + floor((position + 1) / floor)) (Llama 4, layers without rotary)."""

    floor: int
    scale: float


@dataclass(frozen=True)
class Attention:
    """Multi-head, multi-query or grouped-query attention: `kv_heads` = heads | 1 | between."""

    heads: int
    kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: dim / heads
    bias: bool = False
    out_bias: bool = False
    key_bias: bool = True  # where there is a bias, also for keys; DeBERTa v1: False
    causal: bool = True
    position: Rope | Alibi | Buckets | Relative | Disentangled | None = None
    reach: Reach = field(default_factory=Full)
    scale: float | None = None  # None: head_dim ** -0.5
    scale_by_layer: bool = False  # GPT-2 option: divide the scale by the layer's number, from 1
    softcap: float | None = None  # Gemma 2: cap * tanh(score / cap)
    sinks: bool = False  # gpt-oss: one learned score per head that takes probability and gives nothing
    qk_norm: QKNorm | None = None
    clip: float | None = None  # MPT, OLMo 1: clamp q, k and v
    temper: Temper | None = None
    aware: bool = False  # LUKE: queries of their own from words to entities, from these to words, among these

    def __post_init__(self) -> None:
        _positive(self, "heads", "kv_heads", "head_dim")


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: keys and values from one small vector per token (DeepSeek-V2)."""

    heads: int
    kv_rank: int
    nope: int  # head width without rotary
    rope: int  # head width with rotary, its key shared by all heads
    value: int  # head width of values
    q_rank: int | None = None
    position: Rope = field(default_factory=lambda: Rope(interleaved=True))
    bias: bool = False  # of the projections down and out: a switch of DeepSeek's config.json

    def __post_init__(self) -> None:
        _positive(self, "heads", "kv_rank", "nope", "rope", "value", "q_rank")


@dataclass(frozen=True)
class MLP:
    """down(act(up(x))), or down(act(gate(x)) * up(x)) where gated (Shazeer 2020)."""

    hidden: int
    act: Act = "gelu_tanh"
    gated: bool = False
    bias: bool = False
    norm: Norm | None = None  # the Evolved Transformer norms what the second layer reads

    def __post_init__(self) -> None:
        _positive(self, "hidden")


@dataclass(frozen=True)
class Groups:
    """Choose `keep` of `count` expert groups first, by the max or the sum of the two best of each (DeepSeek)."""

    count: int
    keep: int
    by: Literal["max", "top2"] = "max"


@dataclass(frozen=True)
class MoE:
    """Mixture of experts: a router sends each token to `top_k` of `count` MLPs."""

    expert: MLP
    count: int
    top_k: int
    score: Literal["softmax", "sigmoid", "softmax_topk"] = "softmax"  # last: softmax over the chosen only
    normalize: bool = True  # chosen weights sum to one
    scale: float = 1.0
    groups: Groups | None = None
    choice_bias: bool = False  # DeepSeek-V3: a bias that moves the choice, not the weight
    router_bias: bool = False
    scale_input: bool = False  # Llama 4 weighs the expert's input, not its output
    shared: MLP | None = None  # an expert that every token visits
    shared_gate: bool = False  # Qwen2-MoE: times sigmoid(gate(x))
    capacity: int | None = None  # Switch: an expert passes over a sequence's tokens beyond this many

    def __post_init__(self) -> None:
        _positive(self, "count", "top_k", "capacity")


Mixer = Attention | Cross | Latent | MLP | MoE | GLU | EvolvedConv | Recurrent | Lsh | Glance


# The whole


@dataclass(frozen=True)
class Branch:
    """x <- out( skip * x + scale * sum_i post( f_i( pre_i(x) ) ) ); several mixers run in parallel on the same x."""

    mix: tuple[Mixer, ...]
    pre: Norm | None = None
    post: Norm | None = None
    out: Norm | None = None
    each: bool = False  # parallel mixers: a pre-norm each (NeoX) | one shared (GPT-J)
    normed_skip: bool = False  # the skip starts after the norm (BLOOM's option)
    scale: float = 1.0  # Granite's residual multiplier
    skip: float = 1.0  # 0: recurrent networks before residuals, each layer feeds the next
    gate: bool = False  # Flamingo: times tanh of a learned number that starts at 0


@dataclass(frozen=True)
class Block:
    """One layer: residual branches in order."""

    branches: tuple[Branch, ...]


@dataclass(frozen=True)
class Embed:
    """Tokens (and absolute positions) to vectors."""

    position: Learned | Sinusoid | Axial | None = None
    factor: int | None = None  # width of the table where it is not dim: OPT-350m
    scale: float | Literal["sqrt_dim", "sqrt_dim_bf16"] = 1.0  # Gemma, CTRL | RecurrentGemma | Granite: a number
    norm: Norm | None = None  # BLOOM, nanochat
    types: int = 0  # segments that a vector each is added for: BERT's first and second sentence
    whole: bool = False  # ALBERT, ELECTRA: positions, types and norm are `factor` wide too; one projection, with bias
    shared: bool = False  # a decoder's table is its encoder's (T5, BART)
    asks: bool = False  # XLNet: a vector in the place of a word that is to be guessed
    entities: Entities | None = None  # LUKE


@dataclass(frozen=True)
class Transform:
    """What a vector goes through before it is scored: norm(act(W h)), to the width of the token table (BERT)."""

    act: Act = "gelu"
    norm: Norm | None = None
    bias: bool = True  # ModernBERT: False


@dataclass(frozen=True)
class Head:
    """Vectors to logits."""

    tied: bool = True  # uses the token table
    bias: bool = False
    scale: float = 1.0  # multiplies logits: Cohere, Granite, T5
    softcap: float | None = None
    scores: Literal["words", "replaced", "nothing"] = "words"  # ELECTRA: was this token replaced? | MiniLM: no head
    transform: Transform | None = None
    shift: bool = False  # BART, Marian: constants added to the logits, not learnt


@dataclass(frozen=True)
class Model:
    """A decoder, or an encoder where attention is not causal, or both, where it has an `encoder`.

    Without a layout the blocks repeat in turn; with one, layer i is `blocks[layout[i]]`, and the layers after its end
    are like its last: (0, 1) is one block of the first kind, then the second to the end.
    """

    vocab: int
    dim: int
    depth: int
    context: int
    blocks: tuple[Block, ...]
    embed: Embed = field(default_factory=Embed)
    norm: Norm | None = field(default_factory=RMSNorm)
    head: Head = field(default_factory=Head)
    layout: tuple[int, ...] | None = None
    share: int | None = None  # ALBERT: the layers share this many sets of weights, each for a run of layers
    pool: Pooler | None = None
    conv: Conv | None = None
    sight: Sight | None = None  # LLaVA
    encoder: Model | None = None  # what `Cross` looks at
    reversible: bool = False  # Reformer: two streams, of which each layer's inputs come back from its outputs

    def __post_init__(self) -> None:
        for name in ("vocab", "dim", "depth", "context"):
            if getattr(self, name) < 1:
                raise TerakoyaError(f"model.{name}", given=getattr(self, name), allowed="1 or more")
        if not self.blocks:
            raise TerakoyaError("model.blocks", "is empty", allowed="at least one block")
        if self.layout is not None and (
            not 0 < len(self.layout) <= self.depth or any(not 0 <= i < len(self.blocks) for i in self.layout)
        ):
            raise TerakoyaError(
                "model.layout", given=self.layout, allowed=f"1 to {self.depth} indices below {len(self.blocks)}"
            )

    @property
    def out_dim(self) -> int:
        """Return the width of what the layers give: two streams lie side by side."""
        return 2 * self.dim if self.reversible else self.dim

    @property
    def sort(self) -> Literal["decoder", "encoder", "encoder-decoder"]:
        """Return what it is for: continuing text, understanding text, or writing one text from another."""
        if self.encoder is not None:
            return "encoder-decoder"
        mixers = [m for block in self.blocks for branch in block.branches for m in branch.mix]
        looks = any(isinstance(m, Attention) and not m.causal for m in mixers)
        return "encoder" if looks or self.head.scores == "nothing" else "decoder"

    def layers(self) -> tuple[Block, ...]:
        """Return the block of each layer, from the first to the last."""
        if self.layout is None:
            return tuple(self.blocks[i % len(self.blocks)] for i in range(self.depth))
        rest = self.depth - len(self.layout)
        return tuple(self.blocks[i] for i in (*self.layout, *self.layout[-1:] * rest))


def head_dim(model: Model, attention: Attention | Cross | Lsh) -> int:
    """Return the width K of one head; an error where `dim` does not divide."""
    if attention.head_dim is not None:
        return attention.head_dim
    if model.dim % attention.heads:
        allowed = [h for h in range(1, model.dim + 1) if model.dim % h == 0]
        near = min(allowed, key=lambda h: abs(h - attention.heads))
        raise TerakoyaError(
            "attention.heads", given=attention.heads, allowed=f"divisors of dim={model.dim}", hint=f"nearest: {near}"
        )
    return model.dim // attention.heads


def check(model: Model) -> None:
    """Raise where numbers do not fit each other; while a family is overridden field by field, they may not yet."""
    if model.share is not None and not 0 < model.share <= model.depth:
        raise TerakoyaError("model.share", given=model.share, allowed=f"1 to depth={model.depth}")
    if model.encoder is not None and model.encoder.dim != model.dim:
        raise TerakoyaError("model.encoder.dim", given=model.encoder.dim, allowed=f"the decoder's {model.dim}")
    if isinstance(model.embed.position, Axial):
        model.embed.position.check(model.dim, model.context)
    for block in model.blocks:
        for branch in block.branches:
            for mixer in branch.mix:
                if isinstance(mixer, Attention | Cross):
                    _check_heads(model, mixer)
                if isinstance(mixer, Cross) and model.encoder is None:
                    raise TerakoyaError("model.encoder", "is missing: the blocks look at one")
                if isinstance(mixer, MoE):
                    _check_experts(mixer)


def _check_heads(model: Model, a: Attention | Cross) -> None:
    if a.kv_heads is not None and a.heads % a.kv_heads:
        allowed = [g for g in range(1, a.heads + 1) if a.heads % g == 0]
        raise TerakoyaError("attention.kv_heads", given=a.kv_heads, allowed=allowed)
    if isinstance(a, Cross):
        return
    turning = a.position.fraction * head_dim(model, a) if isinstance(a.position, Rope) else head_dim(model, a) * 0
    if int(turning + 1e-6) % 2:
        raise TerakoyaError("rotary channels of a head", given=int(turning), allowed="an even number")


def _check_experts(moe: MoE) -> None:
    if moe.top_k > moe.count:
        raise TerakoyaError("moe.top_k", given=moe.top_k, allowed=f"1 to count={moe.count}")
    if moe.groups and (moe.groups.count < 1 or moe.count % moe.groups.count):
        raise TerakoyaError("groups.count", given=moe.groups.count, allowed=f"divisors of count={moe.count}")
    if moe.groups and not 0 < moe.groups.keep <= moe.groups.count:
        raise TerakoyaError("groups.keep", given=moe.groups.keep, allowed=f"1 to count={moe.groups.count}")


def continues(model: Model, name: str = "it") -> None:
    """Raise where a model does not continue texts: what generates asks this first."""
    if model.sort != "decoder":
        hint = "terakoya embed, fill or classify" if model.sort == "encoder" else "terakoya translate"
        raise TerakoyaError("model", f"{name} is an {model.sort}: it does not continue a text", hint=hint)


def pre(norm: Norm, *mixers: Mixer, scale: float = 1.0) -> Block:
    """Build the usual block: one branch per mixer, each normed before."""
    return Block(tuple(Branch((m,), pre=norm, scale=scale) for m in mixers))
