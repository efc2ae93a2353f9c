"""Objectives in real runs: the recipe says them, resuming is bit-exact, and what lies beside the model is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from terakoya import config
from terakoya.errors import TerakoyaError
from terakoya.train.recipe import Budget, Recipe, assign, load
from terakoya.train.run import read_lines
from terakoya.zoo import lineage
from tests.train.run_fakes import corpus, everything, tiny, trainer

DECODERS = ("prefix", "permute", "spans", "ul2", "bart", "fim", "mtp")
ENCODERS = ("mlm", "nsp", "sop", "rtd", "contrast")

CASES = (
    *((kind, "smollm2") for kind in DECODERS), *((kind, "bert") for kind in ENCODERS), ("rtd", "electra"),
    ("bart", "bart"),
)  # fmt: skip
SMALL = ("tokenizer.size=420", "rows.context=24", "budget.steps=4", "keep.save=2", "keep.evaluate=0")


def asked(source: Path, kind: str, family: str = "smollm2") -> Recipe:
    marks = ["objective.sentinels=16"] if kind in ("spans", "ul2") else []
    changes = [f"objective.kind={kind}", *marks, *SMALL]
    if family == "smollm2":
        return tiny(source, *changes)
    s = lineage.rescale(lineage.base(family), 32, 2, 8)
    rows = ["rows.count=4", "corpus.holdout=0.1", "device=cpu", f"corpus.source={source}"]
    return assign(Recipe(model=s, family=family, budget=Budget(steps=4)), [*rows, *changes])


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_a_run_that_was_cut_in_two_is_the_run(tmp_path: Path, kind: str, family: str) -> None:
    source = corpus(tmp_path / "texts")
    recipe = asked(source, kind, family)
    assert config.load(Recipe, config.dump(recipe)) == recipe
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert trainer(whole, recipe).train()
    first = trainer(parts, recipe)
    watched = []

    def stop(seen) -> None:
        watched.append(seen)
        first._stop = seen.step == 2

    assert not first.train(stop)
    second = trainer(parts, recipe)
    assert second.start == 2
    assert second.train()
    assert everything(whole) == everything(parts)
    last = list(read_lines(whole / "metrics.jsonl"))[-1]
    assert last["heldout_loss"] > 0
    assert ("heldout_bits_per_byte" in last) == (kind in ("fim", "mtp"))
    assert "bits_per_byte" not in last


def test_what_lies_beside_the_model_is_kept_apart(tmp_path: Path) -> None:
    recipe = asked(corpus(tmp_path / "texts"), "mtp")
    made = trainer(tmp_path / "run", recipe)
    made.train()
    checkpoint = made.run.checkpoints().latest()
    assert checkpoint is not None
    assert any(name.startswith("extra.") for name in checkpoint.tensors("extra"))
    assert not any("extra" in name for name in checkpoint.tensors("model/model"))


def test_bad_recipes_are_told(tmp_path: Path) -> None:
    source = corpus(tmp_path / "texts")
    with pytest.raises(TerakoyaError, match="cannot train this model; allowed: encoder"):
        trainer(tmp_path / "a", asked(source, "mlm"))
    with pytest.raises(TerakoyaError, match=r"objective\.kind.*mlm"):
        load_text(tmp_path, '[objective]\nkind = "mlmm"\n')
    with pytest.raises(TerakoyaError, match="share"):
        load_text(tmp_path, '[objective]\nkind = "mlm"\nshare = 1.5\n')
    with pytest.raises(TerakoyaError, match=r"rows\.micro"):
        assign(Recipe(), ["rows.micro=2", "objective.kind=contrast"])
    with pytest.raises(TerakoyaError, match=r"rows\.count"):
        assign(Recipe(), ["rows.count=1", "objective.kind=nsp"])


def load_text(folder: Path, text: str) -> Recipe:
    (folder / "r.toml").write_text(text, encoding="utf-8")
    return load(folder / "r.toml")
