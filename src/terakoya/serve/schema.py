"""The schema at /openapi.json: what FastAPI knows, and how errors and streams really look here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
LINES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}}
TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
ERROR = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string", "description": "one line"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "the field that is to blame"},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
OLLAMA_ERROR = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {"error": {"type": "string"}},
}
UNUSED = ("HTTPValidationError", "ValidationError")


class App(FastAPI):
    """FastAPI with a schema that says 400 where we say 400."""

    def openapi(self) -> dict[str, Any]:
        """Return the schema, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = _corrected(
                get_openapi(title=self.title, version=self.version, description=self.description, routes=self.routes)
            )
        return self.openapi_schema


def _corrected(schema: dict[str, Any]) -> dict[str, Any]:
    known = schema.setdefault("components", {}).setdefault("schemas", {})
    for name in UNUSED:
        known.pop(name, None)
    known["Error"], known["OllamaError"] = ERROR, OLLAMA_ERROR
    for path, methods in schema["paths"].items():
        shape = {"$ref": f"#/components/schemas/{'OllamaError' if path.startswith('/api/') else 'Error'}"}
        said = {"description": "refused, with the reason", "content": {"application/json": {"schema": shape}}}
        for route in methods.values():
            route["responses"].pop("422", None)
            route["responses"] |= {"4XX": said, "5XX": said | {"description": "the server's fault, or it is closing"}}
    return schema
