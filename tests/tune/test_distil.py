"""Distillation and reward models: the formulas by hand, and files that others open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from terakoya.train.run import Run, read_lines
from terakoya.train.step import gradients
from terakoya.tune import distil
from terakoya.tune.distil import Distilled, objective
from terakoya.tune.methods import Distil, Gkd
from terakoya.tune.onpolicy import Corrected, Shown, jensen_shannon
from terakoya.tune.pack import laid
from terakoya.tune.recipe import Tune, assign
from terakoya.tune.reward import open_reward, read_to_the_end, rewards
from terakoya.tune.rollout import Rollout
from terakoya.tune.samples import answer
from terakoya.tune.score import answers
from terakoya.zoo.convert import Loaded
from tests.tune.test_run import finished, recipe, tuner
from tests.tune.test_silent import adapted, grads
from tests.tune.tune_fakes import jsonl, lessons, messages, small, tokenizer


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_with_every_token_kept_it_is_the_whole_kl(temperature: float, tmp_path: Path) -> None:
    tok, teacher = tokenizer(), small(5)
    plan = Distil(top=tok.vocab_size, temperature=temperature, share=0.7)
    made = assign(Tune(), [f"data.source={jsonl(tmp_path / 'a.jsonl', lessons())}", "rows.count=2"])
    work = Distilled(made, plan, tok, Loaded(teacher, tok, ""), tmp_path, "cpu")
    batch, model = work.batch(1), adapted()
    loss, weight, metrics = gradients(model, [batch], objective(plan))
    split = adapted()
    again, _, _ = gradients(split, batch.split(2), objective(plan))
    assert abs(loss - again) < 1e-6
    rival = adapted()
    ctx = Packed(batch.cu.diff().tolist())
    counted = batch.weights != 0
    q = rival.head(rival(batch.tokens, ctx))[counted]
    p = (teacher.head(teacher(batch.tokens, ctx))[counted] / temperature).log_softmax(-1).detach()
    kl = (p.exp() * (p - (q / temperature).log_softmax(-1))).sum(-1)
    ce = torch.nn.functional.cross_entropy(q, batch.targets[counted], reduction="none")
    want = (0.7 * temperature**2 * kl + 0.3 * ce).sum() / weight
    want.backward()
    assert loss == pytest.approx(want.item(), abs=1e-5)
    assert metrics["teacher_kl"] == pytest.approx(kl.sum().item(), rel=1e-4)
    assert (grads(model) - grads(rival)).abs().max() <= 2e-6 * max(1.0, grads(rival).abs().max().item())


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    from terakoya.tokenizer import train

    tok = tokenizer()
    made = assign(Tune(), [f"data.source={jsonl(tmp_path / 'a.jsonl', lessons())}"])
    other = Loaded(small(), train(["abc"], "bytes", 260), "")
    with pytest.raises(TerakoyaError, match="another vocabulary"):
        Distilled(made, Distil(), tok, other, tmp_path, "cpu")
    with pytest.raises(TerakoyaError, match=r"method\.top: 999 .*at most the teacher's vocabulary"):
        Distilled(made, Distil(top=999), tok, Loaded(small(), tok, ""), tmp_path, "cpu")


def test_what_the_teacher_said_is_not_taken_for_other_examples(tmp_path: Path) -> None:
    tok, teacher = tokenizer(), small(5)
    path = tmp_path / "a.jsonl"
    made = assign(Tune(), [f"data.source={jsonl(path, lessons())}", "rows.count=2"])
    top = Distilled(made, Distil(), tok, Loaded(teacher, tok, ""), tmp_path, "cpu").top
    again = Distilled(made, Distil(), tok, Loaded(teacher, tok, ""), tmp_path, "cpu").top
    assert all(torch.equal(x, y) for a, b in zip(top, again, strict=True) for x, y in zip(a, b, strict=True))
    path.write_text(path.read_text(encoding="utf-8").replace("です", "だす"), encoding="utf-8")  # as many tokens
    with pytest.raises(TerakoyaError, match="was made of other examples"):
        Distilled(made, Distil(), tok, Loaded(teacher, tok, ""), tmp_path, "cpu")


@pytest.mark.parametrize("method", ["sft", "distil", "gkd"])
def test_bits_per_byte_are_said_of_likelihoods_alone(method: str, tmp_path: Path) -> None:
    run = finished(tmp_path / "run", recipe(tmp_path, f"method={method}", "budget.steps=2", "show.count=0"))
    rows = list(read_lines(run / "metrics.jsonl"))
    assert all(("bits_per_byte" in row) == (method == "sft") for row in rows)


def test_a_reward_model_opens_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    asked = recipe(tmp_path, "method=reward", "budget.steps=20")
    run = finished(tmp_path / "run", asked)
    after = tuner(run, asked).after()["scores"]
    assert after["heldout_accuracy"] > 0.9
    last = Run.open(run).checkpoints().latest()
    assert last is not None
    ours = open_reward(last.path / "model")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(last.path / "model").eval()
    said = read_to_the_end(answer(tokenizer(), "x", messages("3は？"), "3です。", None))
    mine = rewards(ours.model, laid([said])).item()
    with torch.no_grad():
        want = theirs(torch.tensor([said.ids[:-1]])).logits.item()
    assert mine == pytest.approx(want, abs=1e-4)
    bad = rewards(ours.model, laid([read_to_the_end(answer(tokenizer(), "x", messages("3は？"), "4 desu", None))]))
    assert mine > bad.item()


def test_the_teacher_may_write_the_answers_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tok, teacher, asked = tokenizer(), small(5), []

    def answered(model: Model, _: Tokenizer, prompts: list[list[int]], *args: object, **more: object) -> Any:
        assert model is teacher
        asked.extend(prompts)
        return [[Rollout((1,), (0.0,), f"答え{i}", i % 4 != 0)] for i in range(len(prompts))]

    monkeypatch.setattr(distil, "drawn", answered)
    made = assign(Tune(), [f"data.source={jsonl(tmp_path / 'a.jsonl', lessons())}", "rows.count=2"])
    plan = Distil(words="teacher", share=0.0)
    for _ in range(2):  # the second time from what was kept
        work = Distilled(made, plan, tok, Loaded(teacher, tok, ""), tmp_path, "cpu")
        texts = [tok.decode(s.ids) for s in work.train.samples]
        assert len(texts) == sum(i % 4 != 0 for i in range(len(asked)))
        assert all("答え" in t and "です。" not in t for t in texts)
        assert "です。" in tok.decode(work.heldout.samples[0].ids)
        assert "to the end" in " ".join(work.notes)
    assert len(asked) == len(work.asked) + sum(i % 4 == 0 for i in range(len(asked)))
    model, rival = adapted(), adapted()
    batch = work.batch(0)
    loss, _, _ = gradients(model, [batch], objective(plan))  # share 0: only the teacher's words
    want, _, _ = gradients(rival, [batch], answers)
    assert loss == pytest.approx(want, abs=1e-5)
    assert (grads(model) - grads(rival)).abs().max() <= 1e-5
    with pytest.raises(TerakoyaError, match="no prompt that leaves room"):
        Distilled(made, replace(plan, tokens=600), tok, Loaded(teacher, tok, ""), tmp_path, "cpu")
    monkeypatch.setattr(distil, "drawn", lambda *a, **k: [[Rollout((1,), (0.0,), "x", False)]] * 99)
    (tmp_path / "teacher.jsonl").unlink()
    with pytest.raises(TerakoyaError, match=r"ended none|other examples"):
        Distilled(made, plan, tok, Loaded(teacher, tok, ""), tmp_path, "cpu")


@pytest.mark.parametrize("blend", [0.0, 0.3, 0.5, 1.0])
def test_divergence_is_trls(blend: float) -> None:
    """As trl's GKDTrainer.generalized_jsd_loss writes it, with kl_div of log-targets."""
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.log_softmax(torch.randn(5, 40, generator=g) * 2, -1) for _ in range(2))
    kl = torch.nn.functional.kl_div
    if blend == 0:
        want = kl(student, teacher, reduction="none", log_target=True)
    elif blend == 1:
        want = kl(teacher, student, reduction="none", log_target=True)
    else:
        beta = torch.tensor(blend)
        mixture = torch.logsumexp(torch.stack([student + torch.log1p(-beta), teacher + torch.log(beta)]), dim=0)
        want = beta * kl(mixture, teacher, reduction="none", log_target=True) + (1 - beta) * kl(
            mixture, student, reduction="none", log_target=True
        )
    assert (jensen_shannon(teacher, student, blend) - want.sum(-1)).abs().max() <= 1e-6


def test_the_student_is_corrected_where_it_goes(tmp_path: Path) -> None:
    tok, teacher, model = tokenizer(), small(5), adapted()
    made = assign(Tune(), [f"data.source={jsonl(tmp_path / 'a.jsonl', lessons())}", "rows.count=3", "rows.context=128"])
    plan = Gkd(own=1.0, tokens=5, temperature=0.8)
    work = Corrected(made, plan, model, tok, Loaded(teacher, tok, ""), "cpu")
    batch = work.batch(4)
    assert isinstance(batch, Shown)
    assert work.stats == {"own": 1.0}
    counted = int(batch.weight)
    assert 3 <= counted <= 15
    again = work.batch(4)
    assert torch.equal(batch.tokens, again.tokens)
    loss, weight, _ = gradients(model, [batch], work.objective)
    rival = adapted()
    ctx, mark = Packed(batch.cu.diff().tolist()), batch.weights != 0
    q = torch.log_softmax(rival.head(rival(batch.tokens, ctx))[mark] / 0.8, -1)
    p = torch.log_softmax(teacher.head(teacher(batch.tokens, ctx))[mark] / 0.8, -1).detach()
    want = jensen_shannon(p, q, 0.5).sum() / weight
    want.backward()
    assert loss == pytest.approx(want.item(), abs=1e-6)
    assert (grads(model) - grads(rival)).abs().max() <= 2e-6 * max(1.0, grads(rival).abs().max().item())
    parts = batch.split(3)
    split = adapted()
    assert gradients(split, parts, work.objective)[0] == pytest.approx(loss, abs=1e-6)
    given = Corrected(made, Gkd(own=0.0), model, tok, Loaded(teacher, tok, ""), "cpu").batch(4)
    assert torch.equal(given.tokens, work.train.batch(4).tokens)
