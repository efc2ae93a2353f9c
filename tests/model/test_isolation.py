"""What a token may not see: other documents, the future; and that memory changes nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

from terakoya.model.context import Memory, Packed
from terakoya.model.model import Model
from tests.model.small import SPECS, VOCAB, made, some_tokens

every = pytest.mark.parametrize("name", SPECS)
# A token's expert multiplies another number of rows when other documents choose otherwise, and a matrix product of
# another height may round otherwise: the last bits may move there, and nowhere else.
ROUNDING = {"experts": 1e-5}


@torch.inference_mode()
def logits(model: Model, lengths: Sequence[int], tokens: Tensor) -> Tensor:
    return model.head(model(tokens, Packed(lengths)))


def cut(values: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    return [values[a:b] for a, b in pairwise([0, *accumulate(lengths)])]


def furthest(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


PACKS = ([7, 12, 9], [5, 5, 5], [1, 17, 1, 1, 8], [6, 6, 11, 6])


@every
@pytest.mark.parametrize("lengths", PACKS, ids=str)
def test_editing_one_document_changes_no_other(name: str, lengths: list[int]) -> None:
    model, tokens = made(SPECS[name]), some_tokens(sum(lengths))
    before = cut(logits(model, lengths, tokens), lengths)
    for edited in range(len(lengths)):
        other = [t.clone() for t in cut(tokens, lengths)]
        other[edited] = (other[edited] + 1 + some_tokens(lengths[edited], 5) % (VOCAB - 1)) % VOCAB
        after = cut(logits(model, lengths, torch.cat(other)), lengths)
        assert furthest(before[edited], after[edited]) > 1e-2, "the edit shows nowhere: the test tests nothing"
        for number in set(range(len(lengths))) - {edited}:
            assert furthest(before[number], after[number]) <= ROUNDING.get(name, 0.0), (edited, number)


@every
def test_the_future_changes_nothing(name: str) -> None:
    model, lengths, tokens = made(SPECS[name]), [11, 9], some_tokens(20)
    before = logits(model, lengths, tokens)
    for at in (1, 4, 8, 10):
        other = tokens.clone()
        other[at:11] = (other[at:11] + 1) % VOCAB
        after = logits(model, lengths, other)
        assert furthest(before[:at], after[:at]) <= ROUNDING.get(name, 0.0), at
        assert furthest(before[at:11], after[at:11]) > 1e-2


@every
def test_gradients_stay_in_their_document(name: str) -> None:
    model, lengths = made(SPECS[name]), [7, 12, 9]
    seen: list[Tensor] = []
    model.embed.token.register_forward_hook(lambda module, given, out: (out.retain_grad(), seen.append(out))[0])
    hidden = model(some_tokens(sum(lengths)), Packed(lengths))
    cut(hidden, lengths)[1][:5].square().sum().backward()
    slope = seen[0].grad
    assert slope is not None
    assert not slope[:7].any()
    assert slope[7:12].any(-1).all()
    assert not slope[12:].any(), "the future or the next document is looked at"


@every
def test_packed_is_as_alone(name: str) -> None:
    model = made(SPECS[name], dtype=torch.float64)
    for lengths in PACKS:
        tokens = some_tokens(sum(lengths))
        for mine, text in zip(cut(logits(model, lengths, tokens), lengths), cut(tokens, lengths), strict=True):
            assert furthest(mine, logits(model, [len(text)], text)) < 1e-12


@torch.inference_mode()
def fed(model: Model, texts: Sequence[Tensor], cuts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits of each text, fed to one memory in steps: cuts[n] are the sizes of sequence n's pieces."""
    memory, out = Memory(len(texts)), [[] for _ in texts]  # type: list[list[Tensor]]
    at = [0] * len(texts)
    for counts in zip(*cuts, strict=True):
        ctx = memory.step(counts)
        flat = torch.cat([text[a : a + c] for text, a, c in zip(texts, at, counts, strict=True)])
        parts = cut(model.head(model(flat, ctx)), counts)
        ctx.close()
        at = [a + c for a, c in zip(at, counts, strict=True)]
        for whole, part in zip(out, parts, strict=True):
            whole.append(part)
    return [torch.cat(parts) for parts in out]


def pieces(rng: random.Random, total: int, count: int) -> list[int]:
    at = sorted(rng.sample(range(1, total), count - 1))
    return [b - a for a, b in pairwise([0, *at, total])]


@every
def test_memory_is_as_packed(name: str) -> None:
    """One token at a time; in random pieces; two texts of different length in one memory; beyond the first buffer."""
    model, rng = made(SPECS[name], dtype=torch.float64), random.Random(0)
    a, b = some_tokens(23, 1), some_tokens(14, 2)
    expected = cut(logits(model, [23, 14], torch.cat([a, b])), [23, 14])
    assert furthest(fed(model, [a], [[1] * 23])[0], expected[0]) < 1e-12
    for count in (2, 5, 14):
        steps = [pieces(rng, 23, count), pieces(rng, 14, count)]
        found = fed(model, [a, b], steps)
        assert max(map(furthest, found, expected)) < 1e-12, steps
    both = fed(model, [b, b.flip(0)], [[3] + [1] * 11] * 2)
    assert furthest(both[0], expected[1]) < 1e-12


def test_memory_grows_and_keeps() -> None:
    model, text = made(SPECS["grouped"], dtype=torch.float64), some_tokens(150, 3)
    expected = logits(model, [150], text)
    assert furthest(fed(model, [text], [[60, 3, 1, 1, 70, 15]])[0], expected) < 1e-12


@torch.inference_mode()
@pytest.mark.parametrize("name", ["rope", "window", "alibi", "latent"])
def test_truncated_memory_goes_on_as_if_nothing_had_followed(name: str) -> None:
    model, text, other = made(SPECS[name], dtype=torch.float64), some_tokens(20, 1), some_tokens(20, 2)
    memory = Memory(2)

    def feed(*texts: Tensor) -> Tensor:
        ctx = memory.step([len(t) for t in texts])
        out = model.head(model(torch.cat(texts), ctx))
        ctx.close()
        return out

    feed(text[:12], text[:4])
    memory.truncate(7)
    assert memory.lengths == [7, 4]
    found = cut(feed(other[7:], text[4:]), [13, 16])
    first = torch.cat([text[:7], other[7:]])
    assert furthest(found[0], logits(model, [20], first)[7:]) < 1e-12
    assert furthest(found[1], logits(model, [20], text)[4:]) < 1e-12


def test_a_step_that_is_not_closed_leaves_no_trace() -> None:
    model, text = made(SPECS["rope"], dtype=torch.float64), some_tokens(10)
    memory = Memory()
    with torch.inference_mode():
        ctx = memory.step([6])
        model(text[:6], ctx)
        ctx.close()
        model(text.flip(0)[:3], memory.step([3]))  # tried and given up
        found = model.head(model(text[6:], memory.step([4])))
    assert furthest(found, logits(model, [10], text)[6:]) < 1e-12


def test_training_after_looking() -> None:
    """What inference made and cached (rotary tables) must serve a gradient too."""
    model, tokens = made(SPECS["rope"]), some_tokens(9)
    logits(model, [9], tokens)
    model(tokens, Packed([9])).sum().backward()
    assert all(p.grad is not None for p in model.layers.parameters())
