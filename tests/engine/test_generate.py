"""Generation: the plain loop, limits, whole characters, stop strings across ids, seeds."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terakoya.engine import generate as module
from terakoya.engine.generate import Token, complete, generate, read
from terakoya.engine.sampling import History, Sampling, process
from terakoya.errors import TerakoyaError
from terakoya.model.context import Memory, Packed
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer
from tests.engine.engine_fakes import Actor, Pieces, byte_tokenizer, tiny

GREEDY = Sampling(temperature=0, max_tokens=20)
PROMPT = [100, 7, 200, 33, 65]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@torch.no_grad()
def plain(model: Model, prompt: list[int], count: int) -> list[int]:
    """Read everything anew for each token and take the best."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model.head(model(torch.tensor(ids), Packed([len(ids)])))[-1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["llama2", "gpt2"])
def test_greedy_is_the_plain_loop(family: str, tokenizer: Tokenizer) -> None:
    for seed in range(3):
        model = tiny(seed=seed, family=family)
        wanted = plain(model, PROMPT, 20)
        end = next((i + 1 for i, id in enumerate(wanted) if id in tokenizer.stops), 20)
        done = complete(model, tokenizer, PROMPT, GREEDY)
        assert done.ids == wanted[:end]
        assert len(set(wanted)) > 3, "a model that repeats itself proves little"


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_prompts_are_read_in_chunks(chunk: int, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    whole = read(model, memory, list(range(40, 60)))
    sizes: list[int] = []
    step = Memory.step
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(Memory, "step", lambda self, counts, *rest: sizes.extend(counts) or step(self, counts, *rest))
    again = Memory()
    torch.testing.assert_close(read(model, again, list(range(40, 60))), whole, atol=1e-4, rtol=1e-4)
    assert max(sizes) == chunk
    assert again.lengths == memory.lengths == [20]


def test_only_the_last_position_meets_the_head(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    head = model.head.forward
    monkeypatch.setattr(model.head, "forward", lambda x: rows.append(len(x)) or head(x))
    read(model, Memory(), PROMPT)
    assert rows == [1]


def test_memory_is_carried_on(model: Model, tokenizer: Tokenizer) -> None:
    sampling = Sampling(seed=3, max_tokens=12)
    whole = list(generate(model, tokenizer, PROMPT, sampling))
    memory = Memory()
    read(model, memory, PROMPT[:3])
    carried = list(generate(model, tokenizer, PROMPT, sampling, memory=memory))
    assert [t.id for t in carried] == [t.id for t in whole]
    assert memory.lengths == [len(PROMPT) + len(whole) - 1]


def test_the_reader_of_a_stream_keeps_his_own_mode(model: Model, tokenizer: Tokenizer) -> None:
    tokens = generate(model, tokenizer, PROMPT, GREEDY)
    next(tokens)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    weight = next(model.parameters())
    assert (weight * 2).requires_grad
    next(tokens)


def test_same_seed_same_answer(model: Model, tokenizer: Tokenizer) -> None:
    one = Sampling(seed=0, max_tokens=30)
    first = complete(model, tokenizer, PROMPT, one)
    interleaved = zip(generate(model, tokenizer, PROMPT, one), generate(model, tokenizer, [1, 2], one), strict=False)
    assert [t.id for t, _ in interleaved][: len(first.ids)] == first.ids[: len(first.ids)]
    others = [complete(model, tokenizer, PROMPT, one, choice=c).ids for c in (1, 2)]
    others.append(complete(model, tokenizer, PROMPT, Sampling(seed=1, max_tokens=30)).ids)
    assert len({tuple(ids) for ids in [first.ids, *others]}) == 4
    fresh = complete(model, tokenizer, PROMPT, Sampling(max_tokens=30))
    again = complete(model, tokenizer, PROMPT, Sampling(max_tokens=30, seed=fresh.seed))
    assert again.ids == fresh.ids


def test_logprobs_are_those_of_the_distributions(model: Model, tokenizer: Tokenizer) -> None:
    sampling = Sampling(seed=5, temperature=0.8, top_k=20, repetition=1.2, max_tokens=8)
    ids, history = list(PROMPT), History(PROMPT)
    for token in generate(model, tokenizer, PROMPT, sampling):
        with torch.no_grad():
            logits = model.head(model(torch.tensor(ids), Packed([len(ids)])))[-1]
        assert token.raw == pytest.approx(float(logits.log_softmax(0)[token.id]), abs=1e-3)
        assert token.logprob == pytest.approx(float(process(logits, history, sampling)[token.id]), abs=1e-3)
        ids.append(token.id)
        history.add(token.id)


def test_context_ends_an_answer(tokenizer: Tokenizer) -> None:
    for family in ("llama2", "gpt2"):  # rotary, and a table of positions
        model = tiny(context=16, family=family)
        sampling = Sampling(temperature=0, max_tokens=100, min_tokens=100)
        done = complete(model, tokenizer, PROMPT, sampling)
        assert (len(done.ids), done.finish) == (16 - len(PROMPT), "length")
        assert complete(model, tokenizer, [65] * 15, sampling).tokens == 1
        for size in (16, 17):
            with pytest.raises(TerakoyaError, match=f"has {size} tokens.*context.*16"):
                generate(model, tokenizer, [65] * size, sampling)  # before anything is asked for


@pytest.mark.parametrize(
    ("prompt", "sampling", "words"),
    [
        ([], GREEDY, "prompt: is empty"),
        ([5, 259], GREEDY, "259"),
        ([-1], GREEDY, "-1"),
        ([1], Sampling(logit_bias=((259, 1.0),)), "logit_bias.*259|259.*no id"),
    ],
)
def test_foreign_prompts_are_refused(
    prompt: list[int], sampling: Sampling, words: str, model: Model, tokenizer: Tokenizer
) -> None:
    for call in (generate, complete):
        with pytest.raises(TerakoyaError, match=words):
            call(model, tokenizer, prompt, sampling)


def test_damaged_weights_are_said_to_be(model: Model, tokenizer: Tokenizer) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.layers[0].mlp.up.weight[0, 0] = float("nan")
    for sampling in (GREEDY, Sampling()):
        with pytest.raises(TerakoyaError, match="no numbers"):
            complete(broken, tokenizer, PROMPT, sampling)


def test_end_tokens_end_and_are_not_shown(tokenizer: Tokenizer) -> None:
    eos = tokenizer.eos
    assert eos is not None
    script = [*tokenizer.encode("はい"), eos, *tokenizer.encode("never")]
    actor = play(script, tokenizer.vocab_size)
    done = complete(actor, tokenizer, [1], GREEDY)
    assert (done.text, done.finish, done.ids) == ("はい", "end", script[:7])
    longer = complete(actor, tokenizer, [1], Sampling(temperature=0, min_tokens=9, max_tokens=9, stop=("は",)))
    assert (longer.finish, longer.tokens) == ("length", 9)
    assert not set(longer.ids) & tokenizer.stops


def test_stop_strings_before_min_tokens_do_not_stop() -> None:
    pieces = Pieces([b"a", b"b", b"c"])
    sampling = Sampling(temperature=0, max_tokens=6, min_tokens=2, stop=("ab",))
    done = complete(play([0, 1, 2, 0, 1, 2], 4), pieces, [1], sampling)
    assert (done.text, done.finish, done.tokens) == ("abc", "stop", 5)


def test_rows_beyond_the_vocabulary_are_never_drawn(tokenizer: Tokenizer) -> None:
    actor = play([300], vocab=320)  # a padded table
    for sampling in (GREEDY, Sampling(max_tokens=50, seed=1)):
        assert max(complete(actor, tokenizer, [1], sampling).ids) < tokenizer.vocab_size


SCRIPTS = [
    "日本語のテキスト👩‍👩‍👧‍👦です。",
    "ｱｲｳ\r\nEnd of text###",
    "か\u3099き\u3099\u0000",
    "🇯🇵🏴\U000e0067\U000e007f",
]


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[list[bytes], str]:
    """A text as ids of any bytes: cuts anywhere, bytes that are no UTF-8 among them."""
    text = draw(st.one_of(st.sampled_from(SCRIPTS), st.text(max_size=12)))
    data = text.encode() + draw(st.sampled_from([b"", b"\xf0\x9f\x91", b"\xff", b"\xe3\x81"]))
    data += draw(st.sampled_from(["", "そして###", "!"])).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=10)))
    parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return parts, data.decode("utf-8", "replace")


@settings(max_examples=150, deadline=None)
@given(
    cut_texts(),
    st.lists(st.sampled_from(["###", "👩‍👧", "\u200d👦", "です", "\ufffd", "\u3099", "x"]), max_size=3),
    st.booleans(),
)
def test_stream_is_the_text_up_to_the_stop(made: tuple[list[bytes], str], stops: list[str], end: bool) -> None:
    parts, text = made
    pieces = Pieces(parts)
    script = [*range(len(parts)), *([pieces.eos] if end else [])]
    sampling = Sampling(temperature=0, max_tokens=len(script), stop=tuple(stops))
    tokens = list(generate(play(script, pieces.vocab_size), pieces, [0], sampling))
    for token in tokens:
        token.text.encode()  # whole characters: no lone surrogates
    ends = [(at + len(s), at, s) for s in stops for at in range(len(text)) if text.startswith(s, at)]
    wanted = text[: min(ends)[1]] if ends else text
    assert "".join(t.text for t in tokens) == wanted
    assert tokens[-1].finish == ("stop" if ends else "end" if end else "length")
    assert all(t.finish is None for t in tokens[:-1])


def test_text_is_not_held_back_without_a_reason() -> None:
    pieces = Pieces(["あ".encode(), "い#".encode(), b"x", b"\xf0\x9f", b"\x98\x80"])
    tokens = generate(play([0, 1, 2, 3, 4], 6), pieces, [0], Sampling(temperature=0, max_tokens=5, stop=("##",)))
    assert [t.text for t in tokens] == ["あ", "い", "#x", "", "😀"]


def test_what_was_held_back_comes_out_in_the_end() -> None:
    pieces = Pieces([b"a#", b"#"])
    for script, finish in (([0, 1], "length"), ([0, pieces.eos], "end")):
        done = complete(play(script, 3), pieces, [0], Sampling(temperature=0, max_tokens=2, stop=("###",)))
        assert (done.text, done.finish) == ("a##" if finish == "length" else "a#", finish)


def test_penalties_count_what_the_answer_says() -> None:
    pieces = Pieces([b"a", b"b"])
    sampling = Sampling(temperature=0, max_tokens=6, frequency=20.0, logit_bias=((2, -100.0),))
    assert complete(play([1] * 6, 3), pieces, [1], sampling).text == "bbbaba"


def test_samples_follow_the_model(tokenizer: Tokenizer) -> None:
    model = tiny(seed=4)
    logits = read(model, Memory(), PROMPT)
    p = process(logits, History(), Sampling(top_k=4)).exp()
    drawn = Counter(
        next(iter(generate(model, tokenizer, PROMPT, Sampling(top_k=4, seed=seed, max_tokens=1)))).id
        for seed in range(400)
    )
    chi = sum((drawn[i] - 400 * float(q)) ** 2 / (400 * float(q)) for i, q in enumerate(p) if q)
    assert sum(drawn.values()) == sum(drawn[i] for i, q in enumerate(p) if q)
    assert chi < 16.3


def play(script: list[int], vocab: int) -> Any:
    return Actor(script, prompt=1, vocab=vocab)


def test_token_is_a_value() -> None:
    assert Token(1, "a", 0.0, -1.0) == Token(1, "a", 0.0, -1.0, None)
