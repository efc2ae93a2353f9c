"""Attention that looks at a part of the past, as data: patterns (Child 2019) and hashing (Kitaev 2020). No torch.

And the positions that go with texts so long: two small tables for rows and columns.
"""

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
class Local:
    """Its own chunk of `size` positions and the one before: Reformer's other layers (Kitaev 2020)."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise TerakoyaError("local.size", given=self.size, allowed="1 or more")


@dataclass(frozen=True)
class Lsh:
    """Attention among tokens whose shared query-key vectors hash alike (Kitaev 2020)."""

    heads: int
    rounds: int  # of hashing, each with other directions
    chunk: int  # tokens, sorted by bucket, that look at each other and at the chunk before
    buckets: tuple[int, ...] = ()  # even numbers whose product counts the buckets; (): as many as the length asks for
    head_dim: int | None = None  # None: dim / heads
    seed: int | None = None  # of the directions, the same in all layers; None: the layer's number

    def __post_init__(self) -> None:
        for name in ("heads", "rounds", "chunk", "head_dim"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise TerakoyaError(f"lsh.{name}", given=value, allowed="1 or more")
        if any(n < 2 or n % 2 for n in self.buckets):
            raise TerakoyaError("lsh.buckets", given=self.buckets, allowed="even numbers")


@dataclass(frozen=True)
class Axial:
    """A table for rows and one for columns, side by side: position p is row p // columns, column p % columns."""

    rows: int
    columns: int
    dim: int  # width of the rows' table; the columns' has the rest

    def check(self, dim: int, context: int) -> None:
        """Raise where the tables do not fit a model `dim` wide that reads `context` tokens."""
        if not 0 < self.dim < dim:
            raise TerakoyaError("axial.dim", given=self.dim, allowed=f"1 to {dim - 1}, below dim={dim}")
        if self.rows < 1 or self.columns < 1 or self.rows * self.columns < context:
            raise TerakoyaError("axial", given=f"{self.rows} × {self.columns}", allowed=f"context={context} or more")
