"""From what a request says to what the engine is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from terakoya.engine.request import Request
from terakoya.engine.sampling import Sampling
from terakoya.errors import TerakoyaError
from terakoya.serve.fields import ChatRequest, CompletionRequest, Drawing
from terakoya.serve.fields import Message as Said
from terakoya.serve.problem import Problem
from terakoya.serve.settings import Limits
from terakoya.serve.shelf import Served
from terakoya.tokenizer import Message, Tokenizer, render
from terakoya.tokenizer.chat import chosen

T = TypeVar("T")
LEGACY_ANSWER = 16  # tokens of /v1/completions where max_tokens is not given, as at OpenAI


def sampling(body: Drawing, most: int) -> Sampling:
    """Read the fields that say how to draw; `most` tokens at most."""
    stop = body.stop or []
    return Sampling(
        temperature=_or(body.temperature, 1.0),
        top_k=max(_or(body.top_k, 0), 0),
        top_p=_or(body.top_p, 1.0),
        min_p=_or(body.min_p, 0.0),
        typical=_or(body.typical_p, 1.0),
        repetition=_or(body.repetition_penalty, 1.0),
        presence=_or(body.presence_penalty, 0.0),
        frequency=_or(body.frequency_penalty, 0.0),
        max_tokens=most,
        min_tokens=_or(body.min_tokens, 0),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        seed=None if body.seed is None else body.seed % 2**64,
        logit_bias=tuple((int(id), float(bias)) for id, bias in (body.logit_bias or {}).items()),
    )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def request(
    served: Served, ids: Sequence[int], body: Drawing, how: Sampling, limits: Limits, tenant: str, logprobs: int | None
) -> Request:
    """Put a prompt and the fields of a request together."""
    for id in body.stop_token_ids or ():
        if id >= served.loaded.spec.vocab:
            raise TerakoyaError("stop_token_ids", "is none of this model's ids", given=id)
    salt = "\0".join(("", tenant, body.user or "", body.prompt_cache_key or ""))
    return Request(
        tuple(ids),
        how,
        n=body.n or 1,
        logprobs=logprobs,
        stop_ids=frozenset(body.stop_token_ids or ()),
        ignore_end=bool(body.ignore_eos),
        deadline=limits.seconds,
        salt=salt if salt.strip("\0") else "",
    )


def chat(served: Served, body: ChatRequest, limits: Limits, tenant: str) -> Request:
    """Write the conversation down in ids, and ask for what comes next."""
    ids = conversation(served.tokenizer, body.messages, body.chat_template)
    most = _or(body.max_completion_tokens, _or(body.max_tokens, limits.answer))
    how = sampling(body, max(most, 1))
    logprobs = _or(body.top_logprobs, 0) if body.logprobs else None
    return request(served, ids, body, how, limits, tenant, logprobs)


def conversation(tokenizer: Tokenizer, said: Sequence[Said], template: str | None = None) -> list[int]:
    """Turn messages to ids, up to where the assistant speaks; a last message of the assistant is continued."""
    messages = messages_of(said)
    known = chosen(tokenizer, template)
    for i, message in enumerate(messages):
        if message.role not in known.roles:
            here = ", ".join(known.roles)
            raise Problem(
                400, f"messages[{i}].role: {message.role!r} has no place in {known.name}; there are {here}",
                param=f"messages[{i}].role", code="invalid_value",
            )  # fmt: skip
    if messages[-1].role != "assistant":
        return render(tokenizer, messages, template=template, answer=True).ids
    if len(messages) < 2 or messages[-2].role == "assistant":
        raise Problem(400, "an answer to be continued must follow a message of another role", param="messages")
    ids = render(tokenizer, messages[:-1], template=template, answer=True).ids
    begun = messages[-1].content.lstrip() if known.trim else messages[-1].content
    lead = known.turns["assistant"].lead
    return ids + tokenizer.encode_parts([(lead, True), (begun, False)], after=ids[-1])


def messages_of(said: Sequence[Said]) -> list[Message]:
    """Return the messages as the tokenizer wants them; `developer` is OpenAI's newer word for `system`."""
    return [Message("system" if m.role == "developer" else m.role, m.text) for m in said]


def prompts(served: Served, body: CompletionRequest) -> list[list[int]]:
    """Return the ids of every prompt: texts are encoded after the begin token, ids are taken as they are."""
    given = body.prompt
    if isinstance(given, str):
        return [text_ids(served.tokenizer, given, body.add_special_tokens)]
    if isinstance(given[0], int):
        return [[id for id in given if isinstance(id, int)]]
    return [
        text_ids(served.tokenizer, one, body.add_special_tokens) if isinstance(one, str) else list(_list(one))
        for one in given
    ]


def _list(one: object) -> list[int]:
    assert isinstance(one, list)
    return one


def text_ids(tokenizer: Tokenizer, text: str, begin: bool | None) -> list[int]:
    """Encode a text, after the begin token unless `begin` is False."""
    prefix = tokenizer.wrap()[0] if begin is not False else []
    return [*prefix, *tokenizer.encode(text)]


def completions(served: Served, body: CompletionRequest, limits: Limits, tenant: str) -> list[Request]:
    """One engine request per prompt."""
    most = _or(body.max_tokens, LEGACY_ANSWER)
    how = sampling(body, max(most, 1))
    found = []
    for i, ids in enumerate(prompts(served, body)):
        if not ids:
            raise TerakoyaError("prompt" if isinstance(body.prompt, str) else f"prompt[{i}]", "is empty")
        found.append(request(served, ids, body, how, limits, tenant, body.logprobs))
    return found
