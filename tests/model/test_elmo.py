"""ELMo against its formulas, one number at a time, and against the published count."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from terakoya.data.batch import Batch
from terakoya.errors import TerakoyaError
from terakoya.model.build import Init, initialise
from terakoya.model.context import Packed
from terakoya.model.elmo import BEGIN, END, PAD, Elmo, ElmoPlan, Mix, letters
from terakoya.train.bilm import bilm
from terakoya.train.optim import AdamW, Optimizer
from terakoya.train.step import step

WORDS = [b"a", b"cat", "寺子屋".encode(), "👩‍🏫".encode(), b"", b"dog", "ｶﾅ".encode(), b"to"]
SMALL = ElmoPlan(dim=6, cells=10, letters=4, filters=((1, 3), (2, 4), (3, 5)), longest=12, clip=0.4)


def made(plan: ElmoPlan = SMALL, std: float = 0.7) -> Elmo:
    return initialise(Elmo(plan, WORDS), 0, Init(std=std)).double()


def word(model: Elmo, data: bytes) -> Tensor:
    """A word's vector: every convolution at every place, the greatest, highways, projection."""
    p, plan = dict(model.words.named_parameters()), model.plan
    line = [BEGIN, *data[: plan.longest - 2], END]
    rows = p["token.weight"][line + [PAD] * (plan.longest - len(line))]
    found = []
    for k, (width, count) in enumerate(plan.filters):
        for j in range(count):
            w, b = p[f"filters.{k}.weight"][j], p[f"filters.{k}.bias"][j]
            values = [(rows[i : i + width].T * w).sum() + b for i in range(plan.longest - width + 1)]
            found.append(max(0.0, *(float(v) for v in values)))
    x = torch.tensor(found, dtype=torch.float64)
    for k in range(plan.highways):
        y = p[f"highways.{k}.both.weight"] @ x + p[f"highways.{k}.both.bias"]
        new, gate = y[: len(x)], torch.sigmoid(y[len(x) :])
        x = gate * x + (1 - gate) * new.clamp(min=0)
    return p["project.weight"] @ x + p["project.bias"]


def layers(model: Elmo, ids: list[int], back: bool) -> list[list[Tensor]]:
    """The released model's biLSTM (elmoformanylangs' LstmCellWithProjection), token by token."""
    clip, xs = model.plan.clip, [word(model, WORDS[i]) for i in ids]
    out = [xs]
    for n, layer in enumerate(model.back if back else model.layers):
        p = dict(layer.named_parameters())
        h, c = torch.zeros(model.plan.dim).double(), torch.zeros(model.plan.cells).double()
        ys: dict[int, Tensor] = {}
        for t in reversed(range(len(xs))) if back else range(len(xs)):
            i, f, g, o = (p["x.weight"] @ xs[t] + p["h.weight"] @ h + p["h.bias"]).chunk(4)
            c = (torch.sigmoid(i) * torch.tanh(g) + torch.sigmoid(f) * c).clamp(-clip, clip)
            h = (p["o.weight"] @ (torch.sigmoid(o) * torch.tanh(c))).clamp(-clip, clip)
            ys[t] = h
        xs = [ys[t] + xs[t] if n else ys[t] for t in range(len(ids))]
        out.append(xs)
    return out


def test_letters_are_bytes_between_marks() -> None:
    rows = letters([b"ab", b"", b"abcdefghij"], 6)
    assert rows.tolist() == [[BEGIN, 97, 98, END, PAD, PAD], [BEGIN, END, PAD, PAD, PAD, PAD], [BEGIN, *b"abcd", END]]
    with pytest.raises(TerakoyaError, match=r"elmo\.longest"):
        ElmoPlan(longest=5)


@pytest.mark.parity
def test_it_is_the_papers_in_both_directions() -> None:
    model = made()
    texts = [[1, 2, 3, 0, 4], [5, 2], [6]]
    flat = [i for t in texts for i in t]
    cuts = [0, *accumulate(map(len, texts))]
    clipped = 0
    for back in (False, True):
        found = model.states(torch.tensor(flat), Packed([len(t) for t in texts]), back=back)
        for n, ids in enumerate(texts):
            for have, want in zip(found, layers(model, ids, back), strict=True):
                torch.testing.assert_close(have[cuts[n] : cuts[n + 1]], torch.stack(want), rtol=0, atol=1e-12)
        clipped += int((found[1].abs() == SMALL.clip).sum())
    assert clipped  # the clips were at work
    assert torch.equal(
        model(torch.tensor(flat), Packed([5, 2, 1])), model.states(torch.tensor(flat), Packed([5, 2, 1]))[-1]
    )


def test_neither_direction_sees_the_other_side() -> None:
    model, ids = made(), torch.tensor([1, 2, 3, 0, 4])
    other = ids.clone()
    other[2] = 7
    ways = [[model.states(x, Packed([5]), back=b)[-1] for x in (ids, other)] for b in (False, True)]
    assert torch.equal(ways[0][0][:2], ways[0][1][:2])
    assert torch.equal(ways[1][0][3:], ways[1][1][3:])
    assert not torch.equal(ways[0][0][3:], ways[0][1][3:])
    both = model.both(ids, Packed([5]))
    assert [b.shape for b in both] == [(5, 12)] * 3


def test_the_released_model_has_936_million_tenths() -> None:
    with torch.device("meta"):
        model = Elmo(ElmoPlan(), [b""])
    bare = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("head"))
    assert round(bare / 1e5) == 936  # 93.6 M, allennlp.org/elmo; its table has 262 letters, ours the 259 that are used
    assert bare + 3 * 16 == 93_600_864


def batch(texts: list[list[int]]) -> Batch:
    lengths = [len(t) - 1 for t in texts]
    return Batch(
        torch.tensor([i for t in texts for i in t[:-1]]), torch.tensor([i for t in texts for i in t[1:]]),
        torch.ones(sum(lengths)), torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        torch.cat([torch.arange(n) for n in lengths]), 0,
    )  # fmt: skip


def test_the_objective_counts_both_directions() -> None:
    model, texts = made(), [[1, 2, 3, 0], [5, 6, 7]]
    found = bilm(model, batch(texts))
    total = 0.0
    for ids in texts:
        inside = ids[:-1]
        for back in (False, True):
            for t, state in enumerate(layers(model, inside, back)[-1]):
                target = ids[t + 1] if not back else inside[t - 1] if t else None
                if target is not None:
                    total -= float(model.head(state[None])[0].log_softmax(0)[target]) / 2
    assert found.loss.item() == pytest.approx(total, rel=1e-6)


def test_it_learns_by_the_packages_step() -> None:
    model = made(ElmoPlan(dim=12, cells=24, letters=4, filters=((1, 8), (2, 8)), longest=12), 0.2).float()
    optimizer = Optimizer(model, AdamW(lr=0.02))
    texts = [[0, 1, 2, 3, 0, 1, 2, 3], [5, 6, 7, 5, 6, 7]]
    losses = [step(model, [batch(texts)], bilm, optimizer, factor=1.0).loss for _ in range(60)]
    assert losses[0] > math.log(6)
    assert losses[-1] < 0.4


def test_layers_are_mixed() -> None:
    mix = Mix(3)
    with torch.no_grad():
        mix.s.copy_(torch.tensor([0.0, 1.0, -1.0]))
        mix.gamma.fill_(2.0)
    x = [torch.full((2, 3), float(k)) for k in (1, 10, 100)]
    e = [1.0, math.e, 1 / math.e]
    wanted = 2 * (e[0] + 10 * e[1] + 100 * e[2]) / sum(e)
    torch.testing.assert_close(mix(x), torch.full((2, 3), wanted))
