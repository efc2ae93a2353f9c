"""Two ways to hand a table to the Rust library: written as JSON, or as it is. They must make the same tokenizer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import rust, train
from terakoya.tokenizer.plain import vocabulary
from terakoya.tokenizer.rust import Json

TEXTS = ["寺子屋は、庶民の学校である。", "hello, world  hello", "ｶﾅ👩‍👩‍👧", "<|endoftext|> a", ""]


def table(**more: Any) -> Json:
    description = train(
        ["寺子屋の子どもたちは、読み書きを学んだ。", "hello world, hello school"], "bpe", 320
    ).description()
    return description | {"added_tokens": [], "model": description["model"] | more}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"ignore_merges": True},
        {"unk_token": "h", "fuse_unk": True},
        {"dropout": None, "continuing_subword_prefix": "", "end_of_word_suffix": None, "byte_fallback": False},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_the_same_tokenizer_either_way(more: dict[str, Any], legacy: bool) -> None:
    description = table(**more)
    merges = [m if isinstance(m, list) else m.split(" ") for m in description["model"]["merges"]]
    assert merges
    if legacy:
        description["model"]["merges"] = ["#version: 0.2", *(" ".join(m) for m in merges)]
    handed, written = rust._handed(description), rust._written(description)
    assert json.loads(handed.to_str()) == json.loads(written.to_str())
    for text in TEXTS:
        assert handed.encode(text).ids == written.encode(text).ids


@pytest.mark.parametrize("merges", [[["zz", "qq"]], [["a"]], ["a b c"], [["a", "b", "c"]], [[1, 2]], [None]], ids=repr)
def test_a_wrong_merge_is_one_line_either_way(merges: list[Any]) -> None:
    description = table(merges=merges)
    with pytest.raises(TerakoyaError, match="spoilt: was refused by the tokenizer library"):
        rust.build("spoilt", description)
    with pytest.raises(TerakoyaError, match="spoilt: was refused by the tokenizer library"):
        rust.build("spoilt", description | {"model": description["model"] | {"other": 1}})


@pytest.mark.parametrize(
    ("vocab", "problem"),
    [({"a": 0, "b": 0}, "gives id 0 to 'a' and to 'b'"), ({"a": -1}, "the id -1"), ({"a": True}, "the id True")],
)
def test_a_table_that_contradicts_itself_is_named(vocab: dict[str, Any], problem: str) -> None:
    with pytest.raises(TerakoyaError, match=problem):
        vocabulary("spoilt", {"model": {"type": "BPE", "vocab": vocab}})
