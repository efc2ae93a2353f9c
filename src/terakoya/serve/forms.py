"""The form an answer must have, compiled; the last ones asked for are kept."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any

from terakoya.engine.grammar import Compiler, Grammar
from terakoya.serve.fields import Choice, Format, JsonObject, JsonSchema, Lark, PlainText, Regex
from terakoya.tokenizer import Tokenizer

KEPT = 64


class Forms:
    """Grammars of one tokenizer. Compiling is done by whoever asks, one at a time, never by the engine."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._compiler: Compiler | None = None
        self._known: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, form: Format | None) -> Grammar | None:
        """Compile what `response_format` says; None for plain text. Raises EngineError "grammar" for what cannot be."""
        if form is None or isinstance(form, PlainText):
            return None
        return self._compiled(form.model_dump_json(by_alias=True), form)

    def schema(self, schema: dict[str, Any]) -> Grammar:
        """Compile a JSON schema."""
        return self._compiled(json.dumps(schema, sort_keys=True), schema)

    def _compiled(self, key: str, form: Any) -> Grammar:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            self._compiler = self._compiler or Compiler(self._tokenizer)
            found = self._known[key] = _compile(self._compiler, form)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return found


def _compile(compiler: Compiler, form: Any) -> Grammar:
    match form:
        case JsonObject():
            return compiler.json()
        case JsonSchema():
            return compiler.json(form.json_schema.schema_)
        case Regex():
            return compiler.regex(form.pattern)
        case Lark():
            return compiler.lark(form.grammar)
        case Choice():
            return compiler.choice(form.choices)
    return compiler.json(form)
