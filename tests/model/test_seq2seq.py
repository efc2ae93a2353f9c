"""Sutskever, Bahdanau and Luong against the papers' formulas written out for one pair and one number at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate, product

import pytest
import torch
from torch import Tensor, nn

from terakoya.errors import TerakoyaError
from terakoya.model.align import Memory, Multiplicative, Where
from terakoya.model.build import Init, initialise
from terakoya.model.context import Packed
from terakoya.model.seq2seq import Pair, Seq2Seq

VOCAB, DIM = 23, 8
KINDS = [
    Pair("sutskever", DIM, 2),
    Pair("bahdanau", DIM),
    *(
        Pair("luong", DIM, 2, score=s, where=w, half=2)
        for s, w in product(("dot", "general", "concat"), ("global", "local-m", "local-p"))
    ),
    Pair("luong", DIM, 1, feed=False, backwards=True),
]  # fmt: skip
IDS = ["-".join(map(str, (p.kind, p.score, p.where, p.feed))) for p in KINDS]


def made(plan: Pair, seed: int = 0) -> Seq2Seq:
    model = initialise(Seq2Seq(plan, VOCAB), seed, Init(std=0.6, out="plain")).double()
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return model


def pairs(seed: int = 0, count: int = 3) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    size = lambda: int(torch.randint(1, 8, (), generator=g))
    return [tuple(torch.randint(VOCAB, (size(),), generator=g) for _ in "ab") for _ in range(count)]  # type: ignore[misc]


def hidden(model: Seq2Seq, batch: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Return the target side of each pair."""
    flat = [t for pair in batch for t in pair]
    out = model(torch.cat(flat), Packed([len(t) for t in flat]))
    cuts = [0, *accumulate(len(t) for t in flat)]
    assert all(not out[cuts[i] : cuts[i + 1]].any() for i in range(0, len(flat), 2))
    return [out[cuts[i] : cuts[i + 1]] for i in range(1, len(flat), 2)]


def lstm(w: nn.LSTM | nn.LSTMCell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Hochreiter's cell by its equations; gates i, f, g, o."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    wx, wh, bx, bh = (getattr(w, n, None) if hasattr(w, n) else getattr(w, f"{n}_l0") for n in names)
    i, f, g, o = (wx @ x + bx + wh @ h + bh).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru(cell: nn.Module, x: Tensor, s: Tensor, c: Tensor | None = None) -> Tensor:
    """Bahdanau 2014, appendix A.1.1, each gate by itself."""
    p = dict(cell.named_parameters())
    rows = lambda name, k: p[name][k * DIM : (k + 1) * DIM]

    def gate(k: int, state: Tensor, u: Tensor) -> Tensor:
        y = rows("x.weight", k) @ x + rows("x.bias", k) + u @ state
        return y if c is None else y + rows("c.weight", k) @ c

    z = torch.sigmoid(gate(0, s, rows("gates.weight", 0)))
    r = torch.sigmoid(gate(1, s, rows("gates.weight", 1)))
    new = torch.tanh(gate(2, r * s, p["new.weight"]))
    return (1 - z) * s + z * new


def read_stack(model: Seq2Seq, source: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    back = model.plan.kind == "sutskever" or model.plan.backwards
    xs = [model.source.token.weight[i] for i in (source.flip(0) if back else source).tolist()]
    last = []
    for layer in model.reader.layers:  # type: ignore[union-attr]
        h = c = torch.zeros(DIM, dtype=torch.float64)
        out = []
        for x in xs:
            h, c = lstm(layer, x, h, c)
            out.append(h)
        xs, last = out, [*last, (h, c)]
    return torch.stack(xs[::-1] if back else xs), last


def weigh(align: Multiplicative, h: Tensor, states: Tensor, t: int) -> Tensor:
    """Luong 2015, equations 7 to 10, place by place."""
    p, size = dict(align.named_parameters()), len(states)

    def score(s: Tensor) -> float:
        if align.kind == "dot":
            return float(h @ s)
        if align.kind == "general":
            return float(h @ p["w.weight"] @ s)
        return float(p["v.weight"][0] @ torch.tanh(p["pair.weight"] @ torch.cat([h, s])))

    centre: float | None = None
    if align.where == "local-m":
        centre = min(t, size - 1)
    if align.where == "local-p":
        centre = min(size - 1, size / (1 + math.exp(-float(p["point.weight"][0] @ torch.tanh(p["place.weight"] @ h)))))
    exps = [
        math.exp(score(s)) if centre is None or abs(i - centre) <= align.reach else 0.0 for i, s in enumerate(states)
    ]
    weights = [e / sum(exps) for e in exps]
    if align.where == "local-p":
        weights = [w * math.exp(-((i - centre) ** 2) / (2 * (align.reach / 2) ** 2)) for i, w in enumerate(weights)]
    return torch.tensor(weights, dtype=torch.float64)


def by_hand(model: Seq2Seq, source: Tensor, target: Tensor) -> Tensor:
    ys = [model.target.token.weight[i] for i in target.tolist()]
    if model.plan.kind == "bahdanau":
        return bahdanau(model, source, ys)
    states, last = read_stack(model, source)
    fed, out = torch.zeros(DIM, dtype=torch.float64), []
    writer = model.writer
    for t, y in enumerate(ys):
        x = torch.cat([y, fed]) if model.plan.kind == "luong" and model.plan.feed else y
        for i, cell in enumerate(writer.cells):  # type: ignore[union-attr, arg-type]
            h, c = lstm(cell, x, *last[i])
            last[i], x = (h, c), h
        if model.plan.kind == "luong":
            seen = weigh(writer.align, x, states, t) @ states  # type: ignore[union-attr, arg-type]
            x = fed = torch.tanh(writer.out.weight @ torch.cat([seen, x]))  # type: ignore[union-attr]
        out.append(x)
    return torch.stack(out)


def bahdanau(model: Seq2Seq, source: Tensor, ys: list[Tensor]) -> Tensor:
    reader, writer = model.reader, model.writer
    xs = [model.source.token.weight[i] for i in source.tolist()]
    s, right = torch.zeros(DIM, dtype=torch.float64), []
    for x in xs:
        s = gru(reader.right, x, s)  # type: ignore[arg-type]
        right.append(s)
    s, left = torch.zeros(DIM, dtype=torch.float64), []
    for x in xs[::-1]:
        s = gru(reader.left, x, s)  # type: ignore[arg-type]
        left.insert(0, s)
    notes = torch.stack([torch.cat(pair) for pair in zip(right, left, strict=True)])
    s, out = torch.tanh(reader.begin.weight @ left[0]), []  # type: ignore[union-attr]
    align, read = writer.align, writer.read
    for y in ys:
        e = [align.v.weight[0] @ torch.tanh(align.query.weight @ s + align.memory.weight @ h) for h in notes]  # type: ignore[union-attr]
        c = torch.stack(e).softmax(0) @ notes
        t = read.weight @ torch.cat([s, y, c]) + read.bias  # type: ignore[union-attr]
        out.append(torch.stack([torch.maximum(t[2 * i], t[2 * i + 1]) for i in range(DIM)]))
        s = gru(writer.cell, y, s, c)  # type: ignore[arg-type]
    return torch.stack(out)


@pytest.mark.parity
@pytest.mark.parametrize("plan", KINDS, ids=IDS)
def test_it_is_the_papers(plan: Pair) -> None:
    model, batch = made(plan), pairs()
    for found, (source, target) in zip(hidden(model, batch), batch, strict=True):
        torch.testing.assert_close(found, by_hand(model, source, target), rtol=0, atol=1e-12)


@pytest.mark.parametrize("plan", KINDS, ids=IDS)
def test_pairs_do_not_see_each_other_and_words_do_not_see_what_follows(plan: Pair) -> None:
    model, batch = made(plan), pairs(1)
    for found, pair in zip(hidden(model, batch), batch, strict=True):
        torch.testing.assert_close(found, hidden(model, [pair])[0], rtol=0, atol=1e-13)
    source, target = torch.arange(6), torch.arange(7)
    changed = target.clone()
    changed[4:] += 9
    a, b = hidden(model, [(source, target)])[0], hidden(model, [(source, changed)])[0]
    assert torch.equal(a[:4], b[:4])
    assert not torch.equal(a[4:], b[4:])
    assert not torch.equal(a, hidden(model, [(source + 1, target)])[0])


@pytest.mark.parametrize("plan", KINDS, ids=IDS)
def test_every_weight_learns(plan: Pair) -> None:
    model = made(plan)
    out = hidden(model, [(torch.arange(7), torch.arange(6)), (torch.arange(7) + 7, torch.arange(9) + 3)])
    model.head(torch.cat(out)).logsumexp(1).sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


@pytest.mark.parametrize("where", ["global", "local-m", "local-p"])
def test_weights_are_where_they_should_be(where: Where) -> None:
    torch.manual_seed(0)
    align = Multiplicative(DIM, "general", where, 2)
    memory = Memory(torch.randn(2, 9, DIM), torch.tensor([9, 4]))
    for t in (0, 3, 20):
        weights = align(torch.randn(2, DIM), memory, t)
        assert not weights[1, 4:].any()
        total = weights.sum(1)
        assert (total <= 1 + 1e-6).all()
        if where != "local-p":
            torch.testing.assert_close(total, torch.ones(2))
        if where == "local-m":
            near = range(max(0, min(t, 8) - 2), min(t, 8) + 3)
            assert set(weights[0].nonzero()[:, 0].tolist()) <= set(near)


def test_the_recurrent_part_of_sutskevers_is_64_million() -> None:
    with torch.device("meta"):
        model = Seq2Seq(Pair("sutskever", 1000, 4), 100)
    parts = [n for n, _ in model.named_parameters() if n.startswith(("reader", "writer"))]
    weights = sum(model.get_parameter(n).numel() for n in parts if "weight" in n)
    assert weights == 64_000_000  # "of which 64M are pure recurrent connections", section 3.4


def test_writing_follows_the_model() -> None:
    model, source = made(Pair("luong", DIM, 2), 3), torch.arange(5)
    ids, looks = model.write(source, 0, 1, 6)
    assert looks is not None
    assert looks.shape == (len(ids), 5)
    greedy = [0]
    for _ in range(6):
        greedy.append(int(model.head(hidden(model, [(source, torch.tensor(greedy))])[0][-1:])[0].argmax()))
        if greedy[-1] == 1:
            break
    assert ids == greedy[1:]
    assert made(Pair("sutskever", DIM, 1)).write(source, 0, 1, 4)[1] is None


def test_a_wide_beam_finds_the_best_of_all() -> None:
    model, source = made(Pair("luong", DIM, 1), 5), torch.arange(4)

    def value(ids: tuple[int, ...]) -> float:
        out = model.head(hidden(model, [(source, torch.tensor([0, *ids[:-1]]))])[0]).log_softmax(1)
        return float(out[torch.arange(len(ids)), list(ids)].sum()) / len(ids)

    every = [(*ids, 1) for n in range(2) for ids in product([i for i in range(VOCAB) if i != 1], repeat=n)]
    best = max(every, key=value)
    found = model.write(source, 0, 1, 2, beam=VOCAB * VOCAB)[0]
    assert tuple(found) == best


def test_noise_is_a_function_of_the_step() -> None:
    model, batch = made(replace(KINDS[3], dropout=0.4)), pairs(2)
    quiet = hidden(model, batch)[0]
    model.noise.begin(0, 7)
    a = hidden(model, batch)[0]
    model.noise.begin(0, 8)
    b = hidden(model, batch)[0]
    model.noise.begin(0, 7)
    assert torch.equal(a, hidden(model, batch)[0])
    assert not torch.equal(a, b)
    model.noise.end()
    assert torch.equal(quiet, hidden(model, batch)[0])


def test_bad_plans_are_refused() -> None:
    theirs = ({"score": "dot"}, {"where": "local-p"}, {"half": 3}, {"feed": False})  # Luong's choices, not others'
    others = [{"kind": kind} | choice for kind in ("bahdanau", "sutskever") for choice in theirs]
    for wrong in ({"dim": 0}, {"depth": 0}, {"dropout": 1.0}, {"kind": "bahdanau", "depth": 3}, *others):
        with pytest.raises(TerakoyaError, match=r"pairs\."):
            Pair(**wrong)
