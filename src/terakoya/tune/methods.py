"""What to learn from, as data: one small dataclass a method."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from terakoya.errors import TerakoyaError
from terakoya.tune.checks import DECIDES, Check, Number


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
    """Learn the teacher's distribution over its `top` likeliest tokens, kept from one pass (Hinton 2015).

    `words = "teacher"` lets the teacher answer the prompts first, once, and learns from its answers in place of the
    examples' (sequence-level distillation, Kim & Rush 2016; with `share = 0` from nothing else).
    """

    teacher: str = "smollm2-135m-instruct"
    top: int = 32
    temperature: float = 1.0
    share: float = 0.5  # of the teacher; the rest is the text itself
    words: Literal["examples", "teacher"] = "examples"
    tokens: int = 128  # of an answer the teacher writes

    def __post_init__(self) -> None:
        _positive(self, "share")
        for name in ("top", "tokens"):
            if getattr(self, name) < 1:
                raise TerakoyaError(f"method.{name}", given=getattr(self, name), allowed="1 or more")
        if self.share > 1:
            raise TerakoyaError("method.share", given=self.share, allowed="0 to 1")


@dataclass(frozen=True)
class Gkd:
    """Learn the teacher's distribution where the student itself goes wrong (on-policy, Agarwal 2024).

    A step's answers are the student's own with probability `own`, the examples' otherwise. `blend` is β of the
    generalised Jensen-Shannon divergence: 0 is KL(teacher ‖ student), 1 KL(student ‖ teacher).
    """

    teacher: str = "smollm2-135m-instruct"
    own: float = 0.5
    blend: float = 0.5
    tokens: int = 64  # of an answer the student writes
    temperature: float = 0.9  # it writes at, and both are compared at

    def __post_init__(self) -> None:
        _positive(self, "own", "blend")
        for name in ("own", "blend"):
            if getattr(self, name) > 1:
                raise TerakoyaError(f"method.{name}", given=getattr(self, name), allowed="0 to 1")
        if self.tokens < 1:
            raise TerakoyaError("method.tokens", given=self.tokens, allowed="1 or more")


@dataclass(frozen=True)
class Grpo:
    """Sample answers, check them, and make the better of each group likelier (Shao 2024).

    `baseline = "others"` with `scale = "none"` is RLOO (Ahmadian 2024), `baseline = "none"` REINFORCE (Williams 1992):
    an answer is likelier by what it is worth, whatever the others are. `norm` says what the sum over tokens is divided
    by: each answer's length ("answer", GRPO), all tokens of the step ("tokens", DAPO) or the most there could be
    ("most", Dr. GRPO). `beta` weighs the KL to the reference; 0 needs none. `clip` bounds the ratio, below and above.
    An answer that reached `tokens` without an end is checked like any other, or earns 0, or ("leave") earns 0 and
    teaches nothing (DAPO's overlong filtering). `resample`: how often at most further questions are drawn in a step
    until as many groups as it has rows teach something (DAPO's dynamic sampling, Yu 2025, §3.2).
    """

    checks: tuple[Check, ...] = (Number(),)
    group: int = 8
    tokens: int = 24  # length of an answer at most
    temperature: float = 1.0
    baseline: Literal["group", "others", "none"] = "group"
    scale: Literal["group", "none"] = "group"
    norm: Literal["answer", "tokens", "most"] = "tokens"
    beta: float = 0.0
    clip: tuple[float, float] = (0.2, 0.2)
    unfinished: Literal["check", "zero", "leave"] = "check"
    resample: int = 0

    def __post_init__(self) -> None:
        _positive(self, "beta")
        if self.baseline == "none" and (self.scale != "none" or self.resample):
            problem = "compares nothing within a group: leave method.scale = none and method.resample = 0"
            raise TerakoyaError("method.baseline", problem, given=self.baseline)
        if not 0 <= self.resample <= 16:
            raise TerakoyaError("method.resample", given=self.resample, allowed="0 to 16")
        if self.group < 2 or self.tokens < 1:
            raise TerakoyaError("method", given=(self.group, self.tokens), allowed="group 2 or more, tokens 1 or more")
        if not (0 < self.clip[0] <= 1 and 0 < self.clip[1] < math.inf):
            allowed = "two numbers more than 0, the first at most 1: how far below and above 1 a ratio counts"
            raise TerakoyaError("method.clip", given=self.clip, allowed=allowed)
        if not any(isinstance(c, DECIDES) for c in self.checks):
            allowed = [d.__name__.lower() for d in DECIDES]
            raise TerakoyaError("method.checks", "must hold one that tells right from wrong", allowed=allowed)


@dataclass(frozen=True)
class Ppo:
    """Raise a reward model's score, near the model it began with (Schulman 2017; Ziegler 2019; Ouyang 2022).

    Each step's answers are learnt from `rounds` times. A token's reward is -beta · log(p / p_reference), the last
    one's also the score; advantages are GAE(gamma, lam), whitened over the step. The critic is a second adapter on the
    same base with a head of its own.
    """

    reward: str = "runs/reward"  # a run of method reward, or the folder of a reward model
    group: int = 1  # answers to a prompt
    tokens: int = 48
    temperature: float = 1.0
    rounds: int = 2
    beta: float = 0.05
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_share: float = 0.1
    unfinished: float = 1.0  # taken from the score of an answer without an end

    def __post_init__(self) -> None:
        _positive(self, "beta", "unfinished", "gamma", "lam")
        for name in ("group", "tokens", "rounds"):
            if getattr(self, name) < 1:
                raise TerakoyaError(f"method.{name}", given=getattr(self, name), allowed="1 or more")
        for name in ("gamma", "lam"):
            if getattr(self, name) > 1:
                raise TerakoyaError(f"method.{name}", given=getattr(self, name), allowed="0 to 1")


Preference = Dpo | Ipo | Kto | Orpo | Simpo | Cpo | Reward
Method = Sft | Preference | Distil | Gkd | Grpo | Ppo
