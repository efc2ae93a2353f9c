"""A vocabulary that grows: old texts keep their ids, new ones get shorter, new rows begin as means of old ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terakoya.cli.main import main
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.models import open_model
from terakoya.tokenizer import Tokenizer, train
from terakoya.tokenizer.extend import Extended, extend
from terakoya.tune import adapters
from terakoya.tune.plans import Table
from terakoya.tune.vocabulary import grown
from terakoya.zoo import convert
from terakoya.zoo.convert import Loaded
from tests.tune.tune_fakes import jsonl, small, tokenizer

ENGLISH = ["the lesson is done and the school is closed", "one and two make three", "a teacher teaches the class"] * 3
JAPANESE = [
    "寺子屋で読み書き算盤を学ぶ。",
    "寺子屋の先生は読み書きを教える。👩🏽‍🏫",
    "学ぶことは楽しい。ﾃﾗｺﾔ",
    "先生と学ぶ。",
] * 4


def base() -> Tokenizer:
    return train(ENGLISH, "bpe", 320)


def larger(pieces: int = 40) -> tuple[Tokenizer, Extended]:
    old = base()
    return old, extend(old, JAPANESE, pieces)


def flat(extended: Extended, ids: list[int]) -> list[int]:
    return [old for id in ids for old in extended.parts.get(id, (id,))]


def test_new_texts_get_shorter_and_old_ones_keep_their_ids() -> None:
    old, made = larger()
    new = made.tokenizer
    assert len(made.parts) == 40
    assert sorted(made.parts) == list(range(old.vocab_size, new.vocab_size))
    for text in ENGLISH:
        assert new.encode(text) == old.encode(text)
    for text in JAPANESE:
        assert len(new.encode(text)) < 0.6 * len(old.encode(text))
        assert new.decode(new.encode(text)) == text
    assert (new.specials, new.eos, new.template) == (old.specials, old.eos, old.template)
    for id, ids in made.parts.items():
        assert new.token_bytes(id) == b"".join(old.token_bytes(i) for i in ids)


@settings(max_examples=60, deadline=None)
@given(
    st.text(
        st.sampled_from("寺子屋で読み書き算盤を学ぶ。先生 the lesson is done ﾃﾗ👩🏽‍🏫é<|endoftext|>\n"), max_size=60
    )
)
def test_every_text_is_cut_as_before_and_then_joined(text: str) -> None:
    old, made = LARGER
    ids = made.tokenizer.encode(text)
    assert flat(made, ids) == old.encode(text)
    assert made.tokenizer.decode(ids) == text


LARGER = larger()


def test_it_is_saved_and_opened_again(tmp_path: Path) -> None:
    _, made = larger()
    made.tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert all(again.encode(t) == made.tokenizer.encode(t) for t in (*JAPANESE, *ENGLISH))


def test_what_cannot_grow_is_named() -> None:
    with pytest.raises(TerakoyaError, match="no byte-level BPE"):
        extend(tokenizer(), JAPANESE, 10)
    with pytest.raises(TerakoyaError, match="no byte-level BPE"):
        extend(train(JAPANESE, "unigram", 300), JAPANESE, 10)
    with pytest.raises(TerakoyaError, match="often enough"):
        extend(base(), ["あ"], 10, once=5)
    with pytest.raises(TerakoyaError, match="pieces"):
        extend(base(), JAPANESE, 0)


@pytest.mark.parametrize("family", ["smollm2", "gpt-neox"])  # a tied head, and one of its own
def test_rows_begin_as_means(family: str, tmp_path: Path) -> None:
    from dataclasses import replace

    from terakoya.model.build import Init, build, initialise
    from terakoya.zoo import lineage

    old, made = larger()
    s = replace(lineage.rescale(lineage.base(family), 32, 2, 8), vocab=old.vocab_size, context=64)
    loaded = Loaded(initialise(build(s), 0, Init(std=0.1)), old, family)
    new = grown(loaded, made)
    assert new.model.spec.vocab == made.tokenizer.vocab_size
    ids = torch.tensor(old.encode("the lesson is done"))
    a, b = (m.head(m(ids, Packed([len(ids)]))).detach() for m in (loaded.model, new.model))
    assert torch.equal(a, b[:, : old.vocab_size])  # old texts are read as before
    for id, parts in made.parts.items():
        assert torch.allclose(b[:, id], a[:, list(parts)].mean(1), atol=1e-5)
        mean = loaded.model.embed.token.weight[list(parts)].mean(0)
        assert torch.equal(new.model.embed.token.weight[id], mean)
    convert.save(new, tmp_path)
    again = open_model(str(tmp_path))
    assert torch.equal(again.model.embed.token.weight, new.model.embed.token.weight)
    assert again.tokenizer is not None
    assert again.tokenizer.encode(JAPANESE[0]) == made.tokenizer.encode(JAPANESE[0])


def test_the_table_learns_alone() -> None:
    model = small()
    adapters.prepare(model, Table())
    assert set(adapters.trained(model)) == {"embed.token.weight"}


def test_the_verb_prints_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = train([*ENGLISH, "<|im_start|>"], "bpe", 320)
    s = small().spec
    from dataclasses import replace

    from terakoya.model.build import Init, build, initialise

    model = initialise(build(replace(s, vocab=old.vocab_size)), 0, Init(std=0.1))
    convert.save(Loaded(model, old, "smollm2"), tmp_path / "base")
    texts = jsonl(tmp_path / "ja.jsonl", [{"text": t * 3} for t in JAPANESE])
    main(["tokenizer", "extend", str(tmp_path / "base"), str(texts), str(tmp_path / "out"), "--pieces", "20"])
    said = capsys.readouterr().out
    assert "20 pieces added" in said
    before, after = (next(row for row in said.splitlines() if f" {word} " in row) for word in ("before", "after"))
    numbers = [[float(x.replace(",", "")) for x in row.replace("│", " ").split()[1:]] for row in (before, after)]
    assert numbers[1][0] == numbers[0][0] + 20
    assert numbers[1][1] > 1.2 * numbers[0][1]
    assert open_model(str(tmp_path / "out")).spec.vocab == old.vocab_size + 20
