"""Recurrent mixers: torch's cells, the naive definitions, packed documents and states, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from terakoya.model import spec, spec_recurrent
from terakoya.model.context import Memory, Packed
from terakoya.model.model import mixer

DIM = 24
LENGTHS = [37, 1, 70, 16, 37]


def made(s: spec.Mixer, dim: int = DIM, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """Return the mixer's module with weights that leave nothing at one or zero."""
    model = spec.Model(vocab=8, dim=dim, depth=1, context=4096, blocks=(spec.Block(()),))
    module = mixer(s, model, 0).to(dtype)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=rng, dtype=dtype))
    return module


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CELLS = {
    "rnn": (spec_recurrent.RNN(), nn.RNN(DIM, DIM, batch_first=True)),
    "lstm": (spec_recurrent.LSTM(), nn.LSTM(DIM, DIM, batch_first=True)),
    "lstm-projected": (spec_recurrent.LSTM(hidden=40), nn.LSTM(DIM, 40, proj_size=DIM, batch_first=True)),
    "gru": (spec_recurrent.GRU(), nn.GRU(DIM, DIM, batch_first=True)),
}


@pytest.mark.parametrize("name", CELLS)
def test_torch_has_the_same_cell(name: str) -> None:
    s, theirs = CELLS[name]
    ours, theirs = made(s), theirs.double()
    with torch.no_grad():
        for p, q in zip(theirs.parameters(), ours.weights(), strict=True):
            p.copy_(q)
    x = noise(30, DIM)
    for run in (ours, ours.naive):
        assert torch.allclose(run(x, Packed([30])), theirs(x[None])[0][0], atol=1e-12)


MIXERS: dict[str, spec.Mixer] = {name: s for name, (s, _) in CELLS.items()}
MIXERS |= {
    "mamba": spec_recurrent.Mamba(32, 3, state=5),
    "mamba-norms": spec_recurrent.Mamba(32, 3, state=5, conv=3, norms=1e-6),
    "mamba2": spec_recurrent.Mamba2(32, 4, state=6, groups=2),
    "rwkv4": spec_recurrent.Rwkv4(40),
    "rwkv-channel": spec_recurrent.RwkvChannel(40),
    "rglru": spec_recurrent.RGLRU(32, 4, conv=4),
    "linear": spec_recurrent.LinearAttention(3),
    "retention": spec_recurrent.Retention(2, expand=2),
    "gated-delta": spec_recurrent.GatedDelta(2, 4, 6, 5, conv=4),
    "rwkv7": spec_recurrent.Rwkv7(3, 4, 4, 5, value=None),
    "rwkv7-channel": spec_recurrent.Rwkv7Channel(40),
    "s4": spec_recurrent.S4(6),
    "s4d": spec_recurrent.S4D(6),
    "h3": spec_recurrent.H3(6, taps=5),
    "hyena": spec_recurrent.Hyena(12, bands=2),
}


def gradients(run: Any, module: nn.Module, x: Tensor, ctx: Any, look: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = x.clone().requires_grad_()
    y = run(x, ctx)
    return y, list(torch.autograd.grad((y * look).sum(), [x, *module.parameters()]))


@pytest.mark.parametrize("name", MIXERS)
def test_fast_equals_naive_forward_and_backward(name: str) -> None:
    """On packed documents of many lengths."""
    module, total = made(MIXERS[name]), sum(LENGTHS)
    x, look = noise(total, DIM, seed=2), noise(total, DIM, seed=3)
    fast, slopes = gradients(module, module, x, Packed(LENGTHS), look)
    slow, wanted = gradients(module.naive, module, x, Packed(LENGTHS), look)
    assert torch.allclose(fast, slow, atol=1e-9, rtol=1e-9)
    for a, b in zip(slopes, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("name", MIXERS)
def test_it_goes_on_from_its_state(name: str) -> None:
    """Three sequences in pieces of uneven length, fast and by the definition in turn."""
    module = made(MIXERS[name])
    texts = [noise(n, DIM, seed=n) for n in (40, 90, 21)]
    with torch.no_grad():
        whole = [module(t, Packed([len(t)])) for t in texts]
        memory, done, got = Memory(3), [0, 0, 0], [[], [], []]
        for i, counts in enumerate([(1, 33, 5), (1, 1, 1), (30, 17, 3), (8, 39, 12)]):
            ctx = memory.step(list(counts))
            parts = [t[d : d + c] for t, d, c in zip(texts, done, counts, strict=True)]
            y = (module.naive if i % 2 else module)(torch.cat(parts), ctx)
            for out, part in zip(got, y.split(list(counts)), strict=True):
                out.append(part)
            ctx.close()
            done = memory.lengths
    for out, want in zip(got, whole, strict=True):
        assert torch.allclose(torch.cat(out), want, atol=1e-9)
