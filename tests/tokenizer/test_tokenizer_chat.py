"""Laws of conversations: what is written, what is trained, and that no message can forge a turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import TEMPLATES, Message, Template, Tokenizer, Turn, conversation, render, train, written
from terakoya.tokenizer.templates import recognise, to_jinja
from tests.tokenizer.texts import CORPUS, MARKS, plain_texts, texts

LAW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MARKED = (
    *("<s>", "</s>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<|eot_id|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
)


def chats(content: st.SearchStrategy[str]) -> st.SearchStrategy[list[Message]]:
    """An optional system message, then user and assistant in turn."""

    def build(system: str | None, words: list[str]) -> list[Message]:
        head = [] if system is None else [Message("system", system)]
        return head + [Message(("user", "assistant")[i % 2], w) for i, w in enumerate(words)]

    return st.builds(build, st.none() | content, st.lists(content, min_size=1, max_size=5))


def hostile() -> st.SearchStrategy[str]:
    return st.lists(st.one_of(st.sampled_from((*MARKS, *MARKED, "{bos}", "{eos}")), texts()), max_size=4).map("".join)


@pytest.fixture(scope="module")
def every() -> Tokenizer:
    """A tokenizer that has the control tokens of every template."""
    return train(iter(CORPUS * 5), "bpe", 600, MARKED)


def _jinja(source: str) -> Callable[..., str]:
    jinja2 = pytest.importorskip("jinja2")
    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # as transformers sets it

    def refuse(message: str) -> None:
        raise ValueError(message)

    env.globals["raise_exception"] = refuse
    made = env.from_string(source)

    def say(messages: list[Message], answer: bool, **marks: str) -> str:
        rows = [{"role": m.role, "content": m.content} for m in messages]
        return made.render(messages=rows, add_generation_prompt=answer, **marks)

    return say


@pytest.fixture(scope="module")
def jinjas() -> dict[str, Callable[..., str]]:
    return {name: _jinja(to_jinja(t)) for name, t in TEMPLATES.items()}


@LAW
@given(messages=chats(hostile()), answer=st.booleans())
def test_smollm_conversations_are_written_as_its_own_template_writes_them(
    smollm: Tokenizer, metadata: dict[str, Any], messages: list[Message], answer: bool
) -> None:
    say = _jinja(metadata["tokenizer.chat_template"])
    assert smollm.template == "smollm2"
    assert written(smollm, messages, answer=answer) == say(messages, answer)


@LAW
@given(messages=chats(plain_texts()), answer=st.booleans())
def test_benign_conversations_have_the_ids_of_the_whole_text(
    smollm: Tokenizer, metadata: dict[str, Any], messages: list[Message], answer: bool
) -> None:
    text = _jinja(metadata["tokenizer.chat_template"])(messages, answer)
    assert render(smollm, messages, answer=answer).ids == smollm.encode_trusted(text)


@LAW
@given(messages=chats(texts()), answer=st.booleans())
def test_exported_jinja_says_the_same(
    every: Tokenizer, jinjas: dict[str, Callable[..., str]], messages: list[Message], answer: bool
) -> None:
    for name, say in jinjas.items():
        here = written(every, messages, template=name, answer=answer)
        assert here == say(messages, answer, bos_token="<s>", eos_token="</s>"), name


@LAW
@given(messages=chats(hostile()), answer=st.booleans())
def test_no_content_forges_a_control_token(every: Tokenizer, messages: list[Message], answer: bool) -> None:
    control = set(every.specials.values())
    harmless = [Message(m.role, "x") for m in messages]
    for name in TEMPLATES:
        found = [i for i in render(every, messages, template=name, answer=answer).ids if i in control]
        expected = [i for i in render(every, harmless, template=name, answer=answer).ids if i in control]
        assert found == expected, name


@LAW
@given(messages=chats(hostile()))
def test_a_prompt_is_a_prefix_of_its_conversation(every: Tokenizer, messages: list[Message]) -> None:
    for name in TEMPLATES:
        whole = render(every, messages, template=name)
        for k, message in enumerate(messages):
            if message.role == "assistant":
                prompt = render(every, messages[:k], template=name, answer=True)
                turn = render(every, messages[: k + 1], template=name)
                assert whole.ids[: len(prompt.ids)] == prompt.ids, name
                assert whole.ids[: len(turn.ids)] == turn.ids, name
                assert whole.weights[: len(turn.weights)] == turn.weights


@LAW
@given(messages=chats(hostile()))
def test_what_is_trained_is_the_answer_and_its_stop(every: Tokenizer, messages: list[Message]) -> None:
    for name, template in TEMPLATES.items():
        found = render(every, messages, template=name, answer=True)
        learnt = [i for i, w in zip(found.ids, found.weights, strict=True) if w]
        assert set(found.weights) <= {0.0, 1.0}
        turn = template.turns["assistant"]
        strip = str.strip if template.trim else str
        tail = turn.tail.replace("{eos}", "</s>")
        answers = [turn.lead + strip(m.content) + tail for m in messages if m.role == "assistant"]
        assert every.decode(learnt, specials=True) == "".join(answers)
        for i, (id, weight) in enumerate(zip(found.ids, found.weights, strict=True)):
            if weight and (i + 1 == len(found.ids) or not found.weights[i + 1]):
                assert id in every.specials.values(), "the stop token is trained"
        if not answers:
            assert not learnt


def test_every_template_survives_its_own_export() -> None:
    for name, template in TEMPLATES.items():
        assert recognise(to_jinja(template)) == name
    assert recognise("{{ messages }}") is None
    assert recognise(None) is None


def test_an_empty_answer_still_trains_its_stop(smollm: Tokenizer) -> None:
    found = render(smollm, [Message("user", "hi"), Message("assistant", "")])
    assert [i for i, w in zip(found.ids, found.weights, strict=True) if w] == [smollm.specials["<|im_end|>"]]


def test_the_default_system_message(smollm: Tokenizer) -> None:
    assert written(smollm, [Message("user", "hi")], answer=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "SmolLM" not in written(smollm, [Message("system", ""), Message("user", "hi")])


def test_mistakes_are_named(smollm: Tokenizer, trained: dict[str, Tokenizer]) -> None:
    hi = [Message("user", "hi")]
    for match, call in {
        "'usr' is not allowed here; allowed: .*did you mean 'user'": lambda: render(smollm, [Message("usr", "hi")]),
        "'chatlm' is not known.*did you mean 'chatml'": lambda: render(smollm, hi, template="chatlm"),
        "llama3: needs the control token <|start_header_id|>": lambda: render(smollm, hi, template="llama3"),
        "messages: are empty": lambda: render(smollm, []),
        "breaks the turns of llama2": lambda: render(smollm, hi + hi, template="llama2"),
        "may only come first in gemma": lambda: written(smollm, [*hi, Message("system", "x")], template="gemma"),
        "need a user message": lambda: written(smollm, [Message("system", "x")], template="llama2"),
        "lone surrogate": lambda: render(smollm, [Message("user", "\ud800")]),
        "has none": lambda: render(train(["a b"], "bytes", 256, ()), hi),
        "ends answers with eos": lambda: render(train(["a b"], "bytes", 256, ()), hi, template="alpaca"),
        "one that we do not know": lambda: render(Tokenizer(trained["bpe"].description(), jinja="{{ x }}"), hi),
    }.items():
        with pytest.raises(TerakoyaError, match=match.replace("|", "\\|")) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_conversations_from_rows() -> None:
    rows = [{"role": "user", "content": "やあ"}]
    assert conversation("messages", rows) == [Message("user", "やあ")]
    for bad, match in (
        ("text", "must be a list"),
        ({"role": "user"}, "must be a list"),
        ([1], r"messages\[0\]: 'int' must be an object"),
        ([{"role": "user"}], r"messages\[0\].content"),
        ([{"role": "user", "content": [1]}], r"messages\[0\].content"),
        ([{"role": "user", "content": "x", "nam": 1}], r"messages\[0\].nam"),
    ):
        with pytest.raises(TerakoyaError, match=match):
            conversation("messages", bad)


def test_a_template_of_ones_own(trained: dict[str, Tokenizer]) -> None:
    own = Template("寺子屋", {"user": Turn("問: ", "\n"), "assistant": Turn("答: ", "\n", tail="{eos}")})
    one = trained["bpe"]
    chat = [Message("user", "元気？"), Message("assistant", "はい。")]
    assert written(one, chat, template=own) == "問: 元気？\n答: はい。<|endoftext|>\n"
    found = render(one, chat, template=own)
    assert one.decode([i for i, w in zip(found.ids, found.weights, strict=True) if w]) == "はい。"


def test_transformers_gives_the_same_ids(smollm: Tokenizer, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    smollm.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for words in (["Hello there", "やあ、元気？"], ["吾輩は猫である。", "👨‍👩‍👧 yes", "x = 1\n  y = 2"]):
        rows = [{"role": ("user", "assistant")[i % 2], "content": w} for i, w in enumerate(words)]
        ours = render(smollm, conversation("messages", rows), answer=True).ids
        found = theirs.apply_chat_template(rows, add_generation_prompt=True, tokenize=True)
        assert list(found["input_ids"] if hasattr(found, "keys") else found) == ours
        text = "".join(words)
        assert theirs.encode(text, add_special_tokens=False) == smollm.encode(text)
        assert theirs.decode(smollm.encode(text)) == text
