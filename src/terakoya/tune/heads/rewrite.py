"""Source and target of an encoder–decoder, and its targets written token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from terakoya.errors import TerakoyaError
from terakoya.model.context import Keys, Memory, Packed, Source
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.objectives.rows import Piece
from terakoya.train.objectives.seq2seq import paired
from terakoya.train.objectives.signs import Signs
from terakoya.tune.heads.examples import Example
from terakoya.tune.heads.reading import Overlong, Reader

LONGEST = 128  # tokens of a target that does not end by itself


def pair_of(reader: Reader, source: np.ndarray, example: Example) -> Piece:
    """Lay out one pair for training; an error where a side does not fit."""
    before, after = reader.signs.source
    source = np.concatenate([before, source, after]).astype(np.int64)
    target = np.append(reader.encode(example.answers)[0], reader.signs.end)
    for side, ids in (("source", source), ("target", target)):
        if len(ids) > reader.context:
            hint = "raise rows.context, or leave such rows out with data.overlong = drop"
            raise Overlong(f"{example.place}: {side}", f"has {len(ids)} tokens, more than {reader.context}", hint=hint)
    return paired(source, target, reader.signs.start, joined=False)


def sources_of(model: Model, tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Encode what the encoder is to read, each text and what stands round it; an error where one does not fit."""
    assert model.spec.encoder is not None
    room, (before, after) = model.spec.encoder.context, Signs(tokenizer).source
    sources = [[*before, *ids, *after] for ids in tokenizer.encode_batch(list(texts))]
    for i, ids in enumerate(sources):
        if len(ids) > room:
            name = f"text {i}" if len(texts) > 1 else "text"
            raise TerakoyaError(name, f"has {len(ids)} tokens, more than the {room} that the encoder reads")
    return sources


@torch.inference_mode()
def rewrite(model: Model, tokenizer: Tokenizer, texts: Sequence[str], *, most: int = LONGEST) -> list[str]:
    """Write the target of each source, always the likeliest token, until it ends or `most` tokens are written."""
    signs, device = Signs(tokenizer), next(model.parameters()).device
    sources = sources_of(model, tokenizer, texts)
    flat = torch.tensor([i for ids in sources for i in ids], device=device)
    memory = Memory(len(texts), source=model.encode(flat, [len(ids) for ids in sources]))
    tokens = torch.full((len(texts),), signs.start, device=device)
    said: list[list[int]] = [[] for _ in texts]
    going = [True] * len(texts)
    for _ in range(min(most, model.spec.context)):
        ctx = memory.step([1] * len(texts), device)
        tokens = model.head(model(tokens, ctx)).argmax(-1)
        ctx.close()
        for i, id in enumerate(tokens.tolist()):
            going[i] = going[i] and id != signs.end
            if going[i]:
                said[i].append(id)
        if not any(going):
            break
    return [tokenizer.decode(ids) for ids in said]


@torch.inference_mode()
def beam(model: Model, tokenizer: Tokenizer, text: str, *, width: int = 4, most: int = LONGEST) -> str:
    """Write a target by beam search: the best mean log-probability per token among `width` hypotheses (Graves 2012)."""
    signs, device = Signs(tokenizer), next(model.parameters()).device
    (read,) = sources_of(model, tokenizer, [text])
    source = model.encode(torch.tensor(read, device=device), [len(read)])
    going: list[tuple[float, list[int]]] = [(0.0, [])]
    done: list[tuple[float, list[int]]] = []
    for _ in range(min(most, model.spec.context)):
        rows = torch.tensor([[signs.start, *ids] for _, ids in going], device=device)
        many = Source(source.hidden.repeat(len(going), 1), source.lengths * len(going))
        hidden = model(rows.flatten(), Packed([rows.shape[1]] * len(going), device, source=many))
        chances = torch.log_softmax(model.head(hidden.view(*rows.shape, -1)[:, -1]).float(), -1)
        best = (chances + torch.tensor([s for s, _ in going], device=device)[:, None]).flatten().topk(2 * width)
        found = [
            (s, [*going[i // chances.shape[1]][1], i % chances.shape[1]]) for s, i in zip(*map(Tensor.tolist, best))
        ]
        done += [(s / len(ids), ids[:-1]) for s, ids in found[:width] if ids[-1] == signs.end]
        going = [(s, ids) for s, ids in found if ids[-1] != signs.end][:width]
        if len(done) >= width:
            break
    ended = done or [(s / max(len(ids), 1), ids) for s, ids in going]
    return tokenizer.decode(max(ended, key=lambda x: x[0])[1])


class Watched(Packed):
    """A context that keeps what each cross-attention layer looked at: `maps[layer]` (H, T, S), for one pair."""

    def __init__(self, length: int, source: Source) -> None:
        super().__init__([length], source.hidden.device, source=source)
        self.maps: dict[int, Tensor] = {}

    def cross(self, layer: int, q: Tensor, keys: Keys, scale: float) -> Tensor:
        assert self.source is not None
        k, _ = keys(self.source.hidden)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        self.maps[layer] = (torch.einsum("thk,shk->hts", q, k) * scale).softmax(-1)
        return super().cross(layer, q, keys, scale)


@torch.inference_mode()
def attention(model: Model, tokenizer: Tokenizer, source: str, target: str) -> tuple[Tensor, list[str], list[str]]:
    """Return what each target token looks at, averaged over heads: (L, T, S), with the tokens of both sides."""
    signs, device = Signs(tokenizer), next(model.parameters()).device
    (read,) = sources_of(model, tokenizer, [source])
    said = [*tokenizer.encode(target), signs.end]
    ctx = Watched(len(said), model.encode(torch.tensor(read, device=device), [len(read)]))
    model(torch.tensor([signs.start, *said[:-1]], device=device), ctx)
    maps = torch.stack([ctx.maps[layer].mean(0) for layer in sorted(ctx.maps)])
    names = [[tokenizer.decode([i], specials=True) for i in ids] for ids in (read, said)]
    return maps, names[0], names[1]
