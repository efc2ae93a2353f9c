"""What models that read are used for: fill gaps, embed, classify, answer, translate. One call each.

from terakoya import understand

bert = understand.open("runs/bert-ja-nano")
understand.fill(bert, "今日は[MASK]です")
understand.embed(bert, ["猫", "犬"])              # (2, D)
jnli = understand.open("runs/tune-jnli")          # a run of `terakoya tune` with a head
understand.classify(jnli, [("猫がいる。", "動物がいる。")])
understand.translate(understand.open("runs/tune-translate"), ["文書を読む。"])
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.models import find, open_model
from terakoya.ngram.model import NGram
from terakoya.tokenizer import Tokenizer
from terakoya.train.objectives.contrast import Pool, pooled
from terakoya.train.objectives.rows import Rich, laid
from terakoya.train.objectives.sight import guessed
from terakoya.train.objectives.signs import MASK, SPELLINGS, Signs
from terakoya.tune.heads.examples import Example, Stretch
from terakoya.tune.heads.head import Card, head_of, open_head, vectors
from terakoya.tune.heads.kinds import Choose, Classify, Embed, Extract, Regress, Tag
from terakoya.tune.heads.reading import Reader
from terakoya.tune.heads.rewrite import beam, rewrite, sources_of
from terakoya.tune.heads.work import answers, forward, pieces
from terakoya.zoo.convert import Loaded, read_json

K = TypeVar("K")


@dataclass(frozen=True)
class Reading:
    """A model that reads, its tokenizer, its head where a run has put one on it, and how it makes vectors."""

    model: Model
    tokenizer: Tokenizer
    card: Card | None = None
    pool: Pool = "mean"
    normalise: bool = False

    @property
    def reader(self) -> Reader:
        return Reader(self.tokenizer, self.model.spec.context, hint="the model reads no more; shorten the text")


@dataclass(frozen=True)
class Guess:
    """One way to fill a gap."""

    text: str
    probability: float


def open(name: str, *, device: str = "cpu") -> Reading:
    """Open a model by its name, with the head beside it, and its pooling as sentence-transformers writes it down."""
    place = find(name)
    loaded = open_model(name, device=device)
    return reading(loaded, place)


def reading(loaded: Loaded, place: Path | None = None) -> Reading:
    """Make a Reading of a model that is open already."""
    if loaded.tokenizer is None:
        raise TerakoyaError("model", "has no tokenizer beside it", allowed="a folder with tokenizer.json")
    model = loaded.model.eval()
    beside = place.parent / "head" if place is not None else None
    card = open_head(beside, model).card if beside is not None and (beside / "head.json").is_file() else None
    pool, normalise = pooling(place) if place is not None and place.is_dir() else ("mean", False)
    if card is not None and isinstance(card.kind, Embed):
        pool = card.kind.pool
    return Reading(model, loaded.tokenizer, card, pool, normalise)


def pooling(folder: Path) -> tuple[Pool, bool]:
    """Read how a sentence-transformers folder pools, and whether it normalises; the mean where nothing is said."""
    if not (folder / "modules.json").is_file():
        return "mean", False
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        parts = [(m["path"], m["type"].rpartition(".")[2]) for m in modules]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TerakoyaError(str(folder / "modules.json"), f"cannot be read: {error}") from None
    strange = [kind for _, kind in parts if kind not in ("Transformer", "Pooling", "Normalize")]
    if strange:
        raise TerakoyaError(str(folder / "modules.json"), "has parts that are not known here", given=strange)
    found: Pool = "mean"
    for path, kind in parts:
        if kind == "Pooling":
            found = _mode(folder / path / "config.json")
    return found, any(kind == "Normalize" for _, kind in parts)


def _mode(file: Path) -> Pool:
    said = read_json(file)
    names: dict[str, Pool] = {
        "pooling_mode_cls_token": "first", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max",
        "pooling_mode_lasttoken": "last",
    }  # fmt: skip
    on = [name for name, value in said.items() if name.startswith("pooling_mode_") and value is True]
    if len(on) != 1 or on[0] not in names:
        raise TerakoyaError(str(file), "pools in a way that is not known here", given=on, allowed=list(names))
    return names[on[0]]


# Gaps


@torch.inference_mode()
def fill(reading: Reading, text: str, *, top: int = 5) -> list[list[Guess]]:
    """Guess what stands at each [MASK] of a text: for every gap the `top` likeliest pieces, likeliest first.

    Several gaps are guessed each for itself, with the others still hidden.
    """
    _names(reading.model)
    if top < 1:
        raise TerakoyaError("top", given=top, allowed="1 or more")
    signs = Signs(reading.tokenizer)
    name = next(s for s in SPELLINGS[MASK] if s in reading.tokenizer.specials) if signs.mask >= 0 else MASK
    parts: list[tuple[str, bool]] = []
    for i, piece in enumerate(text.replace(name, MASK).split(MASK)):
        parts += [(name, True)] if i else []
        parts.append((piece, False))
    if len(parts) < 3:
        raise TerakoyaError("text", "has no gap to fill", hint=f"write {MASK} where a word is missing")
    ids = reading.reader.read([np.array(reading.tokenizer.encode_parts(parts), np.int64)], "text").ids
    tokens = torch.from_numpy(ids).to(_device(reading.model))
    hidden = guessed(reading.model, tokens, [len(ids)], tokens == signs.mask)
    words = torch.from_numpy(signs.ordinary).to(tokens.device)  # a table may have rows beyond the vocabulary
    best = reading.model.head(hidden).float().softmax(-1)[:, words].topk(min(top, len(words)), -1)
    return [
        [Guess(_spelt(reading.tokenizer, i), p) for i, p in zip(row, share, strict=True)]
        for row, share in zip(words[best.indices].tolist(), best.values.tolist(), strict=True)
    ]


def _names(model: Model) -> None:
    """Raise where a model does not name hidden words."""
    s = model.spec
    if s.sort != "encoder" or s.head.scores != "words":
        given = s.sort if s.sort != "encoder" else "an encoder without a head for words"
        raise TerakoyaError("fill", "needs a masked language model", given=given)


def _spelt(tokenizer: Tokenizer, id: int) -> str:
    """Spell a piece; bytes that are no character by themselves as SentencePiece names them: <0xE3>."""
    text = tokenizer.decode([id])
    return text if "\ufffd" not in text else "".join(f"<0x{b:02X}>" for b in tokenizer.token_bytes(id))


# Vectors


@torch.inference_mode()
def embed(reading: Reading, texts: Sequence[str], *, batch: int = 32) -> Tensor:
    """Make one vector of each text: -> (N, D), pooled and normalised as the model's folder says.

    Of an encoder–decoder, by its encoder (Ni 2021, Sentence-T5).
    """
    _listed(texts)
    if isinstance(reading.model, NGram):
        raise TerakoyaError("embed", "an n-gram model counts: it has no vectors", hint="terakoya vectors learns some")
    if reading.model.spec.encoder is not None:
        return _encoded(reading, texts, batch)
    rows, reader = [], reading.reader
    encoded = reader.encode(texts)
    for first in range(0, len(texts), batch):
        reads = [reader.read([ids], f"text {first + i}") for i, ids in enumerate(encoded[first : first + batch])]
        tokens = torch.from_numpy(np.concatenate([r.ids for r in reads])).to(_device(reading.model))
        ctx = Packed([len(r.ids) for r in reads], tokens.device)
        rows.append(
            pooled(reading.model(tokens, ctx), torch.tensor(ctx.cu, device=tokens.device), reading.pool).float()
        )
    found = torch.cat(rows) if rows else torch.zeros(0, reading.model.spec.out_dim)
    return F.normalize(found, dim=-1) if reading.normalise else found


def _encoded(reading: Reading, texts: Sequence[str], batch: int) -> Tensor:
    """Make vectors of the sources that an encoder–decoder reads: -> (N, D)."""
    model, device = reading.model, _device(reading.model)
    assert model.spec.encoder is not None
    sources, rows = sources_of(model, reading.tokenizer, texts), []
    for first in range(0, len(sources), batch):
        some = sources[first : first + batch]
        read = model.encode(torch.tensor([i for ids in some for i in ids], device=device), [len(ids) for ids in some])
        cu = torch.tensor([0, *accumulate(read.lengths)], device=device)
        rows.append(pooled(read.hidden, cu, reading.pool).float())
    found = torch.cat(rows) if rows else torch.zeros(0, model.spec.encoder.out_dim)
    return F.normalize(found, dim=-1) if reading.normalise else found


# Heads


@dataclass(frozen=True)
class Label:
    """A label and how likely the head holds it."""

    name: str
    probability: float


@torch.inference_mode()
def classify(reading: Reading, texts: Sequence[str | tuple[str, str]], *, batch: int = 32) -> list[list[Label]]:
    """Return all labels for each text or pair, likeliest first."""
    kind = _kind(reading, Classify)
    _listed(texts)
    out: list[list[Label]] = []
    for some, found in _batches(reading, [Example("text", _both(t)) for t in texts], batch):
        hidden, ctx = forward(reading.model, found)
        scores = head_of(reading.model)(vectors(reading.model, hidden, ctx, kind.pool)).softmax(-1)
        assert len(scores) == len(some)
        labels = _card(reading).labels
        out += [sorted(map(Label, labels, row), key=lambda x: -x.probability) for row in scores.tolist()]
    return out


def rate(reading: Reading, texts: Sequence[str | tuple[str, str]], *, batch: int = 32) -> list[float]:
    """Return the number that a Regress head gives each text or pair."""
    _kind(reading, Regress)
    _listed(texts)
    return [x for x in _said(reading, [Example("text", _both(t)) for t in texts], batch) if isinstance(x, float)]


def choose(reading: Reading, question: str, candidates: Sequence[str]) -> int:
    """Return the index of the candidate that a Choose head prefers."""
    _kind(reading, Choose)
    _listed(candidates)
    if not candidates:
        raise TerakoyaError("candidates", "are none to choose from")
    (found,) = _said(reading, [Example("question", (question, *candidates))], 1)
    assert isinstance(found, int)
    return found


def answer(reading: Reading, context: str, question: str) -> str:
    """Return the stretch of the context with which an Extract head answers."""
    _kind(reading, Extract)
    if not context:
        raise TerakoyaError("context", "is empty: no answer stands in it")
    (found,) = _said(reading, [Example("context", (context, question))], 1)
    return str(found)


def tag(reading: Reading, text: str) -> tuple[Stretch, ...]:
    """Return the stretches of a text that a Tag head names, by character."""
    _kind(reading, Tag)
    (found,) = _said(reading, [Example("text", (text,))], 1)
    assert isinstance(found, tuple)
    return found


@torch.inference_mode()
def _said(reading: Reading, asked: Sequence[Example], batch: int) -> list[object]:
    out: list[object] = []
    for some, found in _batches(reading, asked, batch):
        out += answers(reading.model, found, _card(reading), reading.tokenizer, some)
    return out


def _batches(reading: Reading, asked: Sequence[Example], size: int) -> list[tuple[Sequence[Example], Rich]]:
    reader, device = reading.reader, _device(reading.model)
    cuts = [asked[i : i + size] for i in range(0, len(asked), size)]
    return [(some, laid([pieces(reader, _card(reading), x) for x in some]).to(device)) for some in cuts]


def _card(reading: Reading) -> Card:
    if reading.card is None:
        raise TerakoyaError("model", "has no head", hint="put one on it with: terakoya tune RECIPE")
    return reading.card


def _kind(reading: Reading, wanted: type[K]) -> K:
    kind = _card(reading).kind
    if not isinstance(kind, wanted):
        raise TerakoyaError("model", "has another kind of head", given=type(kind).__name__, allowed=wanted.__name__)
    return kind


def _both(text: str | tuple[str, str]) -> tuple[str, ...]:
    both = (text,) if isinstance(text, str) else text
    if not isinstance(both, tuple | list) or not 1 <= len(both) <= 2 or not all(isinstance(t, str) for t in both):
        raise TerakoyaError("texts", given=both, allowed="texts, or pairs of texts")
    return tuple(both)


def _listed(texts: Sequence[object]) -> None:
    """Raise where one text stands for a list: its characters would be taken one by one."""
    if isinstance(texts, str):
        raise TerakoyaError("texts", "are a list of texts, not one text", given=texts[:40])


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device


# Translation


@torch.inference_mode()
def translate(
    reading: Reading, texts: Sequence[str], *, max_tokens: int = 128, width: int = 1, batch: int = 16
) -> list[str]:
    """Write the target of each source with an encoder–decoder: the likeliest token each time, or a beam of `width`.

    A target that does not end by itself stops after `max_tokens`.
    """
    _listed(texts)
    for name, value in (("max_tokens", max_tokens), ("width", width)):
        if value < 1:
            raise TerakoyaError(name, given=value, allowed="1 or more")
    if reading.model.spec.encoder is None:
        raise TerakoyaError("translate", "needs an encoder–decoder", given=reading.model.spec.sort)
    if width > 1:
        return [beam(reading.model, reading.tokenizer, t, width=width, most=max_tokens) for t in texts]
    cuts = [texts[i : i + batch] for i in range(0, len(texts), batch)]
    return [said for some in cuts for said in rewrite(reading.model, reading.tokenizer, some, most=max_tokens)]
