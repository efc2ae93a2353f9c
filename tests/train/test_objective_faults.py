"""What an objective cannot be asked of: told before anything is trained, in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.elmo import ElmoPlan
from terakoya.model.spec_sparse import Fixed
from terakoya.train import recipe
from terakoya.train.objectives import Bart, Contrast, Distil, Mlm, Mtp, Permute, Plan, Prefix, Rtd, Spans
from terakoya.train.objectives.rows import dice
from terakoya.train.objectives.task import heedless
from terakoya.train.objectives.words import by_script
from terakoya.zoo import lineage
from tests.train.objective_fakes import TEXTS, batch_of, both, made, small, some, tokenizer

DEAF = (
    "rnn", "lstm", "gru", "mamba", "mamba2", "rwkv", "rwkv7", "retnet", "linear-attention", "gated-deltanet", "s4",
    "s4d", "h3", "hyena", "jamba", "recurrentgemma", "reformer", "sparse-transformer", "sparse-transformer-fixed",
    "mistral", "gemma2", "gpt-oss", "modernbert",
)  # fmt: skip
HEEDFUL = ("bert", "xlnet", "deberta-v3", "gpt2", "llama2", "mixtral", "deepseek-v2", "transformer-xl", "bloom")


@pytest.mark.parametrize("family", DEAF)
@pytest.mark.parametrize("plan", [Prefix(), Permute(), Spans(), Bart()])
def test_layers_that_would_not_heed_a_mask_are_refused(family: str, plan: Plan) -> None:
    s = lineage.sized(f"{family}/nano")
    assert heedless(s)
    with pytest.raises(TerakoyaError, match="mask of its own"):
        plan.check(s)


@pytest.mark.parametrize("family", HEEDFUL)
def test_plain_attention_heeds_a_mask(family: str) -> None:
    Prefix().check(lineage.sized(f"{family}/nano"))


def test_an_encoder_decoder_needs_no_mask() -> None:
    Spans().check(both())


def test_a_pattern_is_refused_at_work_too() -> None:
    attention = spec.Attention(heads=4, position=spec.Rope(), reach=Fixed(8, 2))
    s = replace(small(), blocks=(spec.pre(spec.RMSNorm(), attention),))
    task = Prefix().task(tokenizer(), s, 0)
    with pytest.raises(TerakoyaError, match="without windows"):
        task.loss(made(s, task), task.arrange(some(), 0))


def test_words_are_not_asked_of_a_model_that_scores_none() -> None:
    electra = lineage.sized("electra/nano")
    for plan in (Mlm(), Permute()):
        with pytest.raises(TerakoyaError, match="no head for them"):
            plan.check(electra)
    Rtd().check(electra)
    Contrast().check(electra)


@pytest.mark.parametrize("family", ["reformer", "transformer-xl"])
def test_a_last_layer_that_cannot_stand_alone_looks_no_further(family: str) -> None:
    with pytest.raises(TerakoyaError, match="cannot stand alone"):
        Mtp().check(lineage.sized(f"{family}/nano"))


def test_no_module_looks_beyond_its_row() -> None:
    asked = recipe.assign(recipe.Recipe(objective=Mtp(ahead=8)), ["rows.context=8"])
    with pytest.raises(TerakoyaError, match="less than the 8 tokens"):
        recipe.resolve(asked, 300)
    assert recipe.resolve(recipe.assign(asked, ["rows.context=9"]), 300)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["mask", "delete", "infill", "permute", "rotate"]), min_size=1, max_size=4),
    st.floats(0.05, 0.99), st.floats(0.3, 6), st.integers(2, 40), st.integers(0, 99),
)  # fmt: skip
def test_any_order_of_noises_leaves_a_source_that_fits(noises, share, mean, length, seed) -> None:
    plan = Bart(noises=tuple(noises), share=share, mean=mean)
    task = plan.task(tokenizer(), both(), 0)
    body = np.array(tokenizer().encode("。あ" * 40))[:length]
    source, target = task.pair(body, dice(seed))  # type: ignore[attr-defined]
    assert 3 <= len(source) <= plan.room(length, joined=False)
    assert target[:-1].tolist() == body.tolist()
    assert len(source) + len(target) - 1 <= plan.room(length, joined=True)


def test_a_text_is_never_deleted_whole() -> None:
    plan = Bart(noises=("delete", "permute", "rotate", "infill"), share=0.99)
    task = plan.task(tokenizer(), both(), 0)
    for step in range(20):
        assert task.arrange(batch_of([["あ"], TEXTS[:1]]), step).weight > 0


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"cells": 0}, "elmo.cells"), ({"dim": -1}, "elmo.dim"), ({"depth": 0}, "elmo.depth"),
        ({"filters": ()}, "elmo.filters"), ({"filters": ((0, 3),)}, "elmo.filters"), ({"clip": 0.0}, "elmo.clip"),
        ({"highways": -1}, "elmo.highways"), ({"letters": 0}, "elmo.letters"),
    ],
)  # fmt: skip
def test_sizes_of_elmo(given: dict[str, object], place: str) -> None:
    with pytest.raises(TerakoyaError, match=place):
        ElmoPlan(**given)  # type: ignore[arg-type]


def test_a_teacher_is_asked_for_before_the_text_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from terakoya.cli import train

    read: list[object] = []
    monkeypatch.setattr(train.prepare, "prepare_data", lambda *given: read.append(given))
    asked = recipe.Recipe(model="bert/nano", objective=Distil(teacher=str(tmp_path / "none")))
    with pytest.raises(TerakoyaError, match="none"):
        train.start(tmp_path / "run", asked)
    assert not read and not (tmp_path / "run").exists()


def test_a_fault_is_placed_once() -> None:
    with pytest.raises(TerakoyaError) as error:
        recipe.assign(recipe.Recipe(objective=Mlm()), ["objective.random=0.5"])
    assert str(error.value).startswith("objective.mask: ")


def test_what_changes_a_sign_stays_with_it() -> None:
    assert by_script("ハ\u3099ン") == ["ハ\u3099ン"]
    assert by_script("ﾊﾞﾝは") == ["ﾊﾞﾝ", "は"]
    assert by_script("cafe\u0301 2") == ["cafe\u0301", " 2"]
    assert by_script("葛\U000e0100城山") == ["葛\U000e0100城山"]
    assert by_script("👨‍👩‍👧👍🏽❤️🇯🇵1️⃣。") == ["👨‍👩‍👧", "👍🏽", "❤️", "🇯🇵", "1️⃣", "。"]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("あアｱﾞ\u3099漢󠄀e\u0301 1️⃣👨‍👩🏽🇯🇵。\n")))
def test_words_by_script_are_the_text(text: str) -> None:
    words = by_script(text)
    assert "".join(words) == text
    assert all(words)
