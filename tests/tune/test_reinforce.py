"""Reinforcement: rollouts are scored as they were drawn, losses are trl's, answers are checked by arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.train.step import gradients
from terakoya.tune import adapters, reinforce
from terakoya.tune.checks import Answer, Number
from terakoya.tune.methods import Grpo
from terakoya.tune.pack import laid
from terakoya.tune.recipe import Tune, assign
from terakoya.tune.reinforce import Trials, advantages, objective
from terakoya.tune.rollout import Rolled
from terakoya.tune.samples import Sample
from terakoya.tune.score import token_scores
from tests.tune.test_silent import adapted, grads
from tests.tune.tune_fakes import jsonl, tokenizer

CHANGES = ("method=grpo", "data.source=two-digit-addition", "data.limit=40", "method.tokens=6", "rows.count=3",
           "adapter.rank=4", "rows.context=128")  # fmt: skip


def trials(model: Model, *changes: str) -> Trials:
    recipe = assign(Tune(), [*CHANGES, *changes])
    assert isinstance(recipe.method, Grpo)
    return Trials(recipe, recipe.method, model, tokenizer(), "cpu")


def graded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell answers apart: an untrained model has none right."""
    monkeypatch.setattr(reinforce, "reward", lambda checks, answer, *_: (float(len(answer.text) % 3), False))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_trainer_scores_what_the_engine_drew(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    graded(monkeypatch)
    model = adapted()
    batch = trials(model, f"method.temperature={temperature}", "method.beta=0.1").batch(3)
    vocab = tokenizer().vocab_size
    scores = batch.scores(model, temperature, vocab)
    assert (scores - batch.old).abs().max() <= 1e-6
    assert (scores - alone(model, batch, temperature)).abs().max() <= 2e-6
    with adapters.only(model):
        assert torch.equal(batch.scores(model, temperature, vocab), batch.reference)


def alone(model: Model, batch: Rolled, temperature: float) -> torch.Tensor:
    """Score every answer by itself after its prompt, the stop token too where it was drawn."""
    out, at, answer = [], 0, 0
    for prompt, lengths in batch.groups:
        head = batch.tokens[at : at + prompt].tolist()
        for _ in lengths:
            ids = batch.goals[batch.owner == answer].tolist()
            weights = (0.0,) * prompt + (1.0,) * len(ids)
            sample = laid([Sample("", (*head, *ids), weights)])
            out.append(token_scores(model, sample, temperature=temperature, vocab=tokenizer().vocab_size))
            answer += 1
        at += prompt + sum(lengths)
    return torch.cat(out)


def test_rollouts_are_a_function_of_seed_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    graded(monkeypatch)
    model = adapted()
    a, b, c = (trials(model).batch(step) for step in (2, 2, 3))
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.old, b.old)
    assert a.tokens.shape != c.tokens.shape or not torch.equal(a.tokens, c.tokens)


def test_advantages_by_hand() -> None:
    r = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    grpo = advantages(r, Grpo())
    std = math.sqrt(1 / 3)
    assert grpo[0].tolist() == pytest.approx(
        [0.5 / (std + 1e-4), -0.5 / (std + 1e-4), -0.5 / (std + 1e-4), 0.5 / (std + 1e-4)]
    )
    assert grpo[1].tolist() == [0, 0, 0, 0]
    rloo = advantages(r, Grpo(baseline="others", scale="none"))
    assert rloo[0].tolist() == pytest.approx([1 - 1 / 3, -2 / 3, -2 / 3, 1 - 1 / 3])
    assert torch.equal(advantages(r, Grpo(baseline="none", scale="none")), r)
    for wrong in ({"scale": "group"}, {"scale": "none", "resample": 1}):
        with pytest.raises(TerakoyaError, match=r"method\.baseline"):
            Grpo(baseline="none", **wrong)


@pytest.mark.parametrize("norm", ["answer", "tokens", "most"])
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_losses_and_gradients_are_trls(
    norm: Literal["answer", "tokens", "most"], beta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As trl's GRPOTrainer writes grpo, dapo (one process) and dr_grpo, on a padded batch."""
    graded(monkeypatch)
    plan = Grpo(group=4, tokens=6, norm=norm, beta=beta)
    batch = trials(adapted(1), "method.group=4", f"method.norm={norm}", f"method.beta={beta}").batch(0)
    model = adapted(2)  # other weights than those that drew: ratios are not 1
    vocab = tokenizer().vocab_size
    loss, weight, _ = gradients(model, [batch], objective(plan, vocab))
    mine = grads(model)
    for n in (2, 3):
        parts = batch.split(n)
        split = adapted(2)
        again, total, _ = gradients(split, parts, objective(plan, vocab))
        assert total == pytest.approx(weight)
        assert again == pytest.approx(loss, abs=1e-6)
        assert (grads(split) - mine).abs().max() <= 2e-6 * max(1.0, mine.abs().max().item())

    rival = adapted(2)
    owner, count = batch.owner, len(batch.advantages)
    flat = alone(rival, batch, 1.0)
    size = int(torch.bincount(owner).max())
    mask = torch.zeros(count, size)
    rows = [[], [], []]
    for i in range(count):
        these = owner == i
        mask[i, : int(these.sum())] = 1
        for k, source in enumerate((flat, batch.old, batch.reference)):
            rows[k].append(torch.nn.functional.pad(source[these], (0, size - int(these.sum()))))
    logp, old, ref = (torch.stack(r) for r in rows)
    coef_1 = torch.exp(logp - old)
    coef_2 = torch.clamp(coef_1, 1 - 0.2, 1 + 0.2)
    token_loss = -torch.min(coef_1 * batch.advantages[:, None], coef_2 * batch.advantages[:, None])
    kl = torch.exp(ref - logp) - (ref - logp) - 1
    token_loss = token_loss + beta * kl if beta else token_loss
    want = {
        "answer": ((token_loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).sum() / batch.total,
        "tokens": (token_loss * mask).sum() / batch.total,
        "most": (token_loss * mask).sum() / batch.total,
    }[norm]
    if beta:  # every group is computed, so the totals are those of the batch itself
        assert batch.total == {"answer": count, "tokens": mask.sum().item(), "most": count * 6}[norm]
    want.backward()
    assert loss == pytest.approx(want.item(), abs=1e-6)
    assert (grads(rival) - mine).abs().max() <= 2e-6 * max(1.0, mine.abs().max().item())


def test_groups_that_teach_nothing_are_counted_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    work = trials(adapted())  # nothing is right: every group is flat
    batch = work.batch(0)
    assert work.stats["flat"] == 1.0
    assert len(batch.groups) == 1
    assert not batch.advantages.any()
    assert batch.weight > len(batch.goals)
    assert isinstance(batch, Rolled)


def test_further_questions_are_drawn_where_groups_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every four questions of this file one has answers that differ."""

    def worth(checks: object, answer: Answer, said: str, *_: object) -> tuple[float, bool]:
        return (float(len(answer.text) % 3) if int(said) % 4 == 0 else 0.0), False

    monkeypatch.setattr(reinforce, "reward", worth)
    model = adapted()
    plain, again = trials(model, "rows.count=4"), trials(model, "rows.count=4", "method.resample=8")
    first, full = plain.batch(0), again.batch(0)
    assert len(full.groups) >= max(3, len(first.groups))
    assert again.stats["tried"] % 4 == 0
    assert 4 < again.stats["tried"] <= 36
    assert torch.equal(again.batch(0).goals, full.goals), "a function of the step"
    assert again.batch(1).goals.tolist() != full.goals.tolist()
    with pytest.raises(TerakoyaError, match=r"method\.resample"):
        Grpo(resample=17)


def test_the_distance_to_the_base_is_told_though_nothing_is_paid_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    graded(monkeypatch)
    model = adapted()
    work = trials(model)
    work.batch(0)
    assert work.stats["kl"] > 1e-4
    with torch.no_grad():
        for p in adapters.trained(model).values():
            p.mul_(0)
    work.batch(0)
    assert work.stats["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("size", [3, 5, 6, 7, 8])
@pytest.mark.parametrize("worth", [0.2, 0.7, 1.2])
def test_answers_worth_the_same_teach_exactly_nothing(worth: float, size: int) -> None:
    """The mean of six times 0.2 is not 0.2, and Adam makes a step of any gradient."""
    same = torch.full((2, size), worth)
    for plan in (Grpo(), Grpo(baseline="others", scale="none")):
        assert not advantages(same, plan).any()
    assert reinforce.flat(torch.tensor([[0.2] * size, [0.2] * (size - 1) + [0.3]])).tolist() == [True, False]


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_an_unfinished_answer_that_is_left_teaches_nothing(beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    graded(monkeypatch)
    model = adapted()
    work = trials(model, "method.unfinished=leave", f"method.beta={beta}", "method.group=4")
    prompts = [work.train[i].prompt for i in range(2)]
    groups = work.rollouts(prompts, [1, 2], 4, 1.0)
    ends = [[(i + g) % 3 > 0 for i in range(4)] for g in range(2)]
    groups = [[replace(r, finished=e) for r, e in zip(*pair, strict=True)] for pair in zip(groups, ends, strict=True)]
    gain = torch.tensor([[1.0, -1.0, 0.5, -0.5]] * 2)
    batch = work._rolled(prompts, groups, gain)
    kept = [r for g in groups for r in g if r.finished]
    assert batch.goals.tolist() == [i for r in kept for i in r.ids]
    assert batch.advantages.tolist() == [a for row, e in zip(gain.tolist(), ends) for a, yes in zip(row, e) if yes]
    assert batch.weight == sum(len(r.ids) for g in groups for r in g)  # they count in what is divided by
    for part in batch.split(2):
        assert isinstance(part, Rolled)
        assert len(part.advantages) == len(part.groups[0][1])
    none = work._rolled(prompts, [[replace(r, finished=False) for r in g] for g in groups], gain)
    gradients(model, [none], work.objective)
    assert grads(model).abs().max() < 1e-6


def test_a_prompt_without_room_is_an_error_or_counted(tmp_path: Path) -> None:
    rows = [{"question": "何" * 60, "answer": "1"}, *({"question": f"{i}?", "answer": "1"} for i in range(4))]
    source = f"data.source={jsonl(tmp_path / 'q.jsonl', rows)}"
    with pytest.raises(TerakoyaError, match=r"q\.jsonl:1: asks in \d+ tokens: no room for method\.tokens = 6"):
        trials(adapted(), source)
    work = trials(adapted(), source, "data.overlong=drop")
    assert len(work.train) + len(work.heldout) == 4
    assert "1 overlong dropped" in work.notes[0]
    with pytest.raises(TerakoyaError, match=r"data\.overlong: 'truncate'"):
        trials(adapted(), source, "data.overlong=truncate")
    with pytest.raises(TerakoyaError, match=r"data\.limit: 9000 .*8,100"):
        trials(adapted(), "data.limit=9000")
    for wrong in ((0.0, 0.2), (1.5, 0.2), (0.2, -1.0), (0.2, math.inf)):
        with pytest.raises(TerakoyaError, match=r"method\.clip"):
            Grpo(clip=wrong)


def test_a_question_without_a_number_is_named(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "q.jsonl", [{"question": "?", "answer": "many"}])
    recipe = assign(Tune(), ["method=grpo", f"data.source={source}"])
    with pytest.raises(TerakoyaError, match=r"q.jsonl:1: answer"):
        list(reinforce.questions(recipe.data, (Number(),), 0))
    jsonl(tmp_path / "q.jsonl", [{"question": "?", "answer": "1" * 201}])
    with pytest.raises(TerakoyaError, match="at most 200 digits"):
        list(reinforce.questions(recipe.data, (Number(),), 0))
