"""Learning-rate schedules as factors of the peak rate: pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from terakoya.errors import TerakoyaError


@dataclass(frozen=True)
class Stable:
    """Warm up, stay, decay linearly over the last part (WSD, Hu 2024)."""

    warmup: float = 0.02  # share of the steps
    decay: float = 0.5
    final: float = 0.05  # factor at the last step

    def __post_init__(self) -> None:
        _shares(warmup=self.warmup, decay=self.decay, final=self.final)
        if self.warmup + self.decay > 1:
            raise TerakoyaError("schedule", "warmup + decay must be at most 1", given=(self.warmup, self.decay))


@dataclass(frozen=True)
class Cosine:
    """Warm up, then half a cosine down to `final` (Loshchilov 2017)."""

    warmup: float = 0.02
    final: float = 0.1

    def __post_init__(self) -> None:
        _shares(warmup=self.warmup, final=self.final)


@dataclass(frozen=True)
class Constant:
    """Warm up, then stay."""

    warmup: float = 0.02

    def __post_init__(self) -> None:
        _shares(warmup=self.warmup)


@dataclass(frozen=True)
class Slanted:
    """Straight up for the first `cut` of the steps, then straight down to 1 / ratio (Howard and Ruder 2018, §3.2)."""

    cut: float = 0.1
    ratio: float = 32.0

    def __post_init__(self) -> None:
        if not 0 < self.cut < 1:
            raise TerakoyaError("schedule.cut", given=self.cut, allowed="a share between 0 and 1, both excluded")
        if not 1 <= self.ratio < math.inf:
            raise TerakoyaError("schedule.ratio", given=self.ratio, allowed="1 or more")


def _shares(**given: float) -> None:
    for name, value in given.items():
        if not 0 <= value <= 1:
            raise TerakoyaError(f"schedule.{name}", given=value, allowed="a share from 0 to 1")


Schedule = Stable | Cosine | Constant | Slanted


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """Return the factor of the peak rate for `step` of 0 … steps - 1."""
    if isinstance(schedule, Slanted):
        return slanted(step, steps, schedule.cut, schedule.ratio)
    warm = schedule.warmup * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    match schedule:
        case Constant():
            return 1.0
        case Cosine(_, final):
            done = (step + 1 - warm) / max(1.0, steps - warm)
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        case Stable(_, decay, final):
            left = (steps - 1 - step) / max(1.0, decay * steps)
            return 1.0 if left >= 1 or not decay else final + (1 - final) * left


def slanted(step: int, steps: int, cut: float, ratio: float) -> float:
    """Return the factor of the slanted triangle (arXiv:1801.06146, equation 3)."""
    top = max(1, math.floor(steps * cut))
    p = step / top if step < top else 1 - (step - top) / (top * (1 / cut - 1))
    return (1 + max(p, 0.0) * (ratio - 1)) / ratio
