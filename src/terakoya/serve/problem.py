"""What goes wrong with a request, with the status and the shape that clients of OpenAI expect."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from terakoya.engine.request import EngineError
from terakoya.errors import TerakoyaError

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
STATUS = {"overloaded": 429, "too long": 400, "closed": 503, "grammar": 400, "memory": 503, "step": 500, "numbers": 500}
CODES = {"too long": "context_length_exceeded", "overloaded": "overloaded"}
# How the engine's names are called in a request.
FIELDS = {
    "sampling.presence": "presence_penalty",
    "sampling.frequency": "frequency_penalty",
    "sampling.repetition": "repetition_penalty",
    "sampling.typical": "typical_p",
    "request.logprobs": "top_logprobs",
    "request.bad_words": "bad_words",
    "chat template": "chat_template",
    "request": "prompt",
    "token id": "prompt",
    "json_schema": "response_format",
    "regex": "response_format",
    "lark": "response_format",
    "choice": "response_format",
    "grammar": "response_format",
}


class Problem(Exception):
    """A request that gets no answer: a status, a message, and the field that is to blame."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {} if retry is None else {"retry-after": str(retry)}

    def body(self) -> dict[str, Any]:
        """Return the error as OpenAI writes it."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def problem_of(error: TerakoyaError, *, retry: int = 1) -> Problem:
    """Turn an error of the lower layers into one of HTTP."""
    place = error.place
    param = FIELDS.get(place, place.removeprefix("sampling.").removeprefix("request."))
    if match := re.match(r"message (\d+)( role)?$", place):
        param = f"messages[{match[1]}]{'.role' if match[2] else ''}"
    if not isinstance(error, EngineError):
        return Problem(400, str(error), param=param, code="invalid_value")
    status = STATUS[error.kind]
    message = str(error) if status < 500 or error.kind == "closed" else f"the answer broke off ({error.kind})"
    return Problem(
        status,
        message,
        param="messages" if error.kind == "too long" else "response_format" if error.kind == "grammar" else None,
        code=CODES.get(error.kind),
        retry=retry if status in (429, 503) else None,
    )


def invalid(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """Turn what pydantic found into one line that names the first field."""
    # Of a union, what was really given: the error that lies deepest.
    first = max(errors, key=lambda e: (e["type"] != "extra_forbidden", len(e["loc"])))
    path = ""
    for part in first["loc"][1:] if first["loc"] and first["loc"][0] in ("body", "query") else first["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in ("str", "int", "float", "bool", "dict") and part.replace("_", "").isalnum():
            path += f".{part}" if path else part
    if first["type"] == "extra_forbidden":
        return Problem(400, f"{path}: is not a field that is known here", param=path, code="unknown_field")
    if first["type"] == "json_invalid":
        return Problem(400, "the body is not JSON", code="invalid_json")
    if first["type"] == "union_tag_invalid":
        named = f"{path}.type" if path else "type"
        problem = f"{named}: {first['ctx']['tag'][:60]!r} is not one of {first['ctx']['expected_tags']}"
        return Problem(400, problem, param=named, code="invalid_value")
    code = "missing_field" if first["type"] == "missing" else "invalid_value"
    return Problem(400, f"{path or 'body'}: {_plain(first['msg'])}", param=path or None, code=code)


def _plain(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message[:1].lower() + message[1:]
