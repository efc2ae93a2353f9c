"""Entity-aware masking: names are found, hidden with their words, and the losses are the ones computed by hand."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from terakoya.config import override
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.build import build, initialise
from terakoya.model.entities import Mentioned, Mentions
from terakoya.tokenizer import Tokenizer
from terakoya.train.objectives.entity import HIDDEN, RESERVED, Entity
from terakoya.train.objectives.mask import Mlm
from terakoya.train.objectives.rows import Rich
from terakoya.train.optim import AdamW, Optimizer
from terakoya.train.recipe import load
from terakoya.train.step import step
from terakoya.zoo import lineage
from tests.train.objective_fakes import MARKS, batch_of, some, tokenizer

NAMES = ("猫", "吾輩", "吾輩は猫", "cat", "先生")


@functools.cache
def luke() -> spec.Model:
    s = lineage.rescale(lineage.base("luke"), 32, 2, 16)
    return override(s, {"vocab": tokenizer().vocab_size, "context": 96, "entities.count": RESERVED + len(NAMES)})


def arranged(plan: Entity, texts: list[list[str]], words: Tokenizer | None = None) -> Rich:
    found = plan.task(words or tokenizer(), luke(), 7).arrange(batch_of(texts, words), 0)
    assert isinstance(found, Rich)
    return found


def test_names_are_found_the_longest_first_and_hidden_with_their_words() -> None:
    batch = arranged(Entity(NAMES, share=1.0, mlm=Mlm(share=0.01)), [["吾輩は猫である。cat"], ["何もない"]])
    assert batch["entities"].tolist() == [2, 0]
    assert batch["answer"].tolist() == [RESERVED + 2, RESERVED + 3]
    assert batch["entity"].tolist() == [HIDDEN, HIDDEN]
    spelt = np.array([len("吾輩は猫".encode()), len("cat")])
    assert batch["length"].tolist() == spelt.tolist()  # a vocabulary of bytes
    mask = tokenizer().specials["[MASK]"]
    assert (batch.tokens[batch["mentioned"]] == mask).all()
    assert (batch.weights[batch["mentioned"]] == 1).all()
    end = int(batch.cu[1])
    assert batch.weights[end - 2 : end].tolist() == [0, 0]  # the entities' own places
    shown = arranged(Entity(NAMES, share=1.0, words=False, mlm=Mlm(share=0.01)), [["吾輩は猫である。cat"]])
    assert (shown.tokens[shown["mentioned"]] == mask).sum() <= 1


def test_a_step_is_a_pure_function_and_splits_along_rows() -> None:
    task = Entity(NAMES).task(tokenizer(), luke(), 7)
    a, b = task.arrange(some(), 3), task.arrange(some(), 3)
    assert torch.equal(a.tokens, b.tokens)
    model = initialise(build(luke()), 1)
    whole = task.loss(model, a).loss
    parts = sum(task.loss(model, part).loss for part in a.split(2))
    assert torch.allclose(whole, parts, rtol=1e-5)  # type: ignore[arg-type]


def test_the_loss_is_the_sum_of_both_by_hand() -> None:
    batch = arranged(Entity(NAMES, share=1.0), [["吾輩は猫である。"], ["The cat sat."]])
    model = initialise(build(luke()), 2)
    found = Entity(NAMES, share=1.0).task(tokenizer(), luke(), 7).loss(model, batch)
    ends = batch.cu[1:].tolist()
    at = torch.tensor([ends[0] - 1, ends[1] - 1])
    owner = torch.tensor([i for i, n in enumerate(batch["length"].tolist()) for _ in range(n)])
    mentions = Mentions(at, torch.tensor([HIDDEN, HIDDEN]), batch["mentioned"], owner)
    with torch.no_grad():
        h = model(batch.tokens, Mentioned(batch.cu.diff().tolist(), None, mentions))
        assert model.entities is not None
        counted = batch.weights != 0
        words = F.cross_entropy(model.head(h[counted]), batch.targets[counted], reduction="sum")
        things = F.cross_entropy(model.entities(h[at]), torch.tensor([RESERVED + 2, RESERVED + 3]), reduction="sum")
    share = batch.weight / 2  # as many words as were hidden weigh as much as the two entities
    assert found.loss.item() == pytest.approx((words + share * things).item(), rel=1e-5)


@pytest.mark.slow
def test_samples_are_learnt_by_heart() -> None:
    texts = [[f"{chr(97 + i % 26)}{i:02} {NAMES[i % len(NAMES)]}"] for i in range(64)]
    plan = Entity(NAMES, share=0.9)
    task, model = plan.task(tokenizer(), luke(), 0), initialise(build(luke()), 0)
    batch, optimizer = task.arrange(batch_of(texts), 0), Optimizer(model, AdamW(lr=4e-3, weight_decay=0.0))
    seen = [step(model, [batch], task.loss, optimizer, factor=min(1.0, (i + 1) / 20)).loss for i in range(200)]
    assert seen[-1] < 0.1 * seen[0]


def test_bad_plans_are_errors() -> None:
    for wrong in ((), ("a", "a"), ("",)):
        with pytest.raises(TerakoyaError, match=r"objective\.names"):
            Entity(wrong)
    with pytest.raises(TerakoyaError, match="luke/nano"):
        Entity(NAMES).check(lineage.sized("bert/nano"))
    with pytest.raises(TerakoyaError, match="8 rows or more"):
        Entity(NAMES).check(override(luke(), {"entities.count": 7}))


def test_the_recipe_fits_its_model() -> None:
    recipe = load(Path(__file__).parents[2] / "recipes" / "luke-ja-nano.toml")
    recipe.objective.check(lineage.sized(str(recipe.model)))
    assert set(MARKS) >= set(recipe.objective.marks)
