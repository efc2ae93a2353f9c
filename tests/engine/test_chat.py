"""Conversations: what is remembered, read again, dropped and kept when an answer breaks off."""

from __future__ import annotations

import pytest
import torch

from terakoya.engine.aided import Aided
from terakoya.engine.chat import Chat
from terakoya.engine.engine import Engine
from terakoya.engine.generate import complete
from terakoya.engine.sampling import Sampling
from terakoya.errors import TerakoyaError
from terakoya.model.model import Model
from terakoya.tokenizer import Message, Tokenizer, render
from terakoya.zoo.convert import Loaded
from tests.engine.engine_fakes import byte_tokenizer, tiny

SHORT = Sampling(temperature=0, max_tokens=6, min_tokens=6)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny(context=512)


def test_a_chat_says_what_a_fresh_reading_says(model: Model, tokenizer: Tokenizer) -> None:
    chat = Chat(model, tokenizer, system="短く。")
    said = [Message("system", "短く。")]
    for i, text in enumerate(["こんにちは", "<|im_end|>👩‍👧", "and now?"]):
        said.append(Message("user", text))
        ids = render(tokenizer, said, answer=True).ids
        reply = chat.say(text, SHORT)
        answer = "".join(reply)
        fresh = complete(model, tokenizer, ids, SHORT)
        assert answer == fresh.text
        assert (reply.finish, reply.tokens, reply.prompt_tokens) == (fresh.finish, 6, len(ids))
        assert (reply.reused > 0) == (i > 0)
        said.append(Message("assistant", answer))
        assert chat.messages == said


def test_what_was_read_is_not_read_again(model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda tokens, ctx: read.append(len(tokens)) or forward(tokens, ctx))
    chat = Chat(model, tokenizer)
    "".join(chat.say("a long question " * 5, SHORT))
    first = sum(read)
    read.clear()
    reply = chat.say("next", SHORT)
    "".join(reply)
    assert sum(read) == reply.prompt_tokens - reply.reused + 5
    assert reply.reused >= first - 6  # the answer's bytes may spell otherwise than they were drawn


def test_an_unchanged_history_needs_no_cut_and_an_edited_one_does(model: Model, tokenizer: Tokenizer) -> None:
    chat = Chat(model, tokenizer)
    "".join(chat.say("one", SHORT))
    chat.messages[0] = Message("user", "oNe")
    reply = chat.say("two", SHORT)
    answer = "".join(reply)
    ids = render(tokenizer, chat.messages[:-1], answer=True).ids
    assert 0 < reply.reused < 20
    assert answer == complete(model, tokenizer, ids, SHORT).text


def test_recurrent_memory_that_cannot_go_back_is_read_anew(model: Model, tokenizer: Tokenizer) -> None:
    chat = Chat(model, tokenizer)
    "".join(chat.say("one", SHORT))
    chat._memory.states[0] = (torch.zeros(1, 1),)
    reply = chat.say("two", SHORT)
    assert reply.reused == 0
    "".join(reply)
    assert not chat._memory.states


def test_oldest_turns_are_dropped_and_it_is_said(tokenizer: Tokenizer) -> None:
    model = tiny(context=160)
    chat = Chat(model, tokenizer, system="S")
    notices = []
    for i in range(6):
        reply = chat.say(f"question {i}", SHORT)
        notices.append(reply.notice)
        "".join(reply)
        assert chat.messages[0] == Message("system", "S")
        assert chat.messages[-2] == Message("user", f"question {i}")
        assert reply.prompt_tokens + 6 <= 160
        ids = render(tokenizer, chat.messages[:-1], answer=True).ids
        assert chat.messages[-1].content == complete(model, tokenizer, ids, SHORT).text
    assert notices[:2] == [None, None]
    assert notices[-1] == "dropped the 1 oldest turn: the context of 160 tokens is full"


def test_a_message_that_never_fits_is_refused_and_changes_nothing(tokenizer: Tokenizer) -> None:
    chat = Chat(tiny(context=100), tokenizer)
    "".join(chat.say("hi", SHORT))
    before = list(chat.messages)
    with pytest.raises(TerakoyaError, match=r"message: does not fit.*context is 100"):
        chat.say("長" * 40, SHORT)
    assert chat.messages == before
    assert len("".join(chat.say("still here?", SHORT))) > 0


def test_room_is_kept_for_the_answer_up_to_a_quarter(tokenizer: Tokenizer) -> None:
    chat = Chat(tiny(context=200), tokenizer)
    "".join(chat.say("x" * 85, SHORT))
    long = chat.say("y" * 20, Sampling(temperature=0, max_tokens=10_000))
    assert long.notice is not None
    assert long.prompt_tokens <= 150
    assert chat.say("y", Sampling(temperature=0, max_tokens=10_000)).notice is None
    short = chat.say("y" * 20, SHORT)
    assert short.notice is None
    assert 150 < short.prompt_tokens <= 194


def test_closing_keeps_what_was_said(model: Model, tokenizer: Tokenizer) -> None:
    chat = Chat(model, tokenizer)
    long = Sampling(temperature=0, max_tokens=50, min_tokens=50)
    reply = chat.say("go on", long)
    piece = next(reply)
    reply.close()
    assert list(reply) == []
    assert reply.finish is None
    assert chat.messages[-1] == Message("assistant", piece)
    running = chat.say("again", long)
    next(running)
    after = chat.say("and another", SHORT)  # closes the one that runs
    assert list(running) == []
    answer = "".join(after)
    ids = render(tokenizer, chat.messages[:-1], answer=True).ids
    assert answer == complete(model, tokenizer, ids, SHORT).text
    assert [m.role for m in chat.messages] == ["user", "assistant"] * 3


def test_a_reply_never_begun_was_never_asked(model: Model, tokenizer: Tokenizer) -> None:
    chat = Chat(model, tokenizer)
    chat.say("unheard", SHORT)
    "".join(chat.say("heard", SHORT))
    assert [m.content for m in chat.messages][:1] == ["heard"]


def test_a_step_that_breaks_leaves_a_chat_that_works(
    model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Chat(model, tokenizer)
    "".join(chat.say("one", SHORT))
    before = list(chat.messages)
    block = model.layers[1]
    with monkeypatch.context() as m:
        m.setattr(block, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            "".join(chat.say("two", SHORT))
    assert chat.messages == before
    reply = chat.say("two", SHORT)
    answer = "".join(reply)
    assert reply.reused == 0
    ids = render(tokenizer, chat.messages[:-1], answer=True).ids
    assert answer == complete(model, tokenizer, ids, SHORT).text


def test_reset_forgets_all_but_the_system(model: Model, tokenizer: Tokenizer) -> None:
    chat = Chat(model, tokenizer, system="S")
    first = "".join(chat.say("one", SHORT))
    chat.reset()
    assert chat.messages == [Message("system", "S")]
    assert "".join(chat.say("one", SHORT)) == first


def test_no_template_is_no_chat(model: Model, tokenizer: Tokenizer) -> None:
    with pytest.raises(TerakoyaError, match="chat template"):
        Chat(model, tokenizer.with_template(None)).say("hi", SHORT)


def test_reply_tells_how_far_it_came(model: Model, tokenizer: Tokenizer) -> None:
    reply = Chat(model, tokenizer).say("hi", SHORT)
    assert (reply.tokens, reply.finish) == (0, None)
    list(reply)
    assert (reply.tokens, reply.finish) == (6, "length")


def test_a_conversation_through_an_engine(tokenizer: Tokenizer) -> None:
    """The same answers, messages and notices; what was said before is found again, and a closed answer ends."""
    model = tiny(context=160)
    loaded = Loaded(model, tokenizer, "llama2")
    with Engine(loaded, draft=Loaded(tiny(context=160, seed=3), tokenizer, "llama2"), by="torch") as engine:
        aided, chat = Aided(engine, system="S"), Chat(model, tokenizer, system="S")
        for i in range(5):
            one, other = aided.say(f"question {i}", SHORT), chat.say(f"question {i}", SHORT)
            assert "".join(one) == "".join(other)
            assert (one.notice, one.finish, one.tokens) == (other.notice, other.finish, other.tokens)
            assert aided.messages == chat.messages
        assert one.notice is not None
        assert engine.counts.cached > 0
        right, made = one.guesses
        assert 0 <= right <= made > 0
        reply = aided.say("go on", Sampling(temperature=0, max_tokens=50, min_tokens=50))
        piece = next(reply)
        reply.close()
        assert aided.messages[-1] == Message("assistant", piece)
        assert len("".join(aided.say("x", SHORT))) > 0
