"""Packed, alone, chunked, mixed, prefix-reused, preempted and resumed: the same numbers, for every kind of model."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from terakoya.config import override
from terakoya.engine.store import BLOCK
from terakoya.model.build import Init, build, initialise
from terakoya.model.context import Context
from terakoya.model.model import Model
from terakoya.zoo import lineage
from tests.engine.engine_laws import BY, TOLERANCE, asked, empty, engine_of, furthest
from tests.model import small

VOCAB = 259


def prompts(seed: int, *lengths: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB) for _ in range(n)] for n in lengths]


class Decay(nn.Module):
    """A toy recurrent mixer: a state that fades and takes in, and a tail of the last input (a short convolution)."""

    def __init__(self, dim: int, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.inside, self.gate, self.outside = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        held, out, states, tails = ctx.state(self.layer), [], [], []
        for n, (a, b) in enumerate(zip(ctx.cu, ctx.cu[1:], strict=False)):
            s, tail = (x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])) if held is None else (held[0][n], held[1][n])
            for t in range(a, b):
                g = self.gate(x[t] + tail).sigmoid()
                s, tail = g * s + (1 - g) * self.inside(x[t]), x[t]
                out.append(self.outside(s))
            states.append(s)
            tails.append(tail)
        ctx.commit(self.layer, (torch.stack(states), torch.stack(tails)))
        return torch.stack(out)


def recurrent(model: Model, layers: list[int]) -> Model:
    """Put the toy in place of the attention of some layers."""
    for i in layers:
        toy = Decay(model.spec.dim, i)
        for n, p in toy.named_parameters():
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n) + i)) * 0.3
        model.layers[i].attn = toy  # type: ignore[assignment]
    return model


def tiny(name: str) -> Model:
    s = lineage.rescale(lineage.base(name), 32, 4, 16)
    s = override(s, {"vocab": VOCAB, "context": 128})
    return initialise(build(s), 0, Init(std=0.2))


def kinds() -> dict[str, Model]:
    found = {}
    for name, s in small.SPECS.items():
        found[name] = small.made(override(s, {"vocab": VOCAB, "context": 128}))
    found["recurrent"] = recurrent(small.made(override(small.SPECS["rope"], {"vocab": VOCAB, "context": 128})), [0, 1])
    mixed = override(small.MIXED, {"vocab": VOCAB, "context": 128})
    found["hybrid"] = recurrent(small.made(mixed), [1])
    for name in ("rwkv7", "hyena", "jamba"):
        found[name] = tiny(name)
    return found


KINDS = kinds()


@pytest.fixture(params=["auto", "torch"])
def by(request: pytest.FixtureRequest) -> Iterator[str]:
    token = BY.set(request.param)
    yield request.param
    BY.reset(token)


@pytest.mark.usefixtures("by")
@pytest.mark.parametrize("name", KINDS)
def test_whatever_happens_the_numbers_stay(name: str) -> None:
    """Mixed with others and in chunks of any size; then the same prompts again and longer ones, from the cache."""
    model, rng = KINDS[name], random.Random(name)
    for budget in (5, 32, 200):
        engine = engine_of(model, max_tokens_per_step=budget)
        texts = prompts(budget, 40, 3, 70, 17, 33)
        requests = [asked(p, rng.randrange(1, 12), n=1 + i % 2) for i, p in enumerate(texts)]
        handles = []
        for request in requests:  # they arrive while others run
            handles.append(engine.submit(request))
            for _ in range(rng.randrange(3)):
                engine.step()
        for request, handle in zip(requests, handles, strict=True):
            for done in handle.result():
                assert done.finish == "length"
                assert furthest(model, request.prompt, done) <= TOLERANCE
        empty(engine)
        again = [asked([*p, *prompts(9, 5)[0]]) for p in texts]
        for request, [done] in zip(again, engine.generate(again), strict=True):
            assert furthest(model, request.prompt, done) <= TOLERANCE
            if len(request.prompt) > 2 * BLOCK and engine.store.states is None:
                assert done.usage.cached >= len(request.prompt) - 5 - BLOCK
        if engine.store.states is not None:
            assert engine.counts.cached, "a kept state was never used"
        empty(engine)


@pytest.mark.usefixtures("by")
@pytest.mark.parametrize("name", ["rope", "mixed reach", "latent", "recurrent", "hybrid", "rwkv7", "hyena", "jamba"])
def test_preempted_and_resumed(name: str) -> None:
    model = KINDS[name]
    smallest = engine_of(model, memory_bytes=1 << 22).store
    page = smallest.bytes // max([g.pool.total for g in smallest.groups] or [1])
    budget = page * 12 if smallest.groups else 3 * smallest.bytes // smallest.states.pool.total
    engine = engine_of(model, memory_bytes=budget)
    requests = [asked(p, 30) for p in prompts(1, 30, 45, 20, 60)]
    for request, [done] in zip(requests, engine.generate(requests), strict=True):
        assert done.finish == "length"
        assert furthest(model, request.prompt, done) <= TOLERANCE
    if name in ("rope", "latent"):
        assert engine.scheduler.preemptions
    empty(engine)


@pytest.mark.parametrize("name", [n for n in lineage.families() if lineage.base(n).sort == "decoder"])
def test_every_family(name: str) -> None:
    model = tiny(name)
    engine = engine_of(model, max_tokens_per_step=24, memory_bytes=1 << 21)
    texts = prompts(3, 50, 4, 29)
    requests = [asked(p, 6, n=1 + i % 2) for i, p in enumerate([*texts, texts[0] + texts[1]])]
    for request, choices in zip(requests, engine.generate(requests), strict=True):
        for done in choices:
            assert furthest(model, request.prompt, done) <= TOLERANCE
    empty(engine)


RECURRENT = ("rnn", "lstm", "gru", "rwkv", "rwkv7", "mamba", "mamba2", "jamba", "recurrentgemma", "linear-attention",
             "retnet", "gated-deltanet", "s4", "s4d", "h3")  # fmt: skip


@pytest.mark.parametrize("name", RECURRENT)
def test_a_prompt_that_begins_alike_goes_on_from_a_kept_state(name: str) -> None:
    model = tiny(name)
    engine = engine_of(model, max_tokens_per_step=64, memory_bytes=1 << 22)
    prompt = prompts(5, 2 * BLOCK + 7)[0]
    first, second = asked(prompt, 3), asked([*prompt[: 2 * BLOCK], *prompts(6, 9)[0]], 3)
    for request in (first, second):
        [done] = next(iter(engine.generate([request])))
        assert furthest(model, request.prompt, done) <= TOLERANCE
    assert engine.counts.cached >= BLOCK
    empty(engine)
