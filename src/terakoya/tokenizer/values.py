"""Numbers as tokens, to stand in one stream with words and pictures (Gato, Reed 2022, arXiv:2205.06175, §2.1).

Measured values of any size are squashed by the μ-law first; commands lie within [-1, 1] already. Both are cut into
equal bins, whose ids follow those of the words. Whole numbers (buttons) are ids by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from terakoya.errors import TerakoyaError


@dataclass(frozen=True)
class Values:
    """A vocabulary of numbers: `bins` ids from `first` on; `mu` and `top` are μ and M of the μ-law."""

    first: int = 32_000
    bins: int = 1024
    mu: float = 100.0
    top: float = 256.0

    def __post_init__(self) -> None:
        if self.first < 0 or self.bins < 2 or not (self.mu > 0 and self.top > 0):
            given = f"first={self.first}, bins={self.bins}, mu={self.mu}, top={self.top}"
            raise TerakoyaError("values", given=given, allowed="first 0 or more, bins 2 or more, mu and top above 0")

    def observed(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the ids of measured values: (n,) -> (n,) int64."""
        x = _finite(values)
        squashed = np.sign(x) * np.log(np.abs(x) * self.mu + 1) / np.log(self.top * self.mu + 1)
        return self.commanded(np.clip(squashed, -1.0, 1.0))

    def commanded(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the ids of values within [-1, 1]: (n,) -> (n,) int64."""
        x = _finite(values)
        if np.abs(x).max(initial=0.0) > 1:
            raise TerakoyaError("values", given=float(np.abs(x).max()), allowed="-1 to 1", hint="or observed()")
        return self.first + np.minimum((x + 1) / 2 * self.bins, self.bins - 1).astype(np.int64)

    def buttons(self, values: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the ids of whole numbers from 0: themselves, (n,) -> (n,) int64."""
        x = np.asarray(values)
        if x.dtype.kind not in "iu" or x.min(initial=0) < 0 or x.max(initial=0) >= self.bins:
            raise TerakoyaError("values", given=x.tolist()[:4], allowed=f"whole numbers from 0 to {self.bins - 1}")
        return x.astype(np.int64)

    def command(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return what ids of commands stand for, the middles of their bins: (n,) -> (n,) float64."""
        at = np.asarray(ids) - self.first
        if at.min(initial=0) < 0 or at.max(initial=0) >= self.bins:
            allowed = f"ids from {self.first} to {self.first + self.bins - 1}"
            raise TerakoyaError("values", given=np.asarray(ids).tolist()[:4], allowed=allowed)
        return (at + 0.5) / self.bins * 2 - 1

    def observation(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return what ids of measured values stand for: the μ-law undone, (n,) -> (n,) float64."""
        x = self.command(ids)
        return np.sign(x) * (np.exp(np.abs(x) * np.log(self.top * self.mu + 1)) - 1) / self.mu


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    x = np.asarray(values, np.float64)
    if not np.isfinite(x).all():
        raise TerakoyaError("values", "hold a number that is not finite")
    return x
