"""Mixers with a memory of constant size, as data: recurrent cells, state spaces, linear attention. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from terakoya.errors import TerakoyaError


def _positive(node: object, *names: str) -> None:
    for name in names:
        value = getattr(node, name)
        if value is not None and value < 1:
            raise TerakoyaError(f"{type(node).__name__.lower()}.{name}", given=value, allowed="1 or more")


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


Recurrent = RNN | LSTM | GRU
