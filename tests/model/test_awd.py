"""AWD-LSTM: a plain stack of torch's LSTMs when it is quiet, and its four kinds of noise one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from terakoya.errors import TerakoyaError
from terakoya.model.awd import AwdLstm, AwdPlan, Drops
from terakoya.model.build import Init, initialise
from terakoya.model.context import Memory, Packed
from terakoya.model.noise import Noise

QUIET = Drops(0, 0, 0, 0, 0)
PLAN = AwdPlan(dim=6, hidden=10, depth=3, drops=QUIET)
VOCAB = 13


def made(drops: Drops = QUIET) -> AwdLstm:
    return initialise(AwdLstm(replace(PLAN, drops=drops), VOCAB), 0, Init(std=0.5)).double()


def reference(model: AwdLstm, weights: list[Tensor] | None = None) -> list[nn.LSTM]:
    """torch's own LSTMs with the same weights, or with other hidden-to-hidden ones."""
    stack = []
    for i, ((wide, hidden), layer) in enumerate(zip(model.plan.widths(), model.layers, strict=True)):
        p, lstm = dict(layer.named_parameters()), nn.LSTM(wide, hidden).double()
        held = {"weight_ih_l0": p["x.weight"], "weight_hh_l0": weights[i] if weights else p["h.weight"],
                "bias_ih_l0": p["x.bias"], "bias_hh_l0": p["h.bias"]}  # fmt: skip
        lstm.load_state_dict({n: t.detach() for n, t in held.items()})
        stack.append(lstm)
    return stack


IDS = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 1, 1])
PIECES = (6, 4)


@pytest.mark.parity
def test_quiet_it_is_torchs_lstm() -> None:
    model = made()
    found = model(IDS, Packed(PIECES)).split(PIECES)
    for ids, have in zip(IDS.split(PIECES), found, strict=True):
        x = model.token.weight[ids]
        for lstm in reference(model):
            x = lstm(x)[0]
        torch.testing.assert_close(have, x, rtol=0, atol=1e-14)
    logits = model.head(found[0])
    torch.testing.assert_close(logits, found[0] @ model.token.weight.T + model.head.bias)


def test_one_by_one_is_at_once() -> None:
    model, memory, out = made(), Memory(), []
    for i in range(6):
        ctx = memory.step([1])
        out.append(model(IDS[i : i + 1], ctx))
        ctx.close()
    torch.testing.assert_close(torch.cat(out), model(IDS[:6], Packed([6])), rtol=0, atol=1e-13)


@pytest.mark.parity
def test_weights_are_dropped_for_the_whole_batch() -> None:
    model = made(replace(QUIET, weight=0.5))
    model.noise.begin(0, 3)
    found = model(IDS, Packed(PIECES)).split(PIECES)
    noise = Noise()
    noise.begin(0, 3)
    weights = []
    for layer in model.layers:
        w = layer.get_parameter("h.weight")
        weights.append(w * noise.mask(tuple(w.shape), 0.5, w))
    assert all(0.3 < float((w == 0).double().mean()) < 0.7 for w in weights)
    for ids, have in zip(IDS.split(PIECES), found, strict=True):
        x = model.token.weight[ids]
        for lstm in reference(model, weights):
            x = lstm(x)[0]
        torch.testing.assert_close(have, x, rtol=0, atol=1e-14)


def test_a_mask_stays_along_time_and_differs_between_texts() -> None:
    model = made(replace(QUIET, output=0.5))
    model.noise.begin(0, 1)
    plain, masked = model.states(IDS, Packed(PIECES))
    ratio = (masked / plain).split(PIECES)
    for part in ratio:
        assert torch.equal(part, part[:1].expand_as(part))
        assert set(part.unique().tolist()) <= {0.0, 2.0}
    assert not torch.equal(ratio[0][0], ratio[1][0])


def test_a_dropped_word_is_gone_wherever_it_stands() -> None:
    model = made(replace(QUIET, word=0.5))
    with torch.no_grad():
        model.token.weight.fill_(1.0)
    seen = list[Tensor]()
    model.layers[0].register_forward_hook(lambda module, given, out: seen.append(given[0]))
    model.noise.begin(0, 5)
    model(torch.arange(VOCAB).repeat(2), Packed([2 * VOCAB]))
    rows = seen[0]
    assert torch.equal(rows[:VOCAB], rows[VOCAB:])
    assert set(rows.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(rows, rows[:, :1].expand_as(rows))


def test_masks_keep_the_mean() -> None:
    noise = Noise()
    noise.begin(1, 2)
    assert float(noise.mask((100_000,), 0.65, torch.zeros(1)).mean()) == pytest.approx(1, abs=0.02)


def test_merity_counts_24_million_for_penn_treebank() -> None:
    with torch.device("meta"):
        model = AwdLstm(AwdPlan(), 10_000)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 24  # table 1: 24M


def test_bad_shares_are_refused() -> None:
    with pytest.raises(TerakoyaError, match=r"drops\.weight"):
        Drops(weight=1.0)
    with pytest.raises(TerakoyaError, match=r"awd\.hidden"):
        AwdPlan(hidden=0)
