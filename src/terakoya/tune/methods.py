"""What to learn from, as data: one small dataclass a method."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

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


Preference = Dpo | Ipo | Kto | Orpo | Simpo | Cpo
Method = Sft | Preference
