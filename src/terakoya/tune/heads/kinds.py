"""What a head says, as data: one small dataclass a kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from terakoya.errors import TerakoyaError

Pool = Literal["first", "mean", "max", "last", "pooler", "concat", "pair"]
"""How the vectors of a text become one. `concat`: last, greatest and mean side by side (Howard and Ruder 2018); `pair`:
the means u and v of two texts that were read together, |u - v| and u * v (Conneau 2017)."""


@dataclass(frozen=True)
class Classify:
    """One of the labels for a text or a pair of texts (Devlin 2018, §4.1): JNLI.

    With `pool = "concat"` and a `hidden` layer it is ULMFiT's classifier (Howard and Ruder 2018, §3.3).
    """

    pool: Pool = "mean"
    hidden: int = 0  # width of a layer between, with batch normalisation; 0: none
    drop: float = 0.0  # share that is dropped before each of both layers

    def __post_init__(self) -> None:
        if self.hidden < 0:
            raise TerakoyaError("head.hidden", given=self.hidden, allowed="0 or more")
        if not 0 <= self.drop < 1:
            raise TerakoyaError("head.drop", given=self.drop, allowed="0 or more, less than 1")


@dataclass(frozen=True)
class Choose:
    """One of several answers to a question: JCommonsenseQA.

    `read = "together"`: each answer with the question, and scored (Devlin 2018, §4.4). "apart": each text by itself,
    and the answer nearest to the question by cosine (Huang 2013), which asks less of a small model.
    """

    pool: Pool = "mean"
    read: Literal["together", "apart"] = "together"
    temperature: float = 0.05  # of the cosines

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise TerakoyaError("head.temperature", given=self.temperature, allowed="more than 0")


@dataclass(frozen=True)
class Regress:
    """A number for a text or a pair of texts: JSTS."""

    pool: Pool = "mean"


@dataclass(frozen=True)
class Tag:
    """A label for each token, read off labelled stretches of the text; what is in none is outside: names, parts."""


@dataclass(frozen=True)
class Extract:
    """The stretch of a text that answers a question (Devlin 2018, §4.2): JSQuAD."""

    longest: int = 32  # tokens of an answer at most, when one is asked for

    def __post_init__(self) -> None:
        if self.longest < 1:
            raise TerakoyaError("head.longest", given=self.longest, allowed="1 or more")


@dataclass(frozen=True)
class Embed:
    """One vector for a text, near those of texts that mean the same.

    `loss = "cosine"` brings the cosine of two texts to their score (Reimers 2019; JSTS); "contrast" tells the own
    positive among those of the step and hard negatives (supervised SimCSE, Gao 2021).
    """

    loss: Literal["cosine", "contrast"] = "cosine"
    pool: Literal["first", "mean", "max", "last"] = "mean"
    temperature: float = 0.05

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise TerakoyaError("head.temperature", given=self.temperature, allowed="more than 0")


@dataclass(frozen=True)
class Translate:
    """One text written from another by an encoder–decoder (Vaswani 2017): a field of the row from another field."""

    source: str = "ja"
    target: str = "en"
    scored: int = 200  # held-out rows that are translated at each look, at most

    def __post_init__(self) -> None:
        if self.source == self.target:
            raise TerakoyaError("head.target", given=self.target, allowed=f"another field than {self.source}")
        if self.scored < 1:
            raise TerakoyaError("head.scored", given=self.scored, allowed="1 or more")


Kind = Classify | Choose | Regress | Tag | Extract | Embed | Translate
