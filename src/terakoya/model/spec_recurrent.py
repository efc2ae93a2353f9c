"""Mixers with a memory of constant size, as data: recurrent cells, state spaces, linear attention. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from terakoya.errors import TerakoyaError


def _positive(node: object, *names: str) -> None:
    for name in names:
        value = getattr(node, name)
        if value is not None and value < 1:
            raise TerakoyaError(f"{type(node).__name__.lower()}.{name}", given=value, allowed="1 or more")


def _even(node: object, name: str) -> None:
    value = getattr(node, name)
    if value < 2 or value % 2:
        raise TerakoyaError(f"{type(node).__name__.lower()}.{name}", given=value, allowed="an even number")


@dataclass(frozen=True)
class RNN:
    """h <- tanh(W x + U h + b), as wide as the model (Elman 1990)."""


@dataclass(frozen=True)
class LSTM:
    """Long short-term memory with a forget gate (Hochreiter 1997; Gers 2000)."""

    hidden: int | None = None  # cells, projected back to dim where they are more (Sak 2014); None: dim

    def __post_init__(self) -> None:
        _positive(self, "hidden")


@dataclass(frozen=True)
class GRU:
    """Gated recurrent unit, the reset gate after the product (Cho 2014, as cuDNN and torch have it)."""


@dataclass(frozen=True)
class Mamba:
    """A diagonal state space whose step, input and output depend on the token (Gu & Dao 2023)."""

    inner: int  # channels, each with a state of its own
    rank: int  # of the step sizes
    state: int = 16
    conv: int = 4
    bias: bool = False  # of the projections in and out
    conv_bias: bool = True
    norms: float | None = None  # Jamba: root-mean-square norms on step, input and output; their eps

    def __post_init__(self) -> None:
        _positive(self, "inner", "rank", "state", "conv")


@dataclass(frozen=True)
class Mamba2:
    """The same with one decay a head, so that it is linear attention that fades (Dao & Gu 2024)."""

    inner: int
    heads: int
    state: int = 128
    groups: int = 1  # heads that share input and output vectors
    conv: int = 4
    bias: bool = False
    conv_bias: bool = True
    eps: float = 1e-5  # of the norm behind the gate

    def __post_init__(self) -> None:
        _positive(self, "inner", "heads", "state", "groups", "conv")


@dataclass(frozen=True)
class Rwkv4:
    """A mean over the past whose weights fade at a pace per channel (Peng 2023, time mixing)."""

    hidden: int | None = None  # None: dim

    def __post_init__(self) -> None:
        _positive(self, "hidden")


@dataclass(frozen=True)
class RwkvChannel:
    """sigmoid(R x) * V relu(K x)^2 over a mix of this token and the last (Peng 2023, channel mixing)."""

    hidden: int

    def __post_init__(self) -> None:
        _positive(self, "hidden")


@dataclass(frozen=True)
class RGLRU:
    """Griffin's recurrent block: a short convolution and a gated diagonal recurrence, times a gate (De 2024)."""

    width: int
    heads: int  # blocks of the gates' matrices
    conv: int

    def __post_init__(self) -> None:
        _positive(self, "width", "heads", "conv")


@dataclass(frozen=True)
class LinearAttention:
    """Attention whose weights are products of elu(q) + 1 and elu(k) + 1 (Katharopoulos 2020)."""

    heads: int

    def __post_init__(self) -> None:
        _positive(self, "heads")


@dataclass(frozen=True)
class Retention:
    """Linear attention that forgets at a fixed pace per head, with rotary positions and a gate (Sun 2023)."""

    heads: int
    expand: int  # width of values over that of keys

    def __post_init__(self) -> None:
        _positive(self, "heads", "expand")


@dataclass(frozen=True)
class GatedDelta:
    """A matrix memory that corrects what it holds at a key, and fades (Yang 2024; Qwen3-Next)."""

    heads: int  # of queries and keys
    value_heads: int
    key: int  # width of a head
    value: int
    conv: int

    def __post_init__(self) -> None:
        _positive(self, "heads", "value_heads", "key", "value", "conv")


@dataclass(frozen=True)
class Rwkv7:
    """The delta rule with a decay, a rate and a removal key per channel (Peng 2025); ranks of its small networks."""

    heads: int
    decay: int
    rate: int
    gate: int
    value: int | None  # None: the first layer, whose values the others mix into theirs

    def __post_init__(self) -> None:
        _positive(self, "heads", "decay", "rate", "value", "gate")


@dataclass(frozen=True)
class Rwkv7Channel:
    """V relu(K x)^2 over a mix of this token and the last (Peng 2025)."""

    hidden: int

    def __post_init__(self) -> None:
        _positive(self, "hidden")


@dataclass(frozen=True)
class S4:
    """A linear system per channel, its matrix HiPPO's: diagonal plus low rank (Gu 2021)."""

    state: int

    def __post_init__(self) -> None:
        _positive(self, "state")


@dataclass(frozen=True)
class S4D:
    """The same with a diagonal matrix (Gu 2022)."""

    state: int

    def __post_init__(self) -> None:
        _even(self, "state")


@dataclass(frozen=True)
class H3:
    """A shift and a diagonal system with products between them (Fu 2022)."""

    state: int
    taps: int  # inputs that the shift remembers, this one too

    def __post_init__(self) -> None:
        _even(self, "state")
        _positive(self, "taps")


@dataclass(frozen=True)
class Hyena:
    """Long convolutions between gates, their filters written by a network (Poli 2023, order 2)."""

    filter: int  # width of that network
    bands: int  # waves that tell it the position

    def __post_init__(self) -> None:
        _positive(self, "filter", "bands")


Recurrent = (
    RNN
    | LSTM
    | GRU
    | Mamba
    | Mamba2
    | Rwkv4
    | RwkvChannel
    | RGLRU
    | LinearAttention
    | Retention
    | GatedDelta
    | Rwkv7
    | Rwkv7Channel
    | S4
    | S4D
    | H3
    | Hyena
)
