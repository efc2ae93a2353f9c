"""From what a request says to what the engine is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from terakoya.engine.grammar import Grammar
from terakoya.engine.regions import Region, Regions, marks, opened
from terakoya.engine.request import Request
from terakoya.engine.sampling import Sampling
from terakoya.engine.template import encode
from terakoya.errors import TerakoyaError
from terakoya.serve import tools as toolbox
from terakoya.serve.fields import ChatRequest, CompletionRequest, Drawing, Tool
from terakoya.serve.fields import Message as Said
from terakoya.serve.problem import Problem
from terakoya.serve.settings import Limits
from terakoya.serve.shelf import Served
from terakoya.tokenizer import Tokenizer, render
from terakoya.tokenizer.chat import chosen
from terakoya.train.objectives.signs import Signs

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
    served: Served,
    ids: Sequence[int],
    body: Drawing,
    how: Sampling,
    limits: Limits,
    tenant: str,
    logprobs: int | None,
    grammar: Grammar | None = None,
    show: frozenset[int] = frozenset(),
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
        grammar=grammar or served.forms.of(body.response_format),
        show=show,
    )


@dataclass(frozen=True)
class Talk:
    """A chat request for the engine, and how its answer is to be read."""

    request: Request
    regions: tuple[Region, ...] = ()
    inside: Region | None = None
    bare: tuple[str, ...] = ()
    single: bool = False  # one call at most: what comes after it is left out

    def reader(self) -> Regions:
        """Begin to read one answer."""
        return Regions(self.regions, inside=self.inside, bare=self.bare)


def chat(served: Served, body: ChatRequest, limits: Limits, tenant: str) -> Talk:
    """Write the conversation down in ids, and ask for what comes next."""
    if served.loaded.spec.sort == "encoder-decoder":
        problem = f"{served.name} writes one text from another, and does not talk: ask /v1/completions"
        raise Problem(400, problem, param="model", code="model_not_supported")
    tools = toolbox.wanted(body)
    ids = conversation(served, body.messages, body.chat_template, tools)
    regions = toolbox.regions(served.regions, tools)
    forced = toolbox.forced(body)
    grammar = None if forced is None else served.forms.schema(forced)
    inside = None
    if any(r.kind == "reasoning" for r in regions):
        inside = opened(regions, served.tokenizer.decode(ids[-16:], specials=True))
    most = _or(body.max_completion_tokens, _or(body.max_tokens, limits.answer))
    logprobs = _or(body.top_logprobs, 0) if body.logprobs else None
    asked = request(
        served, ids, body, sampling(body, most), limits, tenant, logprobs, grammar, marks(regions, served.tokenizer)
    )
    names = tuple(t.function.name for t in tools)
    return Talk(asked, regions, inside, names, single=body.parallel_tool_calls is False)


def conversation(
    served: Served, said: Sequence[Said], template: str | None = None, tools: Sequence[Tool] = ()
) -> list[int]:
    """Turn messages to ids, up to where the assistant speaks; a last message of the assistant is continued."""
    begun = None
    if said[-1].role == "assistant" and not said[-1].tool_calls:
        if len(said) < 2 or said[-2].role == "assistant":
            raise Problem(400, "an answer to be continued must follow a message of another role", param="messages")
        said, begun = said[:-1], said[-1].text
    tokenizer, jinja = served.tokenizer, served.jinja
    with_tools = bool(tools) or any(m.tool_calls or m.role == "tool" for m in said)
    ours = tokenizer.template is not None and not (with_tools and "tools" in (tokenizer.jinja or ""))
    if jinja is not None and template is None and not ours:
        rows = [_row(m) for m in said]
        ids = encode(tokenizer, jinja, rows, tools=toolbox.described(tools) or None)
        return ids if begun is None else ids + tokenizer.encode_parts([(begun, False)], after=ids[-1])
    known = chosen(tokenizer, template)
    messages = toolbox.plainly(said, tools, known.roles)
    for i, message in enumerate(messages):
        if message.role not in known.roles:
            here = ", ".join(known.roles)
            problem = f"messages[{i}].role: {message.role!r} has no place in {known.name}; there are {here}"
            raise Problem(400, problem, param=f"messages[{i}].role", code="invalid_value")
    ids = render(tokenizer, messages, template=template, answer=True).ids
    if begun is None:
        return ids
    lead = known.turns["assistant"].lead
    return ids + tokenizer.encode_parts([(lead, True), (begun.lstrip() if known.trim else begun, False)], after=ids[-1])


def _row(message: Said) -> dict[str, Any]:
    """A message as templates want it: the arguments of calls as objects, the parts of a text joined."""
    row: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.tool_calls:
        row["tool_calls"] = [
            {
                "id": call.id or "",
                "type": "function",
                "function": {"name": call.function.name, "arguments": _object(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        row["tool_call_id"] = message.tool_call_id
    if message.reasoning_content:
        row["reasoning_content"] = message.reasoning_content
    return row


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise Problem(400, "the arguments of a tool call must be JSON", param="messages") from None


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
        asked = request(served, ids, body, how, limits, tenant, body.logprobs)
        found.append(_rewriting(served, asked) if served.loaded.spec.sort == "encoder-decoder" else asked)
    return found


def _rewriting(served: Served, asked: Request) -> Request:
    """Hand the prompt to the encoder, as `terakoya generate` does; the answer begins from the start token."""
    signs = Signs(served.tokenizer)
    start = served.loaded.config.get("decoder_start_token_id")
    start = start if isinstance(start, int) else signs.start
    ends = asked.stop_ids if asked.ignore_end else asked.stop_ids | {signs.end}
    before, after = signs.source
    return replace(asked, prompt=(start,), source=(*before, *asked.prompt, *after), stop_ids=ends)
