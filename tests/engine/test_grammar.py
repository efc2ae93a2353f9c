"""Answers of a given form, and schemas that are made to hurt."""

from __future__ import annotations

import json
import random
import re
import time
from typing import Any

import pytest

pytest.importorskip("llguidance", reason="needs terakoya[grammar]")

from terakoya.engine.grammar import Compiler
from terakoya.engine.request import EngineError, Request
from terakoya.engine.sampling import Sampling
from tests.engine.engine_fakes import byte_tokenizer, tiny
from tests.engine.engine_laws import asked, empty, engine_of

PROMPT = (100, 7, 200, 33, 65)
PERSON = {
    "type": "object",
    "properties": {
        "名前": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["名前", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(byte_tokenizer())


@pytest.mark.parametrize("draft", [0, 4])
def test_the_answer_has_the_form(compiler: Compiler, draft: int) -> None:
    engine = engine_of(tiny(context=256))

    def ask(grammar, seed: int) -> Request:
        return Request(PROMPT, Sampling(seed=seed, max_tokens=120), grammar=grammar, draft=draft, n=2)

    grammars = [
        compiler.json(PERSON),
        compiler.regex(r"[a-c]{3,6}-\d\d"),
        compiler.choice(["はい", "いいえ", "👨‍👩‍👧"]),
    ]
    requests = [ask(g, s) for s in range(3) for g in grammars] + [asked(PROMPT, 20)]
    found = engine.generate(requests)
    for i, choices in enumerate(found[:-1]):
        for done in choices:
            assert done.finish == "end", done
            if i % 3 == 0:
                person = json.loads(done.text)
                assert set(person) == {"名前", "age"}
                assert 0 <= person["age"] <= 150
            if i % 3 == 1:
                assert re.fullmatch(r"[a-c]{3,6}-\d\d", done.text)
            if i % 3 == 2:
                assert done.text in ("はい", "いいえ", "👨‍👩‍👧")
    assert found[-1][0].ids == engine_of(engine.model).generate([asked(PROMPT, 20)])[0][0].ids
    empty(engine)


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"x": schema}, "required": ["x"], "additionalProperties": False}
    return schema


def chained() -> dict[str, Any]:
    def step(i: int) -> dict[str, Any]:
        there = {"$ref": f"#/$defs/a{i + 1}"}
        return {"anyOf": [there, {"type": "array", "items": there}]}

    return {"$defs": {f"a{i}": step(i) for i in range(25)} | {"a25": {"type": "string"}}, "$ref": "#/$defs/a0"}


def branch(i: int) -> dict[str, Any]:
    inner = [{"type": "object", "properties": {"k": {"const": j}}, "required": ["k"]} for j in range(40)]
    return {"type": "object", "properties": {"k": {"const": i}, "v": {"oneOf": inner}}, "required": ["k"]}


BOMBS: dict[str, dict[str, Any]] = {
    "chain of references": chained(),
    "loop of references": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "a million items": {"type": "array", "items": {"type": "integer"}, "minItems": 100_000, "maxItems": 1_000_000},
    "ten million characters": {"type": "string", "minLength": 100_000, "maxLength": 10_000_000},
    "nested repeats": {"type": "string", "pattern": "^(a{1,500}){1,500}(b{1,500}){1,500}$"},
    "exponential pattern": {"type": "string", "pattern": "^.*a.{24}$"},
    "50,000 values": {"enum": [f"val{i}" for i in range(50_000)]},
    "5,000 properties": {
        "type": "object",
        "properties": {f"p{i}": {"type": "string"} for i in range(5000)},
        "additionalProperties": False,
    },
    "unordered properties": {
        "type": "object",
        "properties": {f"p{i}": {"type": "integer"} for i in range(25)},
        "minProperties": 12,
        "additionalProperties": False,
    },
    "one of one of": {"oneOf": [branch(i) for i in range(40)]},
    "500 deep": deep(500),
}
HARMLESS = {"chain of references", "exponential pattern"}  # compile at once; each step is bounded by fuel


@pytest.mark.parametrize("name", [name for name in BOMBS if name not in HARMLESS])
def test_bombs_are_refused(compiler: Compiler, name: str) -> None:
    began = time.process_time()
    with pytest.raises(EngineError) as error:
        compiler.json(BOMBS[name])
    assert error.value.kind == "grammar"
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_what_looks_like_a_bomb(compiler: Compiler, name: str) -> None:
    began = time.process_time()
    matcher, rng = compiler.json(BOMBS[name]).matcher(), random.Random(0)
    for _ in range(60):  # walk it, with as few quotes as may be
        ids = matcher.mask(259).nonzero()[:, 0].tolist()
        matcher.take(rng.choice([i for i in ids if i != 34] or ids))
        if matcher.ended:
            break
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("bad", ["(", "a{1,99999}", "[z-a]", "x" * 5000, "(?=a)b", "\0("])
def test_bad_expressions(compiler: Compiler, bad: str) -> None:
    with pytest.raises(EngineError) as error:
        compiler.regex(bad)
    assert error.value.kind == "grammar"
    assert "\n" not in str(error.value)
    compiler.regex("a+")


def test_schemas_cannot_set_our_options(compiler: Compiler) -> None:
    with pytest.raises(EngineError, match="x-guidance"):
        compiler.json({"type": "object", "x-guidance": {"lenient": True}})


def test_a_grammar_that_breaks_ends_one_request(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(tiny(context=256))
    grammar = compiler.regex("[ab]{40}")
    doomed = engine.submit(Request(PROMPT, Sampling(max_tokens=60), grammar=grammar))
    other = engine.submit(asked(PROMPT, 12))
    engine.step()
    matcher = engine.scheduler.running[0].matcher
    assert matcher is not None
    monkeypatch.setattr(matcher, "mask", lambda vocab: 1 / 0)
    [done] = doomed.result()
    assert done.error is not None
    assert (done.finish, done.error.kind) == ("error", "step")
    assert other.result()[0].ids == engine_of(engine.model).generate([asked(PROMPT, 12)])[0][0].ids
    empty(engine)
