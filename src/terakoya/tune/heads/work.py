"""Examples in batches, the loss of each kind of head, and how right it is on examples it has not seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.objective import Outcome
from terakoya.train.objectives.contrast import info_nce
from terakoya.train.objectives.rows import Piece, Rich, laid
from terakoya.train.objectives.seq2seq import seq2seq
from terakoya.train.recipe import Rows
from terakoya.tune.heads import scores
from terakoya.tune.heads.examples import Example, Stretch, examples
from terakoya.tune.heads.head import OUTSIDE, Card, Head, head_of, vectors
from terakoya.tune.heads.kinds import Choose, Classify, Embed, Extract, Kind, Regress, Tag, Translate
from terakoya.tune.heads.reading import Overlong, Reader, offsets
from terakoya.tune.heads.rewrite import pair_of, rewrite
from terakoya.tune.pack import dealt
from terakoya.tune.rows import located
from terakoya.tune.rows import rows as read_rows
from terakoya.tune.work import parted


@dataclass(frozen=True)
class Source:
    """Where the examples come from."""

    source: str = "examples.jsonl"  # a .jsonl(.zst) or .parquet file, or a folder of them; hf://datasets/OWNER/NAME
    heldout: str | None = None  # such a file of examples to measure on; none: a share of `source`
    holdout: float = 0.1
    overlong: Literal["error", "drop"] = "error"
    limit: int | None = None  # rows read at most

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 1:
            raise TerakoyaError("data.holdout", given=self.holdout, allowed="a share between 0 and 1, both excluded")
        if self.limit is not None and self.limit < 2:
            raise TerakoyaError("data.limit", given=self.limit, allowed="2 or more")


@dataclass(frozen=True)
class Item:
    """One example as the model reads it, and what it should say of it."""

    example: Example
    pieces: tuple[Piece, ...]


class Headed:
    """One kind of head with its examples."""

    def __init__(self, kind: Kind, data: Source, rows: Rows, tokenizer: Tokenizer, seed: int) -> None:
        self.kind, self.rows, self.seed = kind, rows, seed
        self.reader = Reader(tokenizer, rows.context)
        learn, kept = sides(kind, data, seed)
        self.card = card_of(kind, learn)
        unknown = (
            {a for x in kept for a in _labels(x)} - {*self.card.labels, OUTSIDE}
            if isinstance(self.kind, Classify)
            else set()
        )
        if unknown:
            raise TerakoyaError("data.heldout", "has labels that no training example has", given=sorted(unknown)[:5])
        self.dropped: list[str] = []
        self.train, self.heldout = (self._items(side, data.overlong) for side in (learn, kept))
        if not self.train or not self.heldout:
            raise TerakoyaError("data", "no example is left to learn from or to measure on")

    @property
    def notes(self) -> list[str]:
        """What became of the examples."""
        out = f"; {len(self.dropped):,} overlong dropped ({', '.join(self.dropped[:3])})" if self.dropped else ""
        said = f"labels: {', '.join(self.card.labels)}" if self.card.labels else ""
        counts = f"{len(self.train):,} examples to learn from, {len(self.heldout):,} held out{out}"
        return [counts, said] if said else [counts]

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides what comes at which step."""
        told = hashlib.sha256(repr((self.kind, self.rows.count, self.seed, self.card)).encode())
        for item in self.train:
            for piece in item.pieces:
                told.update(piece.tokens.tobytes())
        return told.hexdigest()

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train) // self.rows.count)

    def batch(self, step: int) -> Rich:
        """Return the batch of `step` (from 0): a pure function of it."""
        return laid([self.train[i].pieces for i in dealt(len(self.train), self.rows.count, self.seed, step)])

    def loss(self, model: Model, batch: Batch) -> Outcome:
        """Return Σ loss over the examples, of mean loss each."""
        return loss(model, batch)

    @torch.inference_mode()
    def look(self, model: Model, device: str, limit: int | None = None) -> dict[str, float]:
        """Measure on held-out examples, about `limit` bytes of text at most; the first number is the one to show."""
        said, right, size = [], [], 0
        asked = self.heldout[: self.kind.scored] if isinstance(self.kind, Translate) else self.heldout
        for first in range(0, len(asked), self.rows.count):
            part = asked[first : first + self.rows.count]
            batch = laid([item.pieces for item in part]).to(device)
            said += answers(model, batch, self.card, self.reader.tokenizer, [i.example for i in part])
            right += [item.example for item in part]
            size += sum(len(t.encode()) for item in part for t in item.example.texts)
            if limit is not None and size >= limit:
                break
        return measured(self.kind, said, right)

    def _items(self, found: Sequence[Example], overlong: str) -> list[Item]:
        items = []
        for example in found:
            try:
                items.append(Item(example, self.reader_pieces(example)))
            except Overlong:
                if overlong == "error":
                    raise
                self.dropped.append(example.place)
        return items

    def reader_pieces(self, example: Example) -> tuple[Piece, ...]:
        """Return what the model reads of one example."""
        return pieces(self.reader, self.card, example)


def sides(kind: Kind, data: Source, seed: int) -> tuple[list[Example], list[Example]]:
    """Read the examples to learn from and those held out."""

    def read(place: str) -> list[Example]:
        found = examples(read_rows(located(place)), kind)
        return [x for x, _ in zip(found, range(data.limit or 10**12))]

    learn = read(data.source)
    if data.heldout is not None:
        return learn, read(data.heldout)
    roots = dict(zip(map(id, learn), tied(learn)))
    return parted(learn, lambda x: roots[id(x)], data.holdout, seed)


def tied(found: Sequence[Example]) -> list[str]:
    """Name the group of each example: those that share a text, directly or through others, are one (Tarjan 1975).

    JNLI pairs the captions of one image with each other: held out pair by pair, the same sentences stand on both sides,
    and a model that only remembers them scores 0.77 where 0.58 is the majority.
    """
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while (up := parent.setdefault(text, text)) != text:
            parent[text] = parent[up] = parent.setdefault(up, up)
            text = parent[text]
        return text

    for example in found:
        for text in example.shared[1:]:
            parent[root(text)] = root(example.shared[0])
    return [root(example.shared[0]) for example in found]


def card_of(kind: Kind, learn: Sequence[Example]) -> Card:
    """Collect what there is to say."""
    match kind:
        case Classify():
            labels = tuple(sorted({a for x in learn for a in _labels(x)}))
            if len(labels) < 2:
                raise TerakoyaError("data", "has fewer than two labels", given=", ".join(labels))
            return Card(kind, labels)
        case Tag():
            names = sorted({a for x in learn for a in _labels(x)})
            return Card(kind, (OUTSIDE, *(f"{side}-{n}" for n in names for side in "BI")))
        case Regress():
            values = [float(x.answer) for x in learn if isinstance(x.answer, float)]
            return Card(kind, scale=(float(np.mean(values)), float(np.std(values)) or 1.0))
        case Embed():
            values = [float(x.answer) for x in learn if isinstance(x.answer, float)]
            if kind.loss == "cosine" and len(values) < len(learn):
                raise TerakoyaError("data", "has rows without a score", hint='head.loss = "contrast" needs none')
            return Card(kind, scale=(0.0, max(map(abs, values), default=1.0) or 1.0))
        case _:
            return Card(kind)


def _labels(example: Example) -> Iterable[str]:
    if isinstance(example.answer, str):
        return (example.answer,)
    return [s.label for s in example.answer] if isinstance(example.answer, tuple) else ()


# What the model reads


def pieces(reader: Reader, card: Card, example: Example) -> tuple[Piece, ...]:
    """Turn one example into pieces: one for most kinds, one a candidate for Choose, one a text for what reads apart."""
    encoded = reader.encode(example.texts)
    match card.kind:
        case Translate():
            return (pair_of(reader, encoded[0], example),)
        case Choose(read="apart"):
            asked, *candidates = (reader.read((ids,), example.place) for ids in encoded)
            size = np.array([len(candidates)])
            out = [_piece(asked.ids, asked.segments, answer=np.zeros(0), size=size)]
            for i, r in enumerate(candidates):
                out.append(_piece(r.ids, r.segments, answer=np.array([float(i == example.answer)]), size=size[:0]))
            return tuple(out)
        case Choose():
            asked, *candidates = encoded
            right = example.answer
            reads = [reader.read((asked, c), example.place) for c in candidates]
            size = np.array([len(reads)])
            return tuple(
                _piece(r.ids, r.segments, answer=np.array([float(i == right)]), size=size if i == 0 else size[:0])
                for i, r in enumerate(reads)
            )
        case Embed():
            reads = [reader.read((ids,), example.place) for ids in encoded]
            value = np.array([float(example.answer) / card.scale[1] if isinstance(example.answer, float) else 1.0])
            size = np.array([len(reads)])
            return tuple(
                _piece(r.ids, r.segments, answer=value if i == 0 else value[:0], size=size if i == 0 else size[:0])
                for i, r in enumerate(reads)
            )
        case Extract():
            text, question = encoded
            read = reader.read((text, question), example.place)
            begin, end = _tokens(reader.tokenizer, text, example)
            span = np.array([read.begin, read.begin + len(text)])
            return (_piece(read.ids, read.segments, answer=read.begin + np.array([begin, end]), span=span),)
        case Tag():
            read = reader.read(encoded[:1], example.place)
            marks = np.full(len(read.ids), -1)
            marks[read.begin : read.begin + len(encoded[0])] = _tagged(reader.tokenizer, encoded[0], example, card)
            return (_piece(read.ids, read.segments, answer=marks),)
        case Classify():
            read = reader.read(encoded, example.place)
            label = card.labels.index(example.answer) if isinstance(example.answer, str) else 0
            return (_piece(read.ids, read.segments, answer=np.array([label])),)
        case Regress():
            read = reader.read(encoded, example.place)
            value = example.answer if isinstance(example.answer, float) else 0.0
            scaled = (value - card.scale[0]) / card.scale[1]
            return (_piece(read.ids, read.segments, answer=np.array([scaled])),)


def _piece(ids: np.ndarray, segments: np.ndarray, answer: np.ndarray, **more: np.ndarray) -> Piece:
    first = more.get("size", ids[:1]).size != 0  # what belongs to the example before weighs nothing
    weights = np.zeros(len(ids), np.float32)
    weights[0] = float(first)
    answer = answer.astype(np.float32) if answer.dtype == np.float64 else answer
    return Piece(ids, ids, weights, more={"segments": segments, "answer": answer, **more})


def _tokens(tokenizer: Tokenizer, ids: np.ndarray, example: Example) -> tuple[int, int]:
    """Return the first and the last token that holds characters of the answer."""
    if not isinstance(example.answer, tuple):
        return 0, 0
    stretch = example.answer[0]
    at = offsets(tokenizer, ids, example.texts[0], example.place)
    inside = [i for i, (a, b) in enumerate(at) if a < stretch.end and b > stretch.start]
    return inside[0], inside[-1]


def _tagged(tokenizer: Tokenizer, ids: np.ndarray, example: Example, card: Card) -> np.ndarray:
    """Mark each token: outside, or the beginning or inside of a stretch."""
    out = np.zeros(len(ids), np.int64)
    at = offsets(tokenizer, ids, example.texts[0], example.place)
    for stretch in example.answer if isinstance(example.answer, tuple) else ():
        inside = [i for i, (a, b) in enumerate(at) if a < stretch.end and b > stretch.start and b > a]
        for n, i in enumerate(inside):
            out[i] = card.labels.index(f"{'I' if n else 'B'}-{stretch.label}")
    return out


# What the head makes of it


def forward(model: Model, batch: Rich) -> tuple[Tensor, Packed]:
    """Read a batch: -> hidden (T, D), and the context."""
    ctx = Packed(batch.cu.diff().tolist(), batch.tokens.device, segments=batch["segments"])
    return model(batch.tokens, ctx), ctx


def loss(model: Model, batch: Batch) -> Outcome:
    """Return the loss of the head on a batch, summed over its examples."""
    assert isinstance(batch, Rich)
    head = head_of(model)
    if isinstance(head.card.kind, Translate):
        return seq2seq(model, batch)
    hidden, ctx = forward(model, batch)
    answer, kind = batch["answer"], head.card.kind
    match kind:
        case Classify():
            found = head(vectors(model, hidden, ctx, kind.pool))
            return Outcome(F.cross_entropy(found, answer.long(), reduction="sum"))
        case Regress():
            found = head(vectors(model, hidden, ctx, kind.pool))[:, 0]
            return Outcome(F.mse_loss(found, answer, reduction="sum"))
        case Choose():
            found = _preferred(kind, head, vectors(model, hidden, ctx, kind.pool), batch)
            parts = zip(found, answer.split(batch["size"].tolist()), strict=True)
            return Outcome(torch.stack([-(torch.log_softmax(f, 0) * a).sum() for f, a in parts]).sum())
        case Tag():
            marked = answer >= 0
            found = F.cross_entropy(head(hidden[marked]), answer[marked].long(), reduction="none")
            owner = torch.repeat_interleave(torch.arange(len(ctx.cu) - 1, device=hidden.device), batch.cu.diff().long())
            counts = torch.bincount(owner[marked], minlength=len(ctx.cu) - 1).clamp(min=1)
            return Outcome((found / counts[owner[marked]]).sum())
        case Extract():
            parts = [F.cross_entropy(side, at) for side, at in _ends(head, hidden, batch)]
            return Outcome(torch.stack(parts).sum() / 2)
        case Embed():
            return Outcome(_embedded(kind, vectors(model, hidden, ctx, kind.pool), batch))
        case Translate():
            raise AssertionError


def _preferred(kind: Choose, head: Head, found: Tensor, batch: Rich) -> Sequence[Tensor]:
    """Score the candidates of each question: found (N, D) -> (candidates,) each."""
    sizes = batch["size"].tolist()
    if kind.read == "together":
        return head(found)[:, 0].split(sizes)
    groups = found.float().split([1 + n for n in sizes])
    return [F.cosine_similarity(g[:1], g[1:], -1) / kind.temperature for g in groups]


def _ends(head: Head, hidden: Tensor, batch: Rich) -> list[tuple[Tensor, Tensor]]:
    """Return, for start and end of each piece, the scores of its text's tokens and the right one."""
    found, out = head(hidden), []
    spans, answers = batch["span"].view(-1, 2), batch["answer"].view(-1, 2)
    for begin, (a, b), (start, end) in zip(batch.cu[:-1].tolist(), spans.tolist(), answers.tolist(), strict=True):
        scores = found[begin + a : begin + b]
        for side, at in ((0, start), (1, end)):
            out.append((scores[:, side], torch.tensor(int(at) - a, device=hidden.device)))
    return out


def _embedded(kind: Embed, found: Tensor, batch: Rich) -> Tensor:
    groups = found.split(batch["size"].tolist())
    a, b = torch.stack([g[0] for g in groups]), torch.stack([g[1] for g in groups])
    if kind.loss == "cosine":
        return F.mse_loss(F.cosine_similarity(a.float(), b.float(), -1), batch["answer"], reduction="sum")
    hard = [g[2] for g in groups if len(g) > 2]
    return info_nce(a, b, kind.temperature, torch.stack(hard) if hard else None)[0].sum()


def answers(model: Model, batch: Rich, card: Card, tokenizer: Tokenizer, asked: Sequence[Example]) -> list[object]:
    """Say what the head says of each example: a label, an index, a number, a text, stretches, or a cosine."""
    head = head_of(model)
    if isinstance(card.kind, Translate):
        return list(rewrite(model, tokenizer, [x.texts[0] for x in asked]))
    hidden, ctx = forward(model, batch)
    match card.kind:
        case Classify(pool):
            return [card.labels[i] for i in head(vectors(model, hidden, ctx, pool)).argmax(-1).tolist()]
        case Regress(pool):
            mean, spread = card.scale
            return [x * spread + mean for x in head(vectors(model, hidden, ctx, pool))[:, 0].tolist()]
        case Choose(pool) as kind:
            return [int(part.argmax()) for part in _preferred(kind, head, vectors(model, hidden, ctx, pool), batch)]
        case Embed(pool=pool):
            groups = vectors(model, hidden, ctx, pool).split(batch["size"].tolist())
            return [F.cosine_similarity(g[0], g[1], 0).item() for g in groups]
        case Extract(longest):
            sides = [scores for scores, _ in _ends(head, hidden, batch)]
            pairs = zip(sides[0::2], sides[1::2], asked, strict=True)
            return [_said(s, e, longest, tokenizer, x) for s, e, x in pairs]
        case Translate():
            raise AssertionError
        case Tag():
            best = head(hidden).argmax(-1)
            bounds = zip(batch.cu[:-1].tolist(), batch.cu[1:].tolist(), asked, strict=True)
            return [_stretches(best[a:b], batch["answer"][a:b], tokenizer, x, card) for a, b, x in bounds]


def _said(starts: Tensor, ends: Tensor, longest: int, tokenizer: Tokenizer, example: Example) -> str:
    """Return the likeliest stretch of at most `longest` tokens."""
    both = starts[:, None] + ends[None]
    size = len(starts)
    at = torch.arange(size, device=starts.device)
    fits = (at[None] >= at[:, None]) & (at[None] - at[:, None] < longest)
    a, b = divmod(int(both.masked_fill(~fits, float("-inf")).argmax()), size)
    ids = tokenizer.encode(example.texts[0])
    where = offsets(tokenizer, ids, example.texts[0], example.place)
    return example.texts[0][where[a][0] : where[b][1]]


def _stretches(best: Tensor, marked: Tensor, tokenizer: Tokenizer, example: Example, card: Card) -> tuple[Stretch, ...]:
    """Join B and I of one name to stretches of characters."""
    names = [card.labels[i] for i in best[marked >= 0].tolist()]
    ids = tokenizer.encode(example.texts[0])
    found: list[Stretch] = []
    for name, (a, b) in zip(names, offsets(tokenizer, ids, example.texts[0], example.place), strict=True):
        if name == OUTSIDE or a == b:
            continue
        side, _, label = name.partition("-")
        if side == "I" and found and found[-1].label == label and found[-1].end >= a:
            found[-1] = Stretch(found[-1].start, b, label)
        else:
            found.append(Stretch(a, b, label))
    return tuple(found)


def measured(kind: Kind, said: Sequence[object], right: Sequence[Example]) -> dict[str, float]:
    """Return the scores of a kind of head; the first is the one to show."""
    count = max(len(said), 1)
    match kind:
        case Classify() | Choose():
            hits = sum(s == x.answer for s, x in zip(said, right, strict=True))
            low, high = scores.wilson(hits, len(said))
            return {"accuracy": hits / count, "accuracy_low": low, "accuracy_high": high}
        case Regress() | Embed():
            given = [s for s in said if isinstance(s, float)]
            wanted = [x.answer for x in right if isinstance(x.answer, float)]
            if not wanted:
                return {"cosine_of_pairs": sum(given) / count}
            return {"spearman": scores.spearman(given, wanted), "pearson": scores.pearson(given, wanted)}
        case Extract():
            pairs = [(str(s), x.answers) for s, x in zip(said, right, strict=True)]
            em, f1 = (sum(f(s, a) for s, a in pairs) / count for f in (scores.exact, scores.overlap))
            return {"exact_match": em, "character_f1": f1}
        case Translate():
            wanted = [x.answers[0] for x in right]
            copied = scores.chrf([x.texts[0] for x in right], wanted)
            return {"chrf": scores.chrf([str(s) for s in said], wanted), "chrf_of_copying": copied}
        case Tag():
            both = given = wanted = 0
            for s, x in zip(said, right, strict=True):
                if isinstance(s, tuple) and isinstance(x.answer, tuple):
                    both, given, wanted = both + len({*s} & {*x.answer}), given + len(s), wanted + len(x.answer)
            return {"span_f1": 2 * both / max(given + wanted, 1), "span_precision": both / max(given, 1)}
