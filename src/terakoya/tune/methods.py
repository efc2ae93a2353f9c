"""What to learn from, as data: one small dataclass a method."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from terakoya.errors import TerakoyaError


def _positive(node: object, *may_be_zero: str) -> None:
    for f in fields(node):  # type: ignore[arg-type]
        value = getattr(node, f.name)
        if isinstance(value, float) and not (0 < value < math.inf or (value == 0 and f.name in may_be_zero)):
            raise TerakoyaError(f"method.{f.name}", given=value, allowed="more than 0")


@dataclass(frozen=True)
class Sft:
    """Say what the assistants in the examples say (Wei 2021; Ouyang 2022)."""


@dataclass(frozen=True)
class Dpo:
    """Raise the odds of the preferred answer against a reference (Rafailov 2023)."""

    beta: float = 0.1

    def __post_init__(self) -> None:
        _positive(self)


@dataclass(frozen=True)
class Ipo:
    """DPO with a squared loss that has a finite optimum, per token (Azar 2023)."""

    beta: float = 0.1

    def __post_init__(self) -> None:
        _positive(self)


@dataclass(frozen=True)
class Kto:
    """Learn from single answers that were liked or not, against the mean drift of the model (Ethayarajh 2024)."""

    beta: float = 0.1
    liked: float = 1.0  # weights of the two kinds
    disliked: float = 1.0

    def __post_init__(self) -> None:
        _positive(self)


@dataclass(frozen=True)
class Orpo:
    """Imitate the preferred answer, and raise its odds over the other; no reference (Hong 2024)."""

    beta: float = 0.1

    def __post_init__(self) -> None:
        _positive(self)


@dataclass(frozen=True)
class Simpo:
    """Prefer by the mean log-probability of a token, with a margin; no reference (Meng 2024)."""

    beta: float = 2.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "gamma")


@dataclass(frozen=True)
class Cpo:
    """DPO with a uniform reference, and imitation of the preferred answer (Xu 2024)."""

    beta: float = 0.1
    alpha: float = 1.0  # weight of the imitation

    def __post_init__(self) -> None:
        _positive(self, "alpha")


@dataclass(frozen=True)
class Reward:
    """Score answers: a head on the last token, the preferred one higher (Bradley & Terry 1952; Ouyang 2022)."""


@dataclass(frozen=True)
class Distil:
    """Learn the teacher's distribution over its `top` likeliest tokens, kept from one pass (Hinton 2015)."""

    teacher: str = "smollm2-135m-instruct"
    top: int = 32
    temperature: float = 1.0
    share: float = 0.5  # of the teacher; the rest is the text itself

    def __post_init__(self) -> None:
        _positive(self, "share")
        if self.top < 1:
            raise TerakoyaError("method.top", given=self.top, allowed="1 or more")
        if self.share > 1:
            raise TerakoyaError("method.share", given=self.share, allowed="0 to 1")


@dataclass(frozen=True)
class Grpo:
    """Sample answers, check them, and make the better of each group likelier (Shao 2024).

    `baseline = "others"` with `scale = "none"` is RLOO (Ahmadian 2024). `norm` says what the sum over tokens is divided
    by: each answer's length ("answer", GRPO), all tokens of the step ("tokens", DAPO) or the most there could be
    ("most", Dr. GRPO). `beta` weighs the KL to the reference; 0 needs none. `clip` bounds the ratio, below and above.
    `near` rewards single digits, so that a model that is seldom right has something to climb.
    """

    group: int = 8
    tokens: int = 24  # length of an answer at most
    temperature: float = 1.0
    baseline: Literal["group", "others"] = "group"
    scale: Literal["group", "none"] = "group"
    norm: Literal["answer", "tokens", "most"] = "tokens"
    beta: float = 0.0
    clip: tuple[float, float] = (0.2, 0.2)
    near: float = 0.0  # reward for an answer of which every digit is right, beside the 1 for a right answer

    def __post_init__(self) -> None:
        _positive(self, "beta", "near")
        if self.group < 2 or self.tokens < 1:
            raise TerakoyaError("method", given=(self.group, self.tokens), allowed="group 2 or more, tokens 1 or more")


Preference = Dpo | Ipo | Kto | Orpo | Simpo | Cpo | Reward
Method = Sft | Preference | Distil | Grpo
