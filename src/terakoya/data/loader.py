"""Batches as a pure function of (seed, step, rank)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from terakoya.data.batch import Batch
from terakoya.data.mix import Mix
from terakoya.data.order import epoch_seed, permute
from terakoya.data.shards import Shards
from terakoya.errors import TerakoyaError


@dataclass(frozen=True)
class Span:
    """A stretch of one document inside a row: its tokens start to stop, counted from the document's own start."""

    row: int
    source: str
    document: int
    start: int
    stop: int
    tokens: np.ndarray


class Loader:
    """Cut the stream into rows of `context` tokens and deal them out in a shuffled order.

    A row is context + 1 tokens of the stream: inputs row[:-1], targets row[1:]. Rows follow one another with no token
    cropped, padded or scored twice; in every epoch each full row comes once, in another order, and `tail` tokens that
    do not fill a row are left to `evaluate`. `rows` counts the rows of a step over all ranks, so the step's batch is
    the same for any `world`; rank r holds the r-th part of it. There is no state: to resume, ask for the next step.
    """

    def __init__(
        self, source: Shards | Mix, *, rows: int, context: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        for name, value in (("rows", rows), ("context", context), ("world", world)):
            if value < 1:
                raise TerakoyaError(name, given=value, allowed="a whole number, 1 or more")
        if rows % world or not 0 <= rank < world:
            raise TerakoyaError("rows", given=rows, allowed=f"a multiple of the number of ranks, {world} (rank {rank})")
        self.mix = source if isinstance(source, Mix) else Mix([source], [1.0])
        self.rows, self.context, self.seed, self.rank, self.world = rows, context, seed, rank, world
        self._full = np.array([(part.tokens - 1) // context for part in self.mix.parts])
        for part in self.mix.parts:
            if not _supervised(part):
                raise TerakoyaError(str(part.folder), "has no token to learn from", hint="add longer documents")

    @property
    def tail(self) -> int:
        """Target tokens at the ends of the sources that fill no row, and so are not trained on."""
        return sum((part.tokens - 1) % self.context for part in self.mix.parts)

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every full row has come at least once; in a mix, those of the source that takes longest."""
        self._enough()
        return int((-(-self._full * self.mix.counts.sum() // (self.mix.counts * self.rows))).max())

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides which tokens come at which step; equal fingerprints mean equal data order."""
        parts = [part.fingerprint for part in self.mix.parts]
        said = (parts, self.mix.counts.tolist(), self.rows, self.context, self.seed)
        return hashlib.sha256(repr(said).encode("ascii")).hexdigest()

    def batch(self, step: int) -> Batch:
        """Return this rank's part of the batch of `step` (from 0): rows / world rows of context tokens."""
        return self._laid(*self._chosen(step))

    def documents(self, step: int) -> list[Span]:
        """List what stands in this rank's part of the batch of `step`, row by row."""
        parts, rows = self._chosen(step)
        spans = []
        for number, (part, row) in enumerate(zip(parts.tolist(), rows.tolist())):
            spans += self._spans(number, self.mix.parts[part], row * self.context)
        return spans

    def evaluate(self, spread: bool = False) -> Iterator[Batch]:
        """Yield all sources in order, unshuffled, so that each target token is scored exactly once over all ranks.

        The end of a source that fills no row comes as a shorter row. Every rank yields equally many batches; one that
        has no row left repeats a row with weights of zero. `spread`: the rows of a batch come from all over the
        source, as in training, not from one page; for objectives in which rows are held against each other.
        """
        for part in self.mix.parts:
            begins = np.arange(0, part.tokens - 1, self.context)
            if spread:
                batches = -(-len(begins) // self.rows)
                begins = begins[np.argsort(np.arange(len(begins)) % batches, kind="stable")]
            share = self.rows // self.world
            for first in range(0, len(begins), self.rows):
                mine = begins[first + self.rank * share : min(first + (self.rank + 1) * share, first + self.rows)]
                mine = np.sort(mine)  # a shorter row comes last
                if len(mine):
                    yield self._evaluated(part, mine)
                else:
                    yield self._silent(self._evaluated(part, begins[first : first + 1]))

    def _enough(self) -> None:
        for part, full in zip(self.mix.parts, self._full):
            if not full:
                problem = f"holds {part.tokens} tokens, fewer than one row of context + 1 = {self.context + 1}"
                raise TerakoyaError(str(part.folder), problem, hint="choose a smaller context or add text")

    def _chosen(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (part, row in that part) of each of this rank's rows."""
        self._enough()
        if step < 0:
            raise ValueError(f"step {step}")
        share = self.rows // self.world
        k = step * self.rows + self.rank * share + np.arange(share, dtype=np.int64)
        parts, turns = self.mix.locate(k)
        epochs, at = np.divmod(turns, self._full[parts])
        rows = np.empty_like(at)
        for part, epoch in sorted(set(zip(parts.tolist(), epochs.tolist()))):
            these = (parts == part) & (epochs == epoch)
            rows[these] = permute(at[these], int(self._full[part]), epoch_seed(self.seed, epoch, part))
        return parts, rows

    def _laid(self, parts: np.ndarray, rows: np.ndarray) -> Batch:
        text = np.empty((len(rows), self.context + 1), np.int64)
        first = np.zeros((len(rows), self.context + 1), bool)
        for part in np.unique(parts).tolist():
            these = np.flatnonzero(parts == part)
            begins = rows[these] * self.context
            text[these] = self.mix.parts[part].gather(begins, self.context + 1)
            first[these] = _firsts(self.mix.parts[part].starts, begins, self.context + 1)
        return _batch(text, first, self.mix.parts[0])

    def _evaluated(self, part: Shards, begins: np.ndarray) -> Batch:
        full = begins[begins + self.context < part.tokens]
        pieces = [(full, self.context + 1)] if len(full) else []
        if len(full) < len(begins):
            pieces.append((begins[-1:], part.tokens - int(begins[-1])))
        batches = [_batch(part.gather(b, n), _firsts(part.starts, b, n), part) for b, n in pieces]
        return batches[0] if len(batches) == 1 else _joined(*batches)

    @staticmethod
    def _silent(batch: Batch) -> Batch:
        return Batch(batch.tokens, batch.targets, batch.weights * 0, batch.cu, batch.positions, 0, batch.row_ends)

    def _spans(self, number: int, part: Shards, begin: int) -> Iterator[Span]:
        end = begin + self.context
        first = int(np.searchsorted(part.starts, begin, side="right")) - 1
        last = int(np.searchsorted(part.starts, end, side="left"))
        for document in range(first, last):
            origin, stop = int(part.starts[document]), int(part.starts[document + 1])
            a, b = max(begin, origin), min(end, stop)
            yield Span(number, part.source(document), document, a - origin, b - origin, part.slice(a, b))


def _starts_count(part: Shards) -> bool:
    """Whether predicting a document's first token means something: only as the end sign of the one before."""
    return bool(part.index.prefix) and not part.index.suffix


def _supervised(part: Shards) -> int:
    return part.tokens - 1 - (0 if _starts_count(part) else part.documents - 1)


def _firsts(starts: np.ndarray, begins: np.ndarray, length: int) -> np.ndarray:
    """Mark documents' first tokens in the stretches from begins (R,) -> (R, length) bool."""
    low, high = np.searchsorted(starts, begins), np.searchsorted(starts, begins + length)
    counts = high - low
    row = np.repeat(np.arange(len(begins)), counts)
    within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.zeros((len(begins), length), bool)
    first[row, starts[low[row] + within] - begins[row]] = True
    return first


def _batch(text: np.ndarray, first: np.ndarray, part: Shards) -> Batch:
    """Lay rows end to end: text (R, C+1) token ids, first (R, C+1) documents' first tokens."""
    rows, context = text.shape[0], text.shape[1] - 1
    targets = text[:, 1:].astype(np.int64)
    weights = np.ones((rows, context), np.float32)
    lengths = part.token_bytes[targets]
    if not _starts_count(part):
        weights[first[:, 1:]] = 0
        lengths = lengths * (weights > 0)
    begins = first[:, :-1].copy()
    begins[:, 0] = True  # a row does not see the row before it
    cu = np.append(np.flatnonzero(begins), rows * context)
    positions = np.arange(rows * context) - np.repeat(cu[:-1], np.diff(cu))
    row_bytes = tuple(lengths.sum(axis=1, dtype=np.int64).tolist())
    return Batch(
        tokens=torch.from_numpy(text[:, :-1].astype(np.int64).reshape(-1)),
        targets=torch.from_numpy(targets.reshape(-1)),
        weights=torch.from_numpy(weights.reshape(-1)),
        cu=torch.from_numpy(cu.astype(np.int32)),
        positions=torch.from_numpy(positions),
        bytes=sum(row_bytes),
        row_ends=tuple(range(context, rows * context + 1, context)),
        row_bytes=row_bytes,
    )


def _joined(a: Batch, b: Batch) -> Batch:
    offset = len(a.tokens)
    return Batch(
        torch.cat([a.tokens, b.tokens]),
        torch.cat([a.targets, b.targets]),
        torch.cat([a.weights, b.weights]),
        torch.cat([a.cu, b.cu[1:] + offset]),
        torch.cat([a.positions, b.positions]),
        a.bytes + b.bytes,
        a.row_ends + tuple(end + offset for end in b.row_ends),
        a.row_bytes + b.row_bytes,
    )
