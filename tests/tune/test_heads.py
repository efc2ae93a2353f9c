"""Heads: rows become examples, each kind is learnt, and what is measured is what its name says."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terakoya import config, understand
from terakoya.errors import TerakoyaError
from terakoya.eval.masked import pseudo
from terakoya.model.build import Init, build, initialise
from terakoya.model.model import Model
from terakoya.train.objectives.signs import MASK
from terakoya.train.optim import AdamW, Optimizer
from terakoya.train.recipe import Rows
from terakoya.train.step import step
from terakoya.tune.heads import scores
from terakoya.tune.heads.examples import Stretch, examples
from terakoya.tune.heads.head import attach, described, head_of, open_head
from terakoya.tune.heads.kinds import Choose, Classify, Embed, Extract, Kind, Regress, Tag, Translate
from terakoya.tune.heads.reading import Overlong, Reader, offsets
from terakoya.tune.heads.rewrite import attention, rewrite
from terakoya.tune.heads.work import Headed, Source
from tests.train.objective_fakes import TEXTS, both, small, tokenizer

WORDS = ("猫", "犬", "鳥", "ﾃﾗ", "寺子屋", "tea", "👩🏽‍🏫", "本")


def rows_of(kind: Kind) -> list[dict[str, Any]]:
    """Forty rows that can be learnt: what is asked is said by one word of the text."""
    out: list[dict[str, Any]] = []
    for i in range(40):
        a, b = WORDS[i % 8], WORDS[(i * 3 + 1) % 8]
        text = f"{i}番、{a}と{b}。"
        match kind:
            case Classify():
                out.append({"premise": text, "hypothesis": a, "choices": ["x", "y"], "answer": int(a in WORDS[:4])})
            case Choose(read="apart"):  # the next word: that of the question itself is nearest at first
                out.append({"question": f"{a}はどれ", "choices": [a, WORDS[(i + 1) % 8], "無"], "answer": 1})
            case Choose():
                out.append({"question": f"{a}はどれ", "choices": [b, a, "無"], "answer": 1})
            case Regress():
                out.append({"sentence1": text, "sentence2": b, "score": float(WORDS.index(a))})
            case Tag():
                at = text.index(a)
                out.append({"text": text, "spans": [{"start": at, "end": at + len(a), "label": "名"}]})
            case Extract():
                out.append({"context": text, "question": "何と", "answers": [a]})
            case Embed():
                out.append({"sentence1": text, "sentence2": a, "score": 5.0 * (i % 2)})
            case Translate():
                out.append({"ja": a, "en": f"{WORDS.index(a)}"})
    return out


def written(folder: Path, found: Sequence[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in found), encoding="utf-8")
    return path


def model_for(kind: Kind) -> Model:
    s = both() if isinstance(kind, Translate) else small(causal=False)
    return initialise(build(s), 0, Init(std=0.1))


KINDS = (Classify(), Choose(), Choose(read="apart"), Regress(), Tag(), Extract(), Embed(), Translate())
GOAL = {"accuracy": 0.95, "spearman": 0.8, "span_f1": 0.9, "exact_match": 0.9, "chrf": 90.0}


@pytest.mark.parametrize("kind", KINDS, ids=config.kind)
def test_each_kind_is_learnt(kind: Kind, tmp_path: Path) -> None:
    path = written(tmp_path, rows_of(kind))
    data = Source(source=str(path), heldout=str(path))
    work = Headed(kind, data, Rows(count=20, context=128), tokenizer(), 0)
    model = model_for(kind)
    attach(model, work.card, 0)
    before = next(iter(work.look(model, "cpu").values()))
    optimizer = Optimizer(model, AdamW(lr=4e-3, weight_decay=0.0))
    for i in range(90):
        step(model, [work.batch(i)], work.loss, optimizer, factor=min(1.0, (i + 1) / 10, (90 - i) / 40))
    name, after = next(iter(work.look(model, "cpu").items()))
    assert after > before
    assert after >= GOAL[name], (name, before, after)


@pytest.mark.parametrize("kind", KINDS, ids=config.kind)
def test_micro_batches_change_nothing(kind: Kind, tmp_path: Path) -> None:
    work = Headed(
        kind, Source(source=str(written(tmp_path, rows_of(kind)))), Rows(count=8, context=128), tokenizer(), 0
    )
    model = model_for(kind)
    attach(model, work.card, 0)
    batch = work.batch(0)
    whole = work.loss(model, batch).loss
    parts = sum(work.loss(model, part).loss for part in batch.split(3))
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-5)
    if not isinstance(kind, Translate):
        assert batch.weight == 8
    assert torch.equal(batch.tokens, work.batch(0).tokens)


def test_classification_by_hand(tmp_path: Path) -> None:
    """A head of zeros gives each of C labels the same chance: log C an example."""
    work = Headed(Classify(), Source(source=str(written(tmp_path, rows_of(Classify())))), Rows(4, 128), tokenizer(), 0)
    model = model_for(Classify())
    head = attach(model, work.card, 0)
    with torch.no_grad():
        for p in head.parameters():
            p.zero_()
    assert math.isclose(work.loss(model, work.batch(0)).loss.item(), 4 * math.log(2), rel_tol=1e-5)


@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        (Classify(), {"text": "猫"}, "label"),
        (Classify(), {"words": "猫", "label": "x"}, "has no text"),
        (Choose(), {"question": "何", "choices": ["a"], "answer": 0}, "two or more"),
        (Choose(), {"question": "何", "choices": ["a", "b"], "answer": 2}, "0 to 1"),
        (Regress(), {"sentence1": "a", "sentence2": "b", "score": "5"}, "a number"),
        (Tag(), {"text": "猫", "spans": [{"start": 0, "end": 2, "label": "x"}]}, "start < end <= 1"),
        (Extract(), {"context": "猫がいる", "question": "何", "answers": ["犬"]}, "does not stand in the context"),
        (Translate(), {"ja": "猫"}, "en"),
    ],
)
def test_bad_rows_are_named(kind: Kind, row: dict[str, Any], said: str) -> None:
    with pytest.raises(TerakoyaError, match=said) as error:
        list(examples([("rows.jsonl:7", row)], kind))
    assert "rows.jsonl:7" in str(error.value)


def test_overlong_rows_are_an_error_or_counted(tmp_path: Path) -> None:
    found = [*rows_of(Classify()), {"text": "長" * 200, "label": "x"}, {"text": "短", "label": "y"}]
    path = str(written(tmp_path, found))
    with pytest.raises(Overlong, match="602 tokens, more than the context of 128"):
        Headed(Classify(), Source(source=path, heldout=path), Rows(8, 128), tokenizer(), 0)
    work = Headed(Classify(), Source(source=path, heldout=path, overlong="drop"), Rows(8, 128), tokenizer(), 0)
    assert len(work.dropped) == 2
    assert "2 overlong dropped" in work.notes[0]


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=40))
def test_offsets_cover_the_text(text: str) -> None:
    ids = tokenizer().encode(text)
    found = offsets(tokenizer(), ids, text, "text")
    covered = {i for a, b in found for i in range(a, b)}
    assert covered == set(range(len(text)))
    assert all(a <= b for a, b in found)


def test_examples_come_from_the_hub_as_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    written(tmp_path, rows_of(Classify()))
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    data = Source(source="hf://datasets/who/what")
    work = Headed(Classify(), data, Rows(8, 128), tokenizer(), 0)
    assert len(work.train) + len(work.heldout) == 40


def test_a_pair_is_read_between_its_marks() -> None:
    reader = Reader(tokenizer(), 64)
    signs = reader.signs
    read = reader.read(reader.encode(["ab", "c"]), "x")
    cls, sep = signs.frame
    assert read.ids.tolist() == [*cls, 97, 98, *sep, 99, *sep]
    assert read.segments.tolist() == [0, 0, 0, 0, 1, 1]
    assert read.begin == 1


# Scores


def test_scores_by_hand() -> None:
    assert scores.pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert scores.spearman([1, 2, 3, 4], [10, 100, 50, 1000]) == pytest.approx(0.8)
    assert scores.ranks([3.0, 1.0, 3.0]) == [1.5, 0.0, 1.5]
    assert scores.pearson([1, 1], [2, 3]) == 0
    assert scores.exact("寺子屋。", ["寺子屋"]) == 1
    assert scores.overlap("寺子", ["寺子屋"]) == pytest.approx(0.8)
    low, high = scores.wilson(50, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_chrf_by_hand() -> None:
    """ "abc" for "abd": 2 of 3 letters, 1 of 2 pairs, 0 of 1 triple, so both means are 7/18."""
    assert scores.chrf(["abc"], ["abd"]) == pytest.approx(100 * 7 / 18)
    assert scores.chrf(["寺子屋 で 学ぶ"], ["寺子屋で学ぶ"]) == pytest.approx(100)
    assert scores.chrf([""], ["寺"]) == 0
    # one letter too few: every n-gram said is right; of those wanted 3/4, 2/3, 1/2 and none
    precision, recall = 1.0, (3 / 4 + 2 / 3 + 1 / 2) / 3
    assert scores.chrf(["abc"], ["abcd"]) == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))


# What is kept, and what is done with it


def test_a_head_comes_back_as_it_was(tmp_path: Path) -> None:
    from terakoya.zoo.weights import save_weights

    work = Headed(Classify(), Source(source=str(written(tmp_path, rows_of(Classify())))), Rows(4, 128), tokenizer(), 0)
    model = model_for(Classify())
    head = attach(model, work.card, 3)
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "head.json").write_bytes(described(work.card))
    save_weights(tmp_path / "head", {n: p.detach() for n, p in head.named_parameters()})
    other = model_for(Classify())
    again = open_head(tmp_path / "head", other)
    assert again.card == work.card
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), head_of(other).parameters(), strict=True))
    with pytest.raises(TerakoyaError, match="has no head"):
        open_head(tmp_path, other)


def reading_of(kind: Kind, folder: Path) -> understand.Reading:
    work = Headed(kind, Source(source=str(written(folder, rows_of(kind)))), Rows(4, 128), tokenizer(), 0)
    model = model_for(kind)
    attach(model, work.card, 0)
    return understand.Reading(model, tokenizer(), work.card)


def test_every_use(tmp_path: Path) -> None:
    labels = understand.classify(reading_of(Classify(), tmp_path), [("猫がいる。", "猫"), "犬"])
    assert [len(row) for row in labels] == [2, 2]
    assert all(abs(sum(x.probability for x in row) - 1) < 1e-5 for row in labels)
    assert labels[0][0].probability >= labels[0][1].probability
    assert len(understand.rate(reading_of(Regress(), tmp_path), ["猫", ("犬", "鳥")])) == 2
    for kind in (Choose(), Choose(read="apart")):
        assert understand.choose(reading_of(kind, tmp_path), "どれ", ["猫", "犬"]) in (0, 1)
    assert understand.answer(reading_of(Extract(), tmp_path), "猫がいる。", "何が") in "猫がいる。"
    for stretch in understand.tag(reading_of(Tag(), tmp_path), "👩🏽‍🏫と猫"):
        assert 0 <= stretch.start < stretch.end <= 6
    assert len(understand.translate(reading_of(Translate(), tmp_path), ["猫", "犬犬"], max_tokens=7)) == 2
    with pytest.raises(TerakoyaError, match="another kind of head"):
        understand.rate(reading_of(Classify(), tmp_path), ["猫"])


def test_gaps_are_filled_with_text_only() -> None:
    reading = understand.Reading(model_for(Classify()), tokenizer())
    found = understand.fill(reading, f"今日は{MASK}です{MASK}", top=4)
    assert [len(gap) for gap in found] == [4, 4]
    assert all(g.text and 0 < g.probability < 1 for gap in found for g in gap)
    with pytest.raises(TerakoyaError, match="no gap"):
        understand.fill(reading, "今日は")
    with pytest.raises(TerakoyaError, match="masked"):
        understand.fill(understand.Reading(initialise(build(small()), 0), tokenizer()), MASK)


@pytest.mark.parametrize("pool", ["mean", "first", "last", "max"])
def test_a_vector_does_not_depend_on_its_neighbours(pool) -> None:
    reading = understand.Reading(model_for(Embed()), tokenizer(), pool=pool, normalise=True)
    alone = torch.cat([understand.embed(reading, [t]) for t in TEXTS])
    together = understand.embed(reading, TEXTS, batch=4)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert torch.allclose(together.norm(dim=-1), torch.ones(len(TEXTS)))


def test_pooling_is_read_from_the_folder(tmp_path: Path) -> None:
    assert understand.pooling(tmp_path) == ("mean", False)
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in parts]
    (tmp_path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (tmp_path / "1_Pooling").mkdir()
    said = {"word_embedding_dimension": 8, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(said), encoding="utf-8")
    assert understand.pooling(tmp_path) == ("first", True)
    said["pooling_mode_mean_tokens"] = True
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(TerakoyaError, match="not known here"):
        understand.pooling(tmp_path)


def test_rewriting_in_a_batch_is_rewriting_alone() -> None:
    model = model_for(Translate())
    alone = [rewrite(model, tokenizer(), [t], most=12)[0] for t in TEXTS]
    assert rewrite(model, tokenizer(), TEXTS, most=12) == alone


def test_attention_is_a_distribution_over_the_source() -> None:
    maps, read, said = attention(model_for(Translate()), tokenizer(), "猫と犬", "cats")
    assert maps.shape == (2, len(said), len(read)) == (2, 5, 10)
    assert torch.allclose(maps.sum(-1), torch.ones(2, 5), atol=1e-5)


def test_pseudo_likelihood_by_hand() -> None:
    """A model of zeros knows nothing: log V a token, whatever the window."""
    model = model_for(Classify())
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    for window in (None, 5):
        found = pseudo(model, tokenizer(), TEXTS[:2], window=window)
        assert found.tokens == sum(len(t.encode()) for t in TEXTS[:2]) == found.bytes
        assert found.nats == pytest.approx(found.tokens * math.log(model.spec.vocab), rel=1e-5)
    with pytest.raises(TerakoyaError, match="likelihood"):
        pseudo(initialise(build(small()), 0), tokenizer(), TEXTS)


def test_hidden_tokens_are_hidden() -> None:
    """The score of a token may not depend on what that token is, only on the others."""
    model = initialise(build(small(causal=False)), 0, Init(std=0.3))
    a, b = (pseudo(model, tokenizer(), [t]) for t in ("x", "y"))
    from terakoya.model.context import Packed
    from terakoya.train.objectives.signs import Signs

    signs = Signs(tokenizer())
    before, after = signs.frame
    row = torch.tensor([*before, signs.mask, *after])
    chances = torch.log_softmax(model.head(model(row, Packed([len(row)])))[1], -1)
    assert a.nats == pytest.approx(-chances[ord("x")].item(), rel=1e-5)
    assert b.nats == pytest.approx(-chances[ord("y")].item(), rel=1e-5)


def test_wrong_models_are_refused() -> None:
    card = a_card()
    with pytest.raises(TerakoyaError, match="needs an encoder–decoder"):
        attach(build(small()), replace(card, kind=Translate()), 0)
    with pytest.raises(TerakoyaError, match="encoder or a decoder"):
        attach(build(both()), card, 0)
    with pytest.raises(TerakoyaError, match="no pooler"):
        attach(build(small()), replace(card, kind=Classify(pool="pooler")), 0)


def a_card():
    from terakoya.tune.heads.head import Card

    return Card(Classify(), ("x", "y"))


def test_numbered_questions_are_read() -> None:
    row = {
        "messages": [{"role": "user", "content": "どれ？\n1. 猫\n2. 犬\n番号と答えを書いてください。"}],
        "answer": "犬",
    }
    (found,) = examples([("p", row)], Choose())
    assert found.texts == ("どれ？", "猫", "犬") and found.answer == 1


def test_examples_of_one_text_stay_on_one_side(tmp_path: Path) -> None:
    found = [{"context": f"本{i // 4}は良い", "question": f"問{i}", "answers": ["良い"]} for i in range(40)]
    work = Headed(Extract(), Source(source=str(written(tmp_path, found)), holdout=0.3), Rows(4, 128), tokenizer(), 0)
    sides = [{item.example.shared for item in side} for side in (work.train, work.heldout)]
    assert not sides[0] & sides[1]
    assert np.isclose(len(sides[1]) / 10, 0.3)


def test_pairs_that_share_a_text_stay_together(tmp_path: Path) -> None:
    """Four captions of each of twenty images, in a ring: no caption may stand on both sides."""
    found = []
    for image in range(20):
        words = [f"絵{image}の{i}" for i in range(4)]
        pairs = zip(words, words[1:] + words[:1], strict=True)
        found += [{"sentence1": a, "sentence2": b, "label": "xy"[i % 2]} for i, (a, b) in enumerate(pairs)]
    work = Headed(Classify(), Source(source=str(written(tmp_path, found)), holdout=0.3), Rows(4, 128), tokenizer(), 0)
    sides = [{t for item in side for t in item.example.texts} for side in (work.train, work.heldout)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 6 * 4


def test_stretches_are_characters(tmp_path: Path) -> None:
    (found,) = examples([("p", rows_of(Tag())[6])], Tag())
    (stretch,) = found.answer if isinstance(found.answer, tuple) else ()
    assert found.texts[0][stretch.start : stretch.end] == "👩🏽‍🏫"
    assert isinstance(stretch, Stretch)
