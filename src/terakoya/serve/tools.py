"""Tools: how a model is told of them, and how it is made to call one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from terakoya.engine.regions import REGIONS, Region
from terakoya.serve.fields import ChatRequest, NamedTool, Tool
from terakoya.serve.fields import Message as Said
from terakoya.tokenizer import Message

# For models whose template has no words for tools: the convention that most small models were trained on (Hermes).
TOLD = """You may call functions to help with the question. The functions, as JSON schemas:
<tools>
{tools}
</tools>
To call one, answer with its name and arguments as JSON inside <tool_call></tool_call>:
<tool_call>
{{"name": "function-name", "arguments": {{"argument": "value"}}}}
</tool_call>"""
MARKED = next(r for r in REGIONS if r.open == "<tool_call>")


def wanted(body: ChatRequest) -> list[Tool]:
    """Return the tools that may be called."""
    return [] if body.tool_choice == "none" else list(body.tools or ())


def forced(body: ChatRequest) -> dict[str, Any] | None:
    """Return the schema of a call that must be made; None where the model may choose."""
    tools = wanted(body)
    if isinstance(body.tool_choice, NamedTool):
        tools = [t for t in tools if t.function.name == body.tool_choice.function.name]
    elif body.tool_choice != "required":
        return None
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": t.function.name},
                "arguments": t.function.parameters or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for t in tools
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def regions(known: Sequence[Region], tools: Sequence[Tool]) -> tuple[Region, ...]:
    """Return the marks to look for: the model's own, and ours where it has none for tools that are there."""
    found = [r for r in known if tools or r.kind != "tool"]
    if tools and not any(r.kind == "tool" for r in found):
        found.append(MARKED)
    return tuple(found)


def described(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Return the tools as templates want them."""
    return [tool.model_dump(exclude_none=True) for tool in tools]


def plainly(messages: Sequence[Said], tools: Sequence[Tool], roles: Sequence[str]) -> list[Message]:
    """Say everything about tools in words, for a template that has no place for them."""
    found: list[Message] = []
    for message in messages:
        text = message.text
        for call in message.tool_calls or ():
            arguments = _loaded(call.function.arguments)
            said = json.dumps({"name": call.function.name, "arguments": arguments}, ensure_ascii=False)
            text += f"{chr(10) if text else ''}<tool_call>\n{said}\n</tool_call>"
        role = "system" if message.role == "developer" else message.role
        if role == "tool" and "tool" not in roles:
            role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
        found.append(Message(role, text))
    if not tools:
        return found
    told = TOLD.format(tools="\n".join(json.dumps(t, ensure_ascii=False) for t in described(tools)))
    if found[0].role == "system":
        return [Message("system", f"{found[0].content}\n\n{told}"), *found[1:]]
    return [Message("system", told), *found]


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
