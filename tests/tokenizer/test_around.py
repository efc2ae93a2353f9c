"""What a file puts round a text, against the library that applies it."""

from __future__ import annotations

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Tokenizer
from terakoya.train.objectives.signs import Signs

NAMES = ["<s>", "</s>", "[CLS]", "[SEP]", "ja_XX"]
A = {"Sequence": {"id": "A", "type_id": 0}}


def library(processor: object) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(["寺子屋の cat"], trainers.BpeTrainer(special_tokens=NAMES, initial_alphabet=alphabet))
    made.post_processor = processor
    return made


def template(single: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single, special_tokens=[(name, i) for i, name in enumerate(NAMES)])


@pytest.mark.parametrize(
    "processor",
    [
        None,
        processors.ByteLevel(),
        processors.RobertaProcessing(("</s>", 1), ("<s>", 0)),
        processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
        template("$A </s>"),
        template("$A </s> ja_XX"),
        template("[CLS] ja_XX $A [SEP]"),
        processors.Sequence([processors.ByteLevel(), template("<s> $A </s>")]),
    ],
)
def test_it_is_what_the_library_adds(processor: object) -> None:
    theirs = library(processor)
    ours = Tokenizer(json.loads(theirs.to_str()), bos=0, eos=1)
    before, after = ours.around
    for text in ("寺子屋 <s>", "", "👩🏽‍🏫 ｶﾅ"):
        plain = Tokenizer(json.loads(library(None).to_str()), bos=0, eos=1).encode(text)
        assert ours.encode(text) == plain
        if "<s>" not in text:  # the library takes that for the token
            assert [*before, *plain, *after] == theirs.encode(text).ids


def test_what_a_source_ends_with() -> None:
    made = [Tokenizer(json.loads(library(p).to_str()), eos=1) for p in (None, template("<s> $A </s>"))]
    assert [Signs(t).source for t in made] == [([], [3]), ([0], [1])]  # [SEP], or what the file says


@pytest.mark.parametrize("single", [[A, {"SpecialToken": {"id": "nowhere"}}], [{"Strange": 1}], 3])
def test_a_broken_one_is_named(single: object) -> None:
    made = json.loads(library(template("$A </s>")).to_str())
    made["post_processor"]["single"] = single
    with pytest.raises(TerakoyaError, match="post-processor"):
        Tokenizer(made, name="mine")
