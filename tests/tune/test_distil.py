"""Distillation and reward models: the formulas by hand, and files that others open."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.train.run import Run
from terakoya.train.step import gradients
from terakoya.tune.distil import Distilled, objective
from terakoya.tune.methods import Distil
from terakoya.tune.pack import laid
from terakoya.tune.recipe import Tune, assign
from terakoya.tune.reward import open_reward, read_to_the_end, rewards
from terakoya.tune.samples import answer
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
