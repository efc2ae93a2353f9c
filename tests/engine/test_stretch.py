"""Longer texts than a model was trained on: what scaled positions must and must not change."""

from __future__ import annotations

import pytest
import torch
from bench.needle import Reach, table

from terakoya.engine.runner import runner
from terakoya.engine.stretch import SORTS, stretched
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.context import Packed
from terakoya.model.position import rope_table
from terakoya.zoo.convert import Loaded
from tests.engine.engine_fakes import byte_tokenizer, tiny
from tests.engine.engine_laws import TOLERANCE, asked, empty, engine_of, furthest

TRAINED = 64
SCALED = [s for s in SORTS if s != "none"]


def made(text: str = "", family: str = "llama2") -> Loaded:
    loaded = Loaded(tiny(TRAINED, family=family), byte_tokenizer(), "llama2")
    return stretched(loaded, text) if text else loaded


def tables(text: str, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rotary table of the first layer for one text."""
    rope = made(text).model.layers[0].attn.spec.position if text else spec.Rope()
    return rope_table(rope, 16, TRAINED, torch.arange(length), [0, length], torch.float32)


def logits(loaded: Loaded, length: int) -> torch.Tensor:
    ids = torch.tensor([(7 * i + 3) % 256 for i in range(length)])
    with torch.no_grad():
        return loaded.model.head(loaded.model(ids, Packed([length])))


@pytest.mark.parametrize("sort", SORTS)
def test_a_factor_of_one_changes_nothing(sort: str) -> None:
    for got, want in zip(tables(f"{sort}:1", TRAINED), tables("", TRAINED), strict=True):
        assert torch.allclose(got, want, atol=1e-6)
    assert torch.allclose(logits(made(f"{sort}:1"), TRAINED), logits(made(), TRAINED), atol=1e-4)


def test_dynamic_does_nothing_within_the_trained_length() -> None:
    for length in (1, TRAINED - 1, TRAINED):
        assert torch.equal(tables("dynamic:4", length)[0], tables("", length)[0])
    longer = tables("dynamic:4", TRAINED + 8)[1]
    assert not torch.allclose(longer, tables("", TRAINED + 8)[1], atol=1e-3)


def test_each_scaling_keeps_what_it_promises() -> None:
    """Linear: position 2 i is what i was. YaRN and llama3: the fastest channel stays, the slowest is divided."""
    plain, half = tables("", TRAINED)[0], tables("linear:2", 2 * TRAINED)[0]
    assert torch.allclose(half[::2], plain, atol=1e-6)
    for sort in ("yarn", "llama3"):
        sin = [tables(text, 2)[1][1, 0] for text in ("", f"{sort}:2")]
        gain = tables(f"{sort}:2", 1)[0][0, 0, 0]
        assert torch.isclose(sin[1][0] / gain, sin[0][0], atol=1e-5)
        assert torch.isclose((sin[1][-1] / gain).asin() * 2, sin[0][-1].asin(), rtol=1e-3)


def test_weights_are_shared_and_the_model_stays_as_it_was() -> None:
    loaded = made()
    before = logits(loaded, TRAINED)
    longer = stretched(loaded, "yarn:2")
    assert (longer.spec.context, loaded.spec.context) == (2 * TRAINED, TRAINED)
    own = dict(loaded.model.named_parameters())
    assert all(p.data_ptr() == own[name].data_ptr() for name, p in longer.model.named_parameters())
    assert torch.equal(logits(loaded, TRAINED), before)
    assert not torch.allclose(logits(longer, TRAINED), before, atol=1e-3)


@pytest.mark.parametrize("by", ["native", "torch"])
@pytest.mark.parametrize("sort", ["none", "linear", "yarn", "llama3"])
def test_whoever_computes_answers_past_the_trained_length(sort: str, by: str) -> None:
    """Prompts longer than the trained length, in chunks, mixed: the numbers of one pass, from either runner."""
    longer = made(f"{sort}:2")
    engine = engine_of(longer.model, by=by, max_tokens_per_step=24)
    requests = [asked([(5 * i + n) % 256 for i in range(n)], 8) for n in (90, 10, 70)]
    for request, [done] in zip(requests, engine.generate(requests), strict=True):
        assert furthest(longer.model, request.prompt, done) <= TOLERANCE
    with pytest.raises(TerakoyaError, match="room for 128"):
        engine.submit(asked([1] * 128))
    empty(engine)


def test_dynamic_is_alike_for_both_who_compute() -> None:
    """Its table goes by how long the text is when it is read, so texts are read whole here."""
    longer = made("dynamic:2")
    found = [engine_of(longer.model, by=by, max_tokens_per_step=128) for by in ("native", "torch")]
    request = asked([(5 * i) % 256 for i in range(90)], 8)
    a, b = (engine.generate([request])[0][0] for engine in found)
    assert a.ids == b.ids
    assert furthest(longer.model, request.prompt, a) < 0.2


def test_what_cannot_be_stretched_is_one_line() -> None:
    for text in ("yarn", "yarn:", "yarn:0.5", "yarn:x", "yarn:nan", "yarn:1000", "ntk:2", ""):
        with pytest.raises(TerakoyaError, match=r"rope.*yarn:2"):
            stretched(made(), text)
    with pytest.raises(TerakoyaError, match="scaled already"):
        stretched(made("linear:2"), "yarn:2")
    with pytest.raises(TerakoyaError, match="no rotary positions"):
        stretched(made(family="gpt2"), "yarn:2")


def test_the_measurement_reads_every_place_once() -> None:
    """The plumbing of bench/needle.py on a tiny model: shares of a text by how far into it they stand."""
    text = "東京は日本の首都。The quick brown fox 🦊 " * 40
    rows = table(made(), [text, text[5:]], [1, 2], SCALED, pieces=2)
    assert [(r.how, r.times) for r in rows] == [(how, times) for how in ("none", *SCALED) for times in (1, 2)]
    assert all(isinstance(r, Reach) and 4 < r.bits < 40 and r.tokens > 0 for r in rows)
    first = {r.how: r.bits for r in rows if r.times == 1}
    assert first["dynamic"] == pytest.approx(first["none"], abs=1e-6)
    assert runner(made()).words
