"""What a head's rows and a reading model may not be asked: one clear line each, and no number that means nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from terakoya import understand
from terakoya.config import override
from terakoya.errors import TerakoyaError
from terakoya.eval.masked import pseudo
from terakoya.eval.perplexity import score
from terakoya.model import spec
from terakoya.model.build import Init, build, initialise
from terakoya.model.context import Packed
from terakoya.model.model import Model
from terakoya.ngram.counts import count
from terakoya.ngram.model import NGram
from terakoya.train.objectives import Permute
from terakoya.train.objectives.rows import Rich
from terakoya.train.objectives.sight import guessed, ordered
from terakoya.train.objectives.signs import MASK, Signs
from terakoya.tune.heads.examples import examples
from terakoya.tune.heads.head import Card, attach
from terakoya.tune.heads.kinds import Choose, Classify, Embed, Extract, Kind, Regress, Tag
from terakoya.tune.heads.rewrite import beam, sources_of
from terakoya.tune.heads.work import card_of
from terakoya.zoo import lineage
from tests.train.objective_fakes import TEXTS, batch_of, both, small, tokenizer


def stretch(start: int, end: int) -> dict[str, Any]:
    return {"start": start, "end": end, "label": "x"}


def asked(given: Any) -> dict[str, Any]:
    return {"context": "東京", "question": "何", "answers": given}


BAD: tuple[tuple[Kind, dict[str, Any], str], ...] = (
    (Classify(), {"text": "猫"}, "label: is missing"),
    (Classify(), {"text": "", "label": "x"}, "text"),
    (Choose(), {"messages": [], "answer": "a"}, "do not begin with a question"),
    (Choose(), {"messages": ["x"], "answer": "a"}, "do not begin with a question"),
    (Choose(), {"messages": [{"role": "user"}], "answer": "a"}, "do not begin with a question"),
    (Choose(), {"messages": "どれ", "answer": "a"}, "do not begin with a question"),
    (Choose(), {"question": "何", "choices": ["a", None], "answer": 0}, "None"),
    (Choose(), {"question": "何", "choices": ["a", " "], "answer": 0}, "not blank"),
    (Choose(), {"question": "何", "choices": ["a", "b"], "answer": True}, "0 to 1"),
    (Choose(), {"question": "何", "choices": ["a", "b"]}, "answer: is missing"),
    (Regress(), {"sentence1": "a", "sentence2": "b", "score": math.nan}, "a number"),
    (Regress(), {"sentence1": "a", "sentence2": "b", "score": math.inf}, "a number"),
    (Embed(), {"sentence1": "a", "sentence2": "b", "score": -math.inf}, "a number"),
    (Tag(), {"text": "東京都", "spans": [stretch(1, 3), stretch(0, 2)]}, "overlap"),
    (Tag(), {"text": "東京都"}, "spans: is missing"),
    (Extract(), asked([""]), "not blank"),
    (Extract(), asked([3]), "not blank"),
    (Extract(), asked({"text": ["京"], "answer_start": ["x"]}), "answer_start"),
    (Extract(), asked({"text": ["京"], "answer_start": [None]}), "answer_start"),
    (Extract(), asked({"text": ["京"], "answer_start": 1}), "answer_start"),
    (Extract(), asked(None), "answers: is missing"),
)  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "said"), BAD)
def test_bad_rows_are_named(kind: Kind, row: dict[str, Any], said: str) -> None:
    with pytest.raises(TerakoyaError, match=said) as error:
        list(examples([("rows.jsonl:7", row)], kind))
    assert str(error.value).startswith("rows.jsonl:7")


def test_negative_scores_keep_their_sign() -> None:
    rows = [("p", {"sentence1": str(i), "sentence2": "b", "score": float(-i)}) for i in range(1, 4)]
    assert card_of(Embed(), list(examples(rows, Embed()))).scale == (0.0, 3.0)


def reading(model: Model) -> understand.Reading:
    return understand.Reading(model, tokenizer())


def made(s: Any) -> Model:
    return initialise(build(s), 0, Init(std=0.1))


def encoder(**changes: Any) -> Any:
    return replace(small(causal=False, **changes))


def test_gaps_of_a_table_with_spare_rows() -> None:
    """Checkpoints pad their tables: rows beyond the vocabulary are no answers."""
    found = understand.fill(reading(made(encoder(vocab=tokenizer().vocab_size + 56))), f"猫{MASK}", top=10_000)
    assert len(found[0]) == len(Signs(tokenizer()).ordinary)
    assert all(g.probability > 0 for g in found[0])


def test_bytes_that_are_no_character_have_a_name() -> None:
    texts = {g.text for g in understand.fill(reading(made(encoder())), MASK, top=10_000)[0]}
    assert "<0xE3>" in texts and "a" in texts
    assert not any("\ufffd" in text for text in texts)


def test_who_names_no_words_fills_no_gaps() -> None:
    bare = replace(encoder(), head=spec.Head(scores="nothing"))
    for s in (override(lineage.sized("electra/nano"), {"vocab": tokenizer().vocab_size}), bare):
        model = made(s)
        with pytest.raises(TerakoyaError, match="masked language model"):
            understand.fill(reading(model), MASK)
        with pytest.raises(TerakoyaError, match="names no hidden words"):
            pseudo(model, tokenizer(), TEXTS)


@pytest.mark.parametrize("top", [0, -1])
def test_no_guesses_are_no_answer(top: int) -> None:
    with pytest.raises(TerakoyaError, match="1 or more"):
        understand.fill(reading(made(encoder())), MASK, top=top)


def test_one_text_is_no_list_of_texts() -> None:
    with pytest.raises(TerakoyaError, match="a list of texts"):
        understand.embed(reading(made(encoder())), "猫と犬")


def headed(kind: Kind) -> understand.Reading:
    model = made(encoder())
    card = Card(kind, ("x", "y"))
    attach(model, card, 0)
    return understand.Reading(model, tokenizer(), card)


def test_what_a_head_cannot_be_asked() -> None:
    classify, choose, extract = headed(Classify()), headed(Choose()), headed(Extract())
    translator = reading(made(both()))
    for ask, said in (
        (lambda: understand.classify(classify, "猫犬"), "a list of texts"),
        (lambda: understand.classify(classify, [("a", "b", "c")]), "pairs of texts"),  # type: ignore[list-item]
        (lambda: understand.classify(classify, [3]), "pairs of texts"),  # type: ignore[list-item]
        (lambda: understand.rate(headed(Regress()), "猫犬"), "a list of texts"),
        (lambda: understand.choose(choose, "何", []), "none to choose from"),
        (lambda: understand.choose(choose, "何", "赤青"), "a list of texts"),
        (lambda: understand.answer(extract, "", "何"), "context: is empty"),
        (lambda: understand.translate(translator, "猫"), "a list of texts"),
        (lambda: understand.translate(translator, ["猫"], width=0), "width"),
        (lambda: understand.translate(translator, ["猫"], max_tokens=0), "max_tokens"),
    ):
        with pytest.raises(TerakoyaError, match=said):
            ask()
    assert understand.classify(classify, []) == []
    assert understand.tag(headed(Tag()), "") == ()
    assert understand.translate(translator, []) == []


def test_what_is_too_long_is_not_told_of_recipes() -> None:
    with pytest.raises(TerakoyaError, match="shorten the text") as error:
        understand.embed(reading(made(encoder(context=16))), ["猫" * 20])
    assert "rows.context" not in str(error.value)


def test_an_encoder_decoder_embeds_by_its_encoder() -> None:
    model = made(both())
    with torch.no_grad():
        ids = sources_of(model, tokenizer(), ["猫"])[0]
        want = model.encode(torch.tensor(ids), [len(ids)]).hidden.mean(0)
    found = understand.embed(reading(model), ["猫", "", "犬と👩🏽‍🏫"], batch=2)
    assert torch.allclose(found[0], want, atol=1e-6)
    assert found.isfinite().all() and found.shape == (3, 48)
    assert understand.embed(reading(model), []).shape == (0, 48)
    with pytest.raises(TerakoyaError, match="encoder reads"):
        understand.embed(reading(model), ["猫" * 600])
    with pytest.raises(TerakoyaError, match="encoder reads"):
        beam(model, tokenizer(), "猫" * 600)
    with pytest.raises(TerakoyaError, match="no likelihood"):
        score(model, tokenizer(), TEXTS)


def test_counts_have_no_vectors() -> None:
    tokens = np.array(tokenizer().encode("".join(TEXTS)))
    model = NGram(count(tokens, np.array([0, len(tokens)]), tokenizer().vocab_size, 3))
    with pytest.raises(TerakoyaError, match="no vectors"):
        understand.embed(reading(model), ["猫"])


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_of_nothing_is_refused(window: int) -> None:
    with pytest.raises(TerakoyaError, match="window"):
        pseudo(made(encoder()), tokenizer(), TEXTS, window=window)
    with pytest.raises(TerakoyaError, match="window"):
        score(made(small()), tokenizer(), TEXTS, window=window)


def xlnet() -> Model:
    return made(override(lineage.rescale(lineage.base("xlnet"), 32, 2, 16), {"vocab": tokenizer().vocab_size}))


def test_xlnet_guesses_as_it_has_learnt() -> None:
    """A gap is asked of by the model's own vector and seen by nobody: what its permutation objective asks."""
    model = xlnet()
    asks = model.embed.asks
    assert asks is not None
    batch = Permute(share=0.3, span=1).task(tokenizer(), model.spec, 0).arrange(batch_of([TEXTS[:1]]), 0)
    assert isinstance(batch, Rich)
    query = batch["query"]
    ids, at = batch.tokens[~query], batch.positions[query]
    gaps = torch.zeros(len(ids), dtype=torch.bool)
    gaps[at[:1]] = True
    tokens = torch.where(gaps, Signs(tokenizer()).mask, ids)
    before = replace(batch, more=dict(batch.more))  # the same question as the objective lays it: all others come first
    rank = torch.where(query, 9, 0)
    rank[: len(ids)][gaps] = 9
    one = torch.cat([torch.arange(len(ids)), len(ids) + torch.arange(1)])
    part = replace(before, tokens=before.tokens[one], positions=torch.cat([torch.arange(len(ids)), at[:1]]),
                   cu=torch.tensor([0, len(one)], dtype=torch.int32))  # fmt: skip
    ctx = ordered(part, rank[one], query[one])
    where = torch.tensor([len(ids)])
    ctx.share("vectors", lambda: (where, asks[0].expand(1, -1)))
    with torch.no_grad():
        want = model(part.tokens, ctx)[-1]
        got = guessed(model, tokens, [len(ids)], gaps)[0]
        blind = model(tokens, Packed([len(ids)]))[gaps][0]
    assert torch.allclose(got, want, atol=1e-5)
    assert not torch.allclose(got, blind, atol=1e-3)


def test_gaps_of_xlnet_do_not_see_each_other() -> None:
    model, mask = xlnet(), Signs(tokenizer()).mask
    ids = torch.tensor([*tokenizer().encode("猫がいる")])
    gaps = torch.tensor(np.isin(np.arange(len(ids)), [2, 5]))
    with torch.no_grad():
        a = guessed(model, ids.masked_fill(gaps, mask), [len(ids)], gaps)
        b = guessed(model, ids.masked_fill(gaps, 7), [len(ids)], gaps)
        assert torch.equal(a, b)
        all_ = guessed(model, ids, [len(ids)], torch.ones_like(gaps))
    assert all_.isfinite().all()
