"""What stands before a text: seen by every packed document, in training, memory and the engine alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from terakoya.engine.generate import complete, read
from terakoya.engine.sampling import Sampling
from terakoya.errors import TerakoyaError
from terakoya.model.build import generator
from terakoya.model.context import Memory, Packed
from terakoya.model.model import Model
from terakoya.tune import adapters, peft
from terakoya.tune.branch import Branched
from terakoya.tune.merge import merged
from terakoya.tune.plans import Ahead, Lora, Prefix, Prompt, PTuning
from terakoya.tune.rollout import drawn, rolled
from tests.tune.tune_fakes import loud, small, tokenizer

PLANS: list[Ahead] = [
    Prefix(5), Prefix(5, hidden=7), Prefix(4, init="random"), Prompt(5), Prompt(3, init="random"), PTuning(5, hidden=6),
    PTuning(4, encoder="mlp", hidden=6),
]  # fmt: skip
TOKENS = torch.arange(24) % 50


def hidden(model: Model, tokens: Tensor = TOKENS, lengths: tuple[int, ...] = (10, 14)) -> Tensor:
    return model(tokens, Packed(lengths)).detach()


def near(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("plan", [Prefix(6), Prompt(6)], ids=repr)
@pytest.mark.parametrize("family", ["smollm2", "gpt2", "bloom"])
def test_it_begins_as_words_before_every_document(plan: Ahead, family: str) -> None:
    model = small(family=family, context=64)
    words = torch.randint(model.spec.vocab, (6,), generator=generator(3, "words"))
    want = [hidden(model, torch.cat([words, p]), (6 + len(p),))[6:] for p in TOKENS.split([10, 14])]
    adapters.add(model, plan, seed=3)
    near(hidden(model), torch.cat(want))


@pytest.mark.parametrize("plan", PLANS, ids=repr)
def test_packed_alone_in_pieces_and_in_branches_it_is_the_same(plan: Ahead) -> None:
    model = small()
    plain, names = hidden(model), list(model.state_dict())
    adapters.add(model, plan)
    loud(model)
    both = hidden(model)
    assert (both - plain).abs().max() > 1e-3
    near(both, torch.cat([hidden(model, part, (len(part),)) for part in TOKENS.split([10, 14])]))
    memory, seen = Memory(2), []
    for a, b in ((0, 3), (3, 4), (4, 10)):
        ctx = memory.step([b - a, b - a])
        with torch.no_grad():
            seen.append(model(torch.cat([TOKENS[a:b], TOKENS[10 + a : 10 + b]]), ctx).unflatten(0, (2, -1)))
        ctx.close()
    assert memory.lengths == [10, 10]  # tokens alone are counted
    steps = torch.cat(seen, 1)
    near(steps[0], both[:10])
    near(steps[1], both[10:20])
    branched = model(torch.cat([TOKENS[:10], TOKENS[7:10]]), Branched([(7, (3, 3))])).detach()
    near(branched[:10], both[:10])
    near(branched[10:], both[7:10])
    with adapters.only(model):
        assert torch.equal(hidden(model), plain)
    adapters.remove(model)
    assert type(model) is Model
    assert list(model.state_dict()) == names
    assert torch.equal(hidden(model), plain)


@pytest.mark.parametrize("plan", PLANS, ids=repr)
def test_all_of_it_learns_and_nothing_else(plan: Ahead) -> None:
    model = small()
    adapters.add(model, plan)
    model(TOKENS, Packed([10, 14])).square().sum().backward()
    learns = adapters.trained(model)
    assert learns
    assert all(n.startswith("adapters.default.") for n in learns)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learns.values())
    part = adapters.virtual(model)
    again = small()
    adapters.add(again, plan)
    other = adapters.virtual(again)
    assert part is not None
    assert other is not None
    assert all(torch.equal(a, b) for a, b in zip(part.parameters(), other.parameters(), strict=True))


def test_several_stand_side_by_side_and_beside_others() -> None:
    model = small()
    plain = hidden(model)
    adapters.add(model, Prompt(3), "one", seed=1)
    adapters.add(model, Prefix(2), "two", seed=2)
    adapters.add(model, Lora(2, 4.0), "three")
    assert adapters.names(model) == ["one", "three", "two"]
    assert adapters.lead(model) == 5
    both = hidden(model)
    adapters.use(model, "two", "three")
    alone = hidden(model)
    assert (alone - both).abs().max() > 1e-4
    with adapters.only(model, "one"):
        assert adapters.lead(model) == 3
        assert (hidden(model) - alone).abs().max() > 1e-4
    adapters.use(model, "three")
    assert adapters.mergeable(model)
    assert torch.equal(hidden(model), plain)
    assert torch.equal(hidden(merged(model)), plain)
    adapters.remove(model, "one")
    adapters.use(model, "two", "three")
    assert torch.equal(hidden(model), alone)


@pytest.mark.parametrize("plan", [Prefix(5), Prompt(5), PTuning(5, hidden=6)], ids=repr)
def test_what_the_engine_draws_is_what_the_trainer_scores(plan: Ahead) -> None:
    model = small()
    adapters.add(model, plan)
    loud(model)
    prompts = [tokenizer().encode(t) for t in ("寺子屋 one", "いろは 👩🏽‍🏫")]
    groups = drawn(model, tokenizer(), prompts, [1, 2], n=3, temperature=0.9, tokens=6)
    batch = rolled(prompts, groups, torch.zeros(2, 3), 1.0)
    scores = batch.scores(model, 0.9, tokenizer().vocab_size).detach()
    assert (scores - batch.old).abs().max() <= 1e-5
    with adapters.only(model):
        assert (batch.scores(model, 0.9, tokenizer().vocab_size).detach() - batch.old).abs().max() > 1e-3
    greedy = complete(model, tokenizer(), prompts[0], Sampling(temperature=0, max_tokens=5))
    said: list[int] = []
    for _ in greedy.ids:
        said.append(int(read(model, Memory(), [*prompts[0], *said])[: tokenizer().vocab_size].argmax()))
    assert said == greedy.ids


def test_what_cannot_be_is_said_in_a_line() -> None:
    model = small(context=32)
    adapters.add(model, Prompt(20))
    with pytest.raises(TerakoyaError, match="longer than the model's context"):
        hidden(model)
    for merge in (adapters.merge, merged):
        with pytest.raises(TerakoyaError, match="cannot be merged"):
            merge(model)
    memory = Memory()
    with adapters.only(model):
        read(model, memory, [1, 2])
    with pytest.raises(TerakoyaError, match="another adapter"):
        read(model, memory, [3])
    for wrong in ((Prefix, {"tokens": 0}), (PTuning, {"hidden": 0}), (Prefix, {"hidden": -1})):
        kind: Any = wrong[0]
        with pytest.raises(TerakoyaError, match="adapter"):
            kind(**wrong[1])
    with pytest.raises(TerakoyaError, match=r"adapter\.tokens"):
        adapters.add(small(context=32), Prompt(32))
    with pytest.raises(TerakoyaError, match="keys and values"):
        adapters.add(small(family="mamba"), Prefix(4))
    assert set(peft.peft_ahead.KINDS) == {"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"}
