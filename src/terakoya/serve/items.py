"""The output of /v1/responses: items, and the events that tell of them as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from terakoya.serve.job import Job

if TYPE_CHECKING:
    from terakoya.serve.responses import ResponsesRequest

Event = tuple[str, dict[str, Any]]
PARTS = {"message": "output_text", "reasoning": "reasoning_text"}
PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


class Output:
    """The items of one answer. A whole answer goes through it in one piece, a stream in many."""

    def __init__(self, key: str) -> None:
        self._key = key
        self.items: list[dict[str, Any]] = []
        self._open: str | None = None  # the kind of the item that still grows
        self._text = ""

    def take(self, said: dict[str, Any]) -> list[Event]:
        """Take a delta of chat; return the events that it makes."""
        if "tool_calls" in said:
            return [event for call in said["tool_calls"] for event in self._call(call)]
        kind = "reasoning" if "reasoning_content" in said else "message"
        text = said.get("reasoning_content", said.get("content"))
        if not text:
            return []
        events = [] if self._open == kind else [*self._close("completed"), *self._begin(kind)]
        self._text += text
        return [*events, (f"response.{PARTS[kind]}.delta", self._place() | {"delta": text} | _logprobs(kind))]

    def end(self, finish: str) -> list[Event]:
        """Close what is open; an answer that says nothing is an empty message."""
        events = [] if self.items else self._begin("message")
        return events + self._close(status(finish))

    def reasoning(self) -> str:
        """Return all that was thought."""
        return "".join(p["text"] for i in self.items if i["type"] == "reasoning" for p in i["content"])

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, "content_index": 0}

    def _new(self, kind: str, more: dict[str, Any]) -> Event:
        name = f"{PREFIXES[kind]}_{self._key}{len(self.items):02x}"
        self.items.append({"type": kind, "id": name, "status": "in_progress", **more})
        return "response.output_item.added", {"output_index": len(self.items) - 1, "item": dict(self.items[-1])}

    def _begin(self, kind: str) -> list[Event]:
        self._open, self._text = kind, ""
        more = {"role": "assistant"} if kind == "message" else {"summary": []}
        added = self._new(kind, more | {"content": []})
        return [added, ("response.content_part.added", self._place() | {"part": _part(kind, "")})]

    def _close(self, how: str) -> list[Event]:
        kind = self._open
        if kind is None:
            return []
        part = _part(kind, self._text)
        self.items[-1] |= {"content": [part], "status": how}
        self._open = None
        return [
            (f"response.{PARTS[kind]}.done", self._place() | {"text": self._text} | _logprobs(kind)),
            ("response.content_part.done", self._place() | {"part": part}),
            self._done(),
        ]

    def _call(self, call: dict[str, Any]) -> list[Event]:
        events = self._close("completed")
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        events.append(self._new("function_call", {"call_id": call["id"], "name": name, "arguments": ""}))
        self.items[-1] |= {"arguments": arguments, "status": "completed"}
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return [
            *events,
            ("response.function_call_arguments.delta", place | {"delta": arguments}),
            ("response.function_call_arguments.done", place | {"name": name, "arguments": arguments}),
            self._done(),
        ]

    def _done(self) -> Event:
        return "response.output_item.done", {"output_index": len(self.items) - 1, "item": self.items[-1]}


def status(finish: str | None) -> str:
    """Return how a response stands that ended so; None: it has not."""
    return "in_progress" if finish is None else "incomplete" if finish == "length" else "completed"


def _part(kind: str, text: str) -> dict[str, Any]:
    more = {"annotations": [], "logprobs": []} if kind == "message" else {}
    return {"type": PARTS[kind], "text": text, **more}


def _logprobs(kind: str) -> dict[str, Any]:
    return {"logprobs": []} if kind == "message" else {}


def written(job: Job, body: ResponsesRequest, output: Output, finish: str | None) -> dict[str, Any]:
    """Write the whole response, as far as it has come; fields of the request come back as they were applied."""
    how = status(finish)
    choice = body.tool_choice
    form = body.text.format if body.text else None
    return {
        "id": f"resp_{job.key}",
        "object": "response",
        "created_at": job.created,
        "status": how,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if how == "incomplete" else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": job.served.name,
        "output": [] if finish is None else output.items,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
        "tool_choice": "auto" if choice is None else choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "metadata": body.metadata or {},
        "user": body.user,
        "usage": None if finish is None else _usage(job, output.reasoning()),
    }


def _usage(job: Job, reasoning: str) -> dict[str, Any]:
    usage = job.usage()
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": usage["prompt_tokens_details"],
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": len(job.served.tokenizer.encode(reasoning)) if reasoning else 0},
        "total_tokens": usage["total_tokens"],
    }
