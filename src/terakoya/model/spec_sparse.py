"""Attention that looks at a part of the past, as data: patterns (Child 2019) and hashing (Kitaev 2020). No torch."""

from __future__ import annotations

from dataclasses import dataclass

from terakoya.errors import TerakoyaError


@dataclass(frozen=True)
class Strided:
    """Every `stride`-th position back from its own: with a window of as many, any two positions are two steps apart."""

    stride: int

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise TerakoyaError("strided.stride", given=self.stride, allowed="1 or more")


@dataclass(frozen=True)
class Fixed:
    """Its own block of `block` positions, and the last `summary` positions of every block before."""

    block: int
    summary: int

    def __post_init__(self) -> None:
        if not 0 < self.summary <= self.block:
            raise TerakoyaError("fixed.summary", given=self.summary, allowed=f"1 to block={self.block}")


@dataclass(frozen=True)
class Lsh:
    """Attention among tokens whose shared query-key vectors hash alike (Kitaev 2020)."""

    heads: int
    buckets: int  # an even number
    rounds: int  # of hashing, each with other directions
    chunk: int  # tokens, sorted by bucket, that look at each other and at the chunk before

    def __post_init__(self) -> None:
        for name in ("heads", "buckets", "rounds", "chunk"):
            if getattr(self, name) < 1:
                raise TerakoyaError(f"lsh.{name}", given=getattr(self, name), allowed="1 or more")
        if self.buckets % 2:
            raise TerakoyaError("lsh.buckets", given=self.buckets, allowed="an even number")
