"""What of a model learns, as data: one small dataclass a way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from terakoya.errors import TerakoyaError


@dataclass(frozen=True)
class Lora:
    """W x + s B A x with B, A of low rank (Hu 2021). A starts random and B at zero, so training starts at the base.

    `init = "pissa"` starts B A at the top singular parts of W, minus themselves (Meng 2024); `stabilised` scales by
    alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023); `ratio` is the rate of B over that of A (LoRA+, Hayou 2024: 16).
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ()  # last parts of layers' names, e.g. ["q", "v"]; empty: every linear layer
    init: Literal["zero", "pissa"] = "zero"
    stabilised: bool = False
    ratio: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rank", "alpha", "ratio"):
            if not 0 < getattr(self, name) < math.inf:
                raise TerakoyaError(f"adapter.{name}", given=getattr(self, name), allowed="more than 0")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.stabilised else self.rank)


@dataclass(frozen=True)
class Dora(Lora):
    """LoRA on the direction of each row of W, and a learned length of its own (Liu 2024)."""


@dataclass(frozen=True)
class AdaLora:
    """W x + s P Λ Q x, of which the parts that matter least are given up as training goes on (Zhang 2023).

    Every layer begins with `rank` parts. After `warmup` (a share of the steps) the budget of all layers together falls
    with the cube of the time left to `target` a layer on average, every `every` steps; for the `last` share of the
    steps it stays. `orthogonal` weighs ‖PᵀP - I‖ + ‖QQᵀ - I‖; `memory` and `doubt` smooth the importance and its
    uncertainty (β₁, β₂ of the paper).
    """

    rank: int = 12
    target: int = 8
    alpha: float = 32.0
    targets: tuple[str, ...] = ()
    warmup: float = 0.1
    last: float = 0.3
    every: int = 1
    orthogonal: float = 0.1
    memory: float = 0.85
    doubt: float = 0.85

    def __post_init__(self) -> None:
        if not 1 <= self.target <= self.rank:
            raise TerakoyaError("adapter.target", given=self.target, allowed=f"1 to adapter.rank = {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise TerakoyaError("adapter.alpha", given=self.alpha, allowed="more than 0")
        if not (self.warmup >= 0 and self.last >= 0 and self.warmup + self.last < 1):
            raise TerakoyaError(
                "adapter.warmup + adapter.last", given=self.warmup + self.last, allowed="0 or more, less than 1"
            )
        if self.every < 1 or not 0 <= self.orthogonal < math.inf:
            given = f"every={self.every}, orthogonal={self.orthogonal}"
            raise TerakoyaError("adapter", given=given, allowed="every 1 or more, orthogonal 0 or more")
        for name in ("memory", "doubt"):
            if not 0 < getattr(self, name) < 1:
                raise TerakoyaError(f"adapter.{name}", given=getattr(self, name), allowed="between 0 and 1")

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank + 1e-5)  # as peft computes it


@dataclass(frozen=True)
class IA3:
    """Learned factors on keys, values and the hidden channels of the MLP (Liu 2022)."""

    outputs: tuple[str, ...] = ("k", "v")  # layers whose output is scaled
    inputs: tuple[str, ...] = ("down",)  # layers whose input is scaled


@dataclass(frozen=True)
class Bias:
    """Train biases alone (BitFit, Ben Zaken 2021)."""


@dataclass(frozen=True)
class Top:
    """Train the last layers and the final norm; everything below is frozen."""

    layers: int = 2

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise TerakoyaError("adapter.layers", given=self.layers, allowed="1 or more")


@dataclass(frozen=True)
class Table:
    """Train the rows of tokens alone, those of a head of its own too: the first step after new tokens were added."""


def _counted(node: Prefix | Prompt | PTuning) -> None:
    if node.tokens < 1:
        raise TerakoyaError("adapter.tokens", given=node.tokens, allowed="1 or more")


@dataclass(frozen=True)
class Prefix:
    """Learned keys and values before those of every text, in every layer (Li & Liang 2021).

    `init = "words"` begins with what the layers make of random tokens. `hidden` > 0 learns them through an MLP of that
    width, which is thrown away in the end (§4.3 of the paper); such a prefix starts random.
    """

    tokens: int = 16
    init: Literal["words", "random"] = "words"
    hidden: int = 0

    def __post_init__(self) -> None:
        _counted(self)
        if self.hidden < 0:
            raise TerakoyaError("adapter.hidden", given=self.hidden, allowed="0 (no MLP) or more")


@dataclass(frozen=True)
class Prompt:
    """Learned vectors before those of every text (Lester 2021); `init = "words"` begins with rows of random tokens."""

    tokens: int = 16
    init: Literal["words", "random"] = "words"

    def __post_init__(self) -> None:
        _counted(self)


@dataclass(frozen=True)
class PTuning:
    """Such vectors out of a small network, which lets them know of each other (Liu 2021): an LSTM both ways, or an MLP.

    The network is thrown away in the end.
    """

    tokens: int = 16
    encoder: Literal["lstm", "mlp"] = "lstm"
    hidden: int = 128

    def __post_init__(self) -> None:
        _counted(self)
        if self.hidden < 1:
            raise TerakoyaError("adapter.hidden", given=self.hidden, allowed="1 or more")


Ahead = Prefix | Prompt | PTuning  # what stands before a text
Added = Lora | Dora | AdaLora | IA3 | Prefix | Prompt | PTuning
Adapter = Lora | Dora | AdaLora | IA3 | Bias | Top | Table | Prefix | Prompt | PTuning
ADDED = ("lora", "dora", "adalora", "ia3", "prefix", "prompt", "ptuning")
