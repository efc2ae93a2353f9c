"""A whole run: begun, killed, gone on with, ended, opened by others."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from terakoya.cli.beside import opened
from terakoya.cli.main import main
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.models import open_model
from terakoya.train.run import Run
from terakoya.tune import peft
from terakoya.tune.merge import merged
from terakoya.tune.methods import Distil, Gkd, Ppo
from terakoya.tune.recipe import Tune, assign
from terakoya.tune.reward import NAME as SCORE
from terakoya.tune.reward import add_head, open_reward
from terakoya.tune.run import Tuner, prepare
from terakoya.zoo import convert
from tests.tune.tune_fakes import folder, jsonl, lessons, small, talk, tokenizer

TINY = (
    "rows.count=4", "rows.context=128", "budget.steps=6", "keep.save=2", "keep.evaluate=2", "data.holdout=0.2",
    "show.count=2", "show.tokens=6", "device=cpu", "optim.lr=0.01",
)  # fmt: skip
METHODS = ("sft", "dpo", "ipo", "kto", "orpo", "simpo", "cpo", "reward", "distil", "gkd", "grpo", "ppo")
ON_TEXT = ("method=sft", "method=distil", "method=gkd")


def judged(count: int = 16) -> list[dict[str, Any]]:
    return [
        {"prompt": talk(f"{i}は？"), "chosen": f"{i}です。", "rejected": f"{i + 1} desu👩🏽‍🏫"} for i in range(count)
    ]


def recipe(path: Path, *changes: str) -> Tune:
    base = path / "base"
    if not base.exists():
        folder(base)
    method = next((c for c in changes if c.startswith("method=")), "method=sft")
    if method == "method=grpo":
        changes = (*changes, "data.source=two-digit-addition", "data.limit=40", "method.group=4", "method.tokens=4")
        changes = (*changes, "method.beta=0.1")
        return assign(Tune(), [*TINY, f"model={base}", *changes])
    if method == "method=ppo":
        changes = (*changes, f"method.reward={judge(path)}", "method.tokens=5", "rows.context=64")
    if method == "method=gkd":
        changes = (*changes, "method.tokens=5", "method.own=0.6")
    rows = lessons() if method in ON_TEXT else judged()
    source = jsonl(path / f"rows{len(rows)}.jsonl", rows)
    return assign(Tune(), [*TINY, f"model={base}", f"data.source={source}", *changes])


def judge(path: Path) -> Path:
    """A reward model with a random head."""
    folder_ = path / "judge"
    if not folder_.exists():
        loaded = open_model(str(path / "base"))
        add_head(loaded.model, 5)
        head = {SCORE: loaded.model.get_parameter(SCORE).detach() * 20}
        convert.save(convert.Loaded(merged(loaded.model), loaded.tokenizer, loaded.family), folder_)
        weights = {n: t.contiguous() for n, t in convert.tensors(merged(loaded.model), loaded.family).items()}
        save_file(weights | head, folder_ / "model.safetensors", metadata={"format": "pt"})
    return folder_


def tuner(run: Path, asked: Tune) -> Tuner:
    plan = asked.method
    other = open_model(asked.model) if isinstance(plan, Distil | Gkd) else None
    other = open_reward(Path(plan.reward)) if isinstance(plan, Ppo) else other
    return prepare(Run.create(run, asked), asked, open_model(asked.model), other)


def finished(run: Path, asked: Tune) -> Path:
    made = tuner(run, asked)
    made.before()
    assert made.train()
    made.after()
    return run


def files(run: Path) -> dict[str, bytes]:
    kept = [p for p in run.rglob("*") if p.is_file() and p.name not in ("timing.jsonl", "environment.json")]
    return {str(p.relative_to(run)): p.read_bytes() for p in kept}


@pytest.mark.parametrize(
    "changes",
    [(f"method={m}",) for m in METHODS]
    + [("method=reward", "adapter=none")]
    + [("adapter=dora",), ("adapter=ia3",), ("adapter=none",), ("adapter=top", "adapter.layers=1"),
       ("adapter.init=pissa", "adapter.rank=2"), ("adapter=adalora", "adapter.warmup=0.3"), ("adapter=prefix",),
       ("method=dpo", "adapter=prompt"), ("method=grpo", "adapter=ptuning"),
       ("method=ppo", "method.rounds=1", "adapter=dora"), ("rows.micro=3", "adapter.ratio=16"), ("quantise=nf4",),
       ("quantise=int8",),
       ("recompute=true", "adapter=dora")],
    ids=" ".join,
)  # fmt: skip
def test_a_run_stopped_and_resumed_is_the_same_to_the_bit(changes: tuple[str, ...], tmp_path: Path) -> None:
    asked = recipe(tmp_path, *changes)
    whole = finished(tmp_path / "whole", asked)
    part = tmp_path / "part"
    first = tuner(part, asked)
    first.before()

    def ask(seen: Any) -> None:
        if seen.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    assert not first.train(ask)
    second = tuner(part, asked)
    assert second.start == 3
    second.before()
    assert second.train()
    second.after()
    a, b = files(whole), files(part)
    assert {n for n in a if n not in b or a[n] != b[n]} <= {n for n in a if n.startswith("steps/step-00000004")}
    assert a["metrics.jsonl"] == b["metrics.jsonl"]
    rows = [json.loads(line) for line in a["metrics.jsonl"].decode().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]


def test_the_result_opens_everywhere(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    library = pytest.importorskip("peft")
    asked = recipe(tmp_path, "adapter.rank=4")
    run = finished(tmp_path / "run", asked)
    made = tuner(run, asked)
    ids = torch.tensor(tokenizer().encode("寺子屋 one two"))
    want = made.model.head(made.model(ids, Packed([len(ids)]))).detach()
    mine = open_model(str(run)).model
    torch.testing.assert_close(mine.head(mine(ids, Packed([len(ids)]))).detach(), want, atol=2e-5, rtol=1e-4)
    last = Run.open(run).checkpoints().latest()
    assert last is not None
    theirs = transformers.AutoModelForCausalLM.from_pretrained(last.path / "model").eval()
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    adapted = library.PeftModel.from_pretrained(base, str(last.path / "adapter")).eval()
    with torch.no_grad():
        for model in (theirs, adapted):
            torch.testing.assert_close(model(ids[None]).logits[0], want, atol=2e-5, rtol=1e-4)
    again = open_model(asked.model)
    peft.load(again.model, again.family, last.path / "adapter")
    torch.testing.assert_close(again.model.head(again.model(ids, Packed([len(ids)]))), want, atol=2e-5, rtol=1e-4)


def test_an_adapter_that_stays_beside_its_base_is_talked_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path / "run", recipe(tmp_path, "adapter=prompt", "adapter.tokens=3"))
    after = json.loads((run / "after.json").read_text(encoding="utf-8"))
    assert "cannot be merged" in after["unmerged"]
    assert len(after["answers"]) == 2
    with pytest.raises(TerakoyaError, match="beside its base"):
        open_model(str(run))
    loaded = opened(str(run))
    assert loaded is not None
    ids = torch.tensor(tokenizer().encode("寺子屋 one two"))
    want = tuner(run, recipe(tmp_path, "adapter=prompt", "adapter.tokens=3")).model(ids, Packed([len(ids)]))
    torch.testing.assert_close(loaded.model(ids, Packed([len(ids)])), want, atol=2e-6, rtol=1e-5)
    assert opened(str(tmp_path / "base")) is None
    main(["chat", str(run), "--ask", "いろは", "--max-tokens", "4", "--temperature", "0"])
    shown = capsys.readouterr()
    assert "PyTorch" in shown.err
    assert "いろは" in shown.out


def test_training_lowers_the_loss_and_after_is_told_from_before(tmp_path: Path) -> None:
    made = tuner(tmp_path / "run", recipe(tmp_path, "budget.steps=30"))
    before = made.before()
    assert made.train()
    after = made.after()
    assert after["scores"]["heldout_loss"] < 0.8 * before["scores"]["heldout_loss"]
    assert len(before["answers"]) == len(after["answers"]) == 2
    assert after["merge_divergence"] < 1e-8
    assert made.before() == before


def test_dpo_raises_the_margin_on_held_out_pairs(tmp_path: Path) -> None:
    made = tuner(tmp_path / "run", recipe(tmp_path, "method=dpo", "budget.steps=30", "keep.evaluate=10"))
    before = made.before()["scores"]
    assert before["heldout_margin"] == pytest.approx(0, abs=1e-4)
    assert before["heldout_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert made.train()
    after = made.after()["scores"]
    assert after["heldout_margin"] > 1
    assert after["heldout_accuracy"] > 0.9


def test_another_base_or_other_examples_are_refused(tmp_path: Path) -> None:
    asked = recipe(tmp_path)
    finished(tmp_path / "run", asked)
    jsonl(Path(asked.data.source), lessons(25))
    with pytest.raises(TerakoyaError, match="other data"):
        tuner(tmp_path / "run", asked)
    jsonl(Path(asked.data.source), lessons())
    folder(tmp_path / "base", seed=1)
    with pytest.raises(TerakoyaError, match="another base"):
        tuner(tmp_path / "run", asked)


def test_what_cannot_be_tuned_is_said_before_the_first_step(tmp_path: Path) -> None:
    for family, sort in (("bert", "encoder"), ("t5", "encoder-decoder")):
        convert.save(convert.Loaded(small(family=family), tokenizer(), family), tmp_path / family)
        with pytest.raises(TerakoyaError, match=rf"model: .*is an {sort}, .*recipes head-"):
            tuner(tmp_path / f"run-{family}", recipe(tmp_path, f"model={tmp_path / family}"))
    with pytest.raises(TerakoyaError, match=r"adapter\.tokens: 300 .*less than the model's context, 256"):
        tuner(tmp_path / "run", recipe(tmp_path, "adapter=prompt", "adapter.tokens=300"))
    convert.save(convert.Loaded(small(family="gpt2"), tokenizer(), "gpt2"), tmp_path / "gpt2")
    dora = recipe(tmp_path, f"model={tmp_path / 'gpt2'}", "adapter=dora", 'adapter.targets=["q"]')
    with pytest.raises(TerakoyaError, match="cannot be written in peft's format"):  # not after the last step
        tuner(tmp_path / "dora", dora)


def test_recipes_survive_being_written() -> None:
    from terakoya import config

    for method in METHODS:
        asked = assign(Tune(), [f"method={method}", "adapter=dora", "budget.steps=3", "data.overlong=drop"])
        assert config.load(Tune, config.dump(asked)) == asked
    for wrong in ("method.beta=0", "method=dpoo", "budget.epochs=0", "data.holdout=1", "adapter.rank=0"):
        with pytest.raises(TerakoyaError, match=wrong.split("=")[0].split(".")[0]):
            assign(assign(Tune(), ["method=dpo"]), [wrong])
