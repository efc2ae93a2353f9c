"""Laws that every encoder and encoder–decoder keeps: every weight learns, nothing leaks, padding is never seen."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from terakoya import config
from terakoya.model import spec
from terakoya.model.context import Packed
from terakoya.model.entities import Mentioned, Mentions
from terakoya.model.model import Model
from terakoya.zoo import lineage
from tests.zoo.noisy import VOCAB, noisy, text

ENCODERS = [n for n in lineage.families() if lineage.base(n).sort == "encoder"]
PAIRS = [n for n in lineage.families() if lineage.base(n).sort == "encoder-decoder"]


def tiny(name: str) -> spec.Model:
    """Return a family small, with every kind of its layers."""
    s = lineage.base(name)
    s = lineage.rescale(s, 32, max(2, len(s.blocks), min(4, len(s.layout or ()))), 16)
    changes: dict[str, Any] = {"vocab": VOCAB, "context": 64}
    changes |= {"encoder.vocab": VOCAB, "encoder.context": 64} if s.encoder else {}
    changes |= {"window.size": 5} if config.select(s, "window") else {}
    return config.override(s, changes)


@functools.cache
def model(name: str) -> Model:
    return noisy(tiny(name))


def hidden(m: Model, *sequences: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return m(torch.cat(sequences), Packed([len(s) for s in sequences]))


def written(m: Model, sources: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
    source = m.encode(torch.cat(sources), [len(s) for s in sources])
    return m(torch.cat(targets), Packed([len(t) for t in targets], source=source))


def learnt(m: Model, loss: torch.Tensor, asks: bool = False) -> None:
    """Every parameter has a gradient that is finite and somewhere not zero."""
    loss.backward()
    for name, p in m.named_parameters():
        if name == "embed.asks" and not asks:
            continue
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name
    m.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_weight_of_an_encoder_learns(name: str) -> None:
    m = model(name)
    lengths, x = [20, 12], text(32, 9)
    segments = (torch.arange(32) % 20 >= 7).long() * (m.spec.embed.types != 1)
    if m.spec.embed.entities:
        lengths, at, ids = [20, 14], torch.tensor([32, 33]), torch.tensor([3, 4])
        mentions = Mentions(at, ids, torch.tensor([1, 2, 5]), torch.tensor([0, 0, 1]))
        x, segments = torch.cat([x, torch.zeros(2, dtype=torch.long)]), torch.cat([segments, segments[-2:]])
        ctx: Packed = Mentioned(lengths, None, mentions, segments=segments)
    else:
        ctx = Packed(lengths, segments=segments)
    vectors = None
    if m.embed.asks is not None:  # XLNet's question stands in the place of a word
        vectors = (torch.tensor([4]), m.embed.asks[0])
        ctx.share("vectors", lambda: vectors)
    h = m(x, ctx)
    loss = (m.head(h) if m.spec.head.scores != "nothing" else h)[:32].float().logsumexp(-1).sum() + h.square().sum()
    if m.pool is not None:
        pooled = m.pool(h, ctx)
        loss = loss + (m.pool.pair(pooled) if m.pool.pair is not None else pooled).logsumexp(-1).sum()
    if m.entities is not None:
        loss = loss + m.entities(h[32:]).logsumexp(-1).sum()
    learnt(m, loss, asks=True)


@pytest.mark.parametrize("name", PAIRS)
def test_every_weight_of_a_pair_learns(name: str) -> None:
    m = model(name)
    h = written(m, [text(14, 1), text(9, 2)], [text(12, 3), text(20, 4)])
    learnt(m, m.head(h).logsumexp(-1).sum() + h.square().sum())


@pytest.mark.parametrize("name", ENCODERS)
def test_a_neighbour_in_the_pack_is_not_seen(name: str) -> None:
    """On either side: what padding would be to others is another text here, and moves no bit."""
    m, a, b, c = model(name), text(11, 4), text(7, 5), text(9, 6)
    packed = hidden(m, a, b, c)
    alone = hidden(m, b)
    assert (packed[11:18] - alone).abs().max() < 1e-5 * max(1.0, alone.std().item())
    edited = hidden(m, text(11, 7), b, text(9, 8))
    assert torch.equal(edited[11:18], packed[11:18])
    assert not torch.equal(edited[:11], packed[:11])


@pytest.mark.parametrize("name", ENCODERS)
def test_both_sides_are_seen(name: str) -> None:
    m, x = model(name), text(12, 1)
    for changed, watched in ((11, 0), (0, 11)):
        y = x.clone()
        y[changed] = (y[changed] + 1) % VOCAB
        assert not torch.equal(hidden(m, y)[watched], hidden(m, x)[watched])


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_in_a_pack_do_not_see_each_other(name: str) -> None:
    m = model(name)
    with torch.no_grad():
        both = written(m, [text(14, 1), text(9, 2)], [text(12, 3), text(8, 4)])
        other = written(m, [text(14, 5), text(9, 2)], [text(12, 6), text(8, 4)])
        alone = written(m, [text(9, 2)], [text(8, 4)])
    assert (both[12:] - alone).abs().max() < 1e-5 * max(1.0, alone.std().item())
    assert (other[12:] - both[12:]).abs().max() < 1e-5 * max(1.0, alone.std().item())  # experts may add in other order
    assert not torch.equal(other[:12], both[:12])
