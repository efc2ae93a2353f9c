"""Reasoning and tool calls, cut anywhere: the same pieces."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terakoya.engine.regions import REGIONS, THINK, Call, Piece, Region, Regions, marks, opened, regions_of, whole
from tests.engine.engine_fakes import byte_tokenizer

CALL = '{"name": "天気", "arguments": {"町": "東京", "n": [1, {"x": "}"}]}}'
SAME = Call("天気", '{"町": "東京", "n": [1, {"x": "}"}]}')
NASTY = '{"name": "say", "arguments": {"t": "a </tool_call> \\" } b"}}'

SAID = Call("say", json.dumps(json.loads(NASTY)["arguments"]))


def cut(text: str, at: Sequence[int], **more) -> tuple[str, str, list[Call]]:
    parser, pieces = Regions(REGIONS, **more), []
    ends = [0, *sorted({i % (len(text) + 1) for i in at}), len(text)]
    for a, b in pairwise(ends):
        pieces += parser.push(text[a:b])
    return whole([*pieces, *parser.finish()])


CASES = [
    ("", ("", "", [])),
    (" plain\n text ", (" plain\n text ", "", [])),
    ("<think>\nhm\n</think>\n\nyes", ("yes", "hm\n", [])),
    ("\n <think>a</think>b</think>c<think>d</think>", ("\n b</think>c<think>d</think>", "a", [])),
    ("no <think>x</think>", ("no <think>x</think>", "", [])),
    ("<think>never closed </thin", ("", "never closed </thin", [])),
    ("<think></think>", ("", "", [])),
    (f"<tool_call>\n{CALL}\n</tool_call>", ("", "", [SAME])),
    (f"I look. <tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", ("I look. ", "", [SAME, SAME])),
    (f"<think>t</think><tool_call>{NASTY}</tool_call> done", ("done", "t", [SAID])),
    ("<tool_call>{bad</tool_call> x", ("<tool_call>{bad</tool_call> x", "", [])),
    ("<tool_call>{\"name\": 3}</tool_call>", ("<tool_call>{\"name\": 3}</tool_call>", "", [])),
    (f"<tool_call>{CALL}", ("", "", [SAME])),
    (f"[TOOL_CALLS][{CALL}, {CALL}]", ("", "", [SAME, SAME])),
    (f"[TOOL_CALLS] [{CALL}]", ("", "", [SAME])),
    ('<|python_tag|>{"name": "f", "parameters": {}}', ("", "", [Call("f", "{}")])),
    ("a < b <tool <tool_cal 👨‍👩‍👧", ("a < b <tool <tool_cal 👨‍👩‍👧", "", [])),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_cut_anywhere(text: str, expected: tuple[str, str, list[Call]]) -> None:
    assert cut(text, []) == expected
    assert cut(text, range(len(text))) == expected
    for i in range(len(text)):
        assert cut(text, [i]) == expected


MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", CALL, '"', "{", " ", "あ", "<", "[TOOL_CALLS]"]
WORDS = st.lists(st.sampled_from(MARKS), max_size=8)


@settings(max_examples=200, deadline=None)
@given(WORDS, st.lists(st.integers(0, 300)))
def test_cuts_change_nothing(words: list[str], at: list[int]) -> None:
    text = "".join(words)
    assert cut(text, at) == cut(text, [])


def test_nothing_is_held_back_without_need() -> None:
    parser = Regions(REGIONS)
    assert parser.push("hello") == [Piece("text", "hello")]
    assert parser.push(" <to") == [Piece("text", " ")]
    assert parser.push("m>") == [Piece("text", "<tom>")]
    assert parser.finish() == []


def test_what_the_prompt_opened() -> None:
    known = regions_of("… <think> … <tool_call> …")
    assert [r.open for r in known] == ["<think>", "<tool_call>"]
    assert opened(known, "<|im_start|>assistant\n<think>\n") is THINK
    assert opened(known, "<|im_start|>assistant\n") is None
    assert cut("hm</think> yes", [], inside=THINK) == ("yes", "hm", [])
    assert cut("hm", [1], inside=THINK) == ("", "hm", [])


def test_bare_calls() -> None:
    text = ' {"name": "f", "parameters": {"a": 1}}'
    for at in range(len(text)):
        assert cut(text, [at], bare={"f"}) == ("", "", [Call("f", '{"a": 1}')])
        assert cut(text, [at], bare={"g"}) == (text, "", [])
    assert cut("{ is a brace", [3], bare={"f"}) == ("{ is a brace", "", [])


def test_marks_are_named_for_the_engine() -> None:
    tokenizer = byte_tokenizer()
    name, id = next(iter(tokenizer.specials.items()))
    assert marks([Region("reasoning", name)], tokenizer) == {id}


def test_a_long_call_costs_no_more_per_token() -> None:
    parser, began = Regions(REGIONS), time.process_time()
    parser.push("<tool_call>")
    for _ in range(30_000):
        parser.push('{"a": 1')
    assert time.process_time() - began < 5
