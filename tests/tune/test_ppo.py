"""PPO: its arithmetic by hand and against another road, and its answers learnt from as they were drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from terakoya.config import names
from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.train.run import read_lines
from terakoya.train.step import gradients
from terakoya.tune import adapters
from terakoya.tune.methods import Ppo
from terakoya.tune.plans import Lora
from terakoya.tune.ppo import CRITIC, Rewarded, Valued, add_critic, gae, objective, values, whitened
from terakoya.tune.recipe import assign
from terakoya.tune.reward import open_reward
from tests.tune.test_run import judge, recipe, tuner
from tests.tune.tune_fakes import folder, loud, small, tokenizer

PLAN = Ppo(tokens=6, beta=0.1)


def model(seed: int = 0) -> Model:
    made = small(seed)
    adapters.add(made, Lora(4, 8.0), seed=seed)
    add_critic(made, Lora(4, 8.0), seed)
    loud(made, seed)
    return made


def work(path: Path, made: Model, *changes: str) -> Rewarded:
    folder(path / "base")
    asked = recipe(path, "method=ppo", *changes)
    assert isinstance(asked.method, Ppo)
    return Rewarded(asked, asked.method, made, tokenizer(), open_reward(judge(path)), "cpu")


def test_gae_by_hand() -> None:
    r, v = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.2, 0.4, 0.5])
    out = gae(r, v, 0.9, 0.8)
    d = [0.9 * 0.4 - 0.2, 0.9 * 0.5 - 0.4, 1.0 - 0.5]
    assert out.tolist() == pytest.approx([d[0] + 0.72 * (d[1] + 0.72 * d[2]), d[1] + 0.72 * d[2], d[2]], abs=1e-6)
    assert gae(r, v, 1.0, 1.0).tolist() == pytest.approx(
        [0.8, 0.6, 0.5], abs=1e-6
    )  # what comes, less what was expected
    assert gae(r, v, 1.0, 0.0).tolist() == pytest.approx([0.2, 0.1, 0.5], abs=1e-6)
    w = whitened(torch.tensor([1.0, 2.0, 6.0]))
    assert (w.mean().abs() < 1e-6, w.std().item()) == (True, pytest.approx(1.0, abs=1e-5))


def test_two_adapters_and_one_base() -> None:
    made = model()
    assert adapters.names(made) == [CRITIC, "default"]
    assert all(m.active == ("default",) for m in adapters.adapted(made).values())
    learns = adapters.trained(made)
    assert {n.split(".adapters.")[1].split(".")[0] for n in learns if ".adapters." in n} == {CRITIC, "default"}
    assert {"value.weight", "value.bias"} <= set(learns)
    fresh = small()
    adapters.add(fresh, Lora(4, 8.0))
    add_critic(fresh, Lora(4, 8.0), 0)
    a, b = (adapters.parts(fresh, n)["layers.0.attn.q"].a for n in ("default", CRITIC))  # type: ignore[union-attr]
    assert not torch.equal(a, b)


def test_answers_are_scored_as_they_were_drawn(tmp_path: Path) -> None:
    made = model()
    rewarded = work(tmp_path, made)
    batch = rewarded.batch(0)
    assert (batch.scores(made, 1.0, rewarded.vocab) - batch.old).abs().max() <= 1e-6
    with adapters.only(made):
        assert torch.equal(batch.scores(made, 1.0, rewarded.vocab), batch.reference)
    assert (batch.reference - batch.old).abs().max() > 1e-2
    assert torch.equal(values(made, batch), batch.values)
    assert rewarded.batch(1) is batch  # learnt from twice
    assert not torch.equal(rewarded.batch(2).goals, batch.goals)
    stats = rewarded.stats
    assert stats["reward"] == pytest.approx(stats["score"] - 0.05 * stats["kl"] - stats["unfinished"], abs=1e-4)


def test_what_is_earned_is_the_score_less_the_way(tmp_path: Path) -> None:
    made = model()
    rewarded = work(tmp_path, made, "method.lam=1.0", "method.beta=0.3", "method.unfinished=2.0", "method.group=2")
    batch = rewarded.batch(0)
    at, ids = 0, batch.goals.tolist()
    for answer in range(len(batch.advantages)):
        mine = batch.owner == answer
        drawn, prompt = batch.goals[mine].tolist(), batch.groups[answer // 2][0]
        start = sum(p + sum(a) for p, a in batch.groups[: answer // 2])
        text = [*batch.tokens[start : start + prompt].tolist(), *drawn]
        score = rewarded.judge.scores([text]).item() - (0.0 if drawn[-1] in tokenizer().stops else 2.0)
        earned = -0.3 * (batch.old - batch.reference)[mine]
        earned[-1] += score
        want = earned.flip(0).cumsum(0).flip(0)  # gamma = lam = 1: all that is still to come
        assert torch.allclose(batch.returns[mine], want, atol=1e-4)
        at += len(drawn)
    assert at == len(ids)


def test_the_loss_is_the_papers_on_a_padded_batch(tmp_path: Path) -> None:
    """Sums over (answers, longest answer) with a mask, as trl's PPOTrainer has them."""
    batch = work(tmp_path, model(1), "method.group=2").batch(0)
    made = model(2)  # other weights than those that drew: ratios and values are clipped
    loss, weight, seen = gradients(made, [batch], objective(PLAN, tokenizer().vocab_size))
    assert 0 < seen["clipped"] < weight
    mine = {n: p.grad.clone() for n, p in adapters.trained(made).items() if p.grad is not None}
    assert mine.keys() == adapters.trained(made).keys()
    for n in (2, 4):
        split = model(2)
        again, total, _ = gradients(split, batch.split(n), objective(PLAN, tokenizer().vocab_size))
        assert (again, total) == (pytest.approx(loss, abs=1e-6), pytest.approx(weight))
        for name, p in adapters.trained(split).items():
            assert p.grad is not None
            assert (p.grad - mine[name]).abs().max() <= 2e-6 * max(1.0, mine[name].abs().max().item())

    rival = model(2)
    count, size = len(batch.advantages), int(torch.bincount(batch.owner).max())
    logp, value = batch.scores(rival, 1.0, tokenizer().vocab_size), values(rival, batch)

    def padded(x: torch.Tensor) -> torch.Tensor:
        rows = [x[batch.owner == i] for i in range(count)]
        return torch.stack([torch.nn.functional.pad(r, (0, size - len(r))) for r in rows])

    mask = padded(torch.ones(len(batch.goals)))
    new, old, gain, v, v0, ret = map(padded, (logp, batch.old, batch.gains, value, batch.values, batch.returns))
    ratio = torch.exp(new - old)
    pg = torch.max(-gain * ratio, -gain * torch.clamp(ratio, 1.0 - PLAN.clip, 1.0 + PLAN.clip))
    clipped = torch.clamp(v, v0 - PLAN.value_clip, v0 + PLAN.value_clip)
    vf = 0.5 * torch.max(torch.square(v - ret), torch.square(clipped - ret))
    want = ((pg + PLAN.value_share * vf) * mask).sum() / mask.sum()
    want.backward()
    assert loss == pytest.approx(want.item(), abs=1e-6)
    for name, p in adapters.trained(rival).items():
        assert p.grad is not None
        assert (p.grad - mine[name]).abs().max() <= 2e-6 * max(1.0, mine[name].abs().max().item())


def test_what_it_keeps_comes_back(tmp_path: Path) -> None:
    made = model()
    first, second = work(tmp_path, made), work(tmp_path, made)
    assert first.state() == {}
    batch = first.batch(2)
    second.restore({n: t.clone() for n, t in first.state().items()})
    assert second.stats == first.stats
    again = second.batch(3)
    assert isinstance(again, Valued)
    for name in names(Valued):
        a, b = getattr(batch, name), getattr(again, name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_it_raises_the_score_near_the_base(tmp_path: Path) -> None:
    """From answers all alike to a model that knows nothing; means of 32 answers, their deviation about 0.25."""
    folder(tmp_path / "base")
    asked = recipe(tmp_path, "method=ppo", "budget.steps=48", "rows.count=8", "method.group=4", "method.tokens=6",
                   "method.unfinished=0", "method.beta=0.02", "keep.save=0", "keep.evaluate=0", "show.count=0",
                   "data.holdout=0.4")  # fmt: skip
    made = tuner(tmp_path / "run", asked)
    assert made.look(None)["heldout_kl"] == pytest.approx(0, abs=1e-4)
    assert made.train()
    rows = list(read_lines(tmp_path / "run" / "metrics.jsonl"))
    last = rows[-16::2]
    assert sum(r["score"] for r in last) / len(last) > rows[0]["score"] + 0.7
    assert all(0 < r["kl"] < 10 for r in last)
    assert {"score", "reward", "kl", "entropy", "length", "unfinished", "value_loss", "clipped"} <= rows[0].keys()


def test_what_it_cannot_do_without_is_named(tmp_path: Path) -> None:
    folder(tmp_path / "base")
    for change, word in (("adapter=none", "under an adapter"), ("recompute=true", "share their blocks")):
        asked = assign(recipe(tmp_path, "method=ppo"), [change])
        with pytest.raises(TerakoyaError, match=word):
            tuner(tmp_path / word, asked)
    with pytest.raises(TerakoyaError, match=r"method\.gamma"):
        Ppo(gamma=1.5)
