"""Answers of a given form: JSON of a schema, a regular expression, a grammar; by llguidance, one mask per token.

A grammar is compiled by whoever asks for it, never by the stepping thread, and only after its size has been looked
at; llguidance's own fuel bounds every step after that. What breaks a limit ends one request and no other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from terakoya.engine.request import EngineError
from terakoya.errors import MissingExtra

if TYPE_CHECKING:
    from terakoya.tokenizer import Tokenizer

BYTES, NODES, DEPTH = 200_000, 10_000, 48  # of a schema
ITEMS, REPEATS, PATTERN = 500, 10_000, 1_000  # of one list or object; of a bound; characters of an expression
SPACES = r"[\x20\x0A\x0D\x09]{0,8}"
_BOUNDS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_COUNTED = re.compile(r"\{(\d+)(?:,(\d*))?\}")


class Grammar:
    """A compiled form; one `matcher` per answer."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def matcher(self) -> Matcher:
        """Begin an answer."""
        return Matcher(self._matcher.deep_copy())


class Matcher:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped()

    def mask(self, vocab: int) -> Tensor:
        """Return which ids may come next: (V,) bool."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise EngineError("grammar", "grammar", f"broke off: {_line(self._matcher.get_error())}")
        allowed = np.unpackbits(bits, bitorder="little")[:vocab].astype(bool)
        return torch.from_numpy(np.pad(allowed, (0, vocab - len(allowed))))

    def take(self, id: int) -> None:
        """Go on with the id that was drawn."""
        if not self._matcher.consume_token(id):
            raise EngineError("grammar", "grammar", f"broke off: {_line(self._matcher.get_error())}")


class Compiler:
    """Compile grammars for one tokenizer; its vocabulary is handed over once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        try:
            import llguidance
        except ImportError:
            raise MissingExtra("llguidance", "grammar") from None
        self._library = llguidance
        self._tokenizer = llguidance.LLTokenizer(_Vocabulary(tokenizer), eos_token=sorted(tokenizer.stops))  # type: ignore[arg-type]
        self._limits = llguidance.LLParserLimits(
            step_lexer_fuel=200_000,
            step_max_items=50_000,
            max_lexer_states=20_000,
            max_grammar_size=50_000,
            verbose_errors=False,
        )

    def json(self, schema: dict[str, Any] | bool | None = None) -> Grammar:
        """Compile a JSON schema; None: any object."""
        schema = {"type": "object"} if schema is None else schema
        measure(schema)
        options = {"whitespace_pattern": SPACES}
        return self._compile("json_schema", json.dumps(schema), options)

    def regex(self, pattern: str) -> Grammar:
        """Compile a regular expression that the whole answer matches."""
        _expression("regex", pattern)
        return self._compile("regex", pattern)

    def lark(self, text: str) -> Grammar:
        """Compile a context-free grammar in Lark's notation."""
        if len(text) > BYTES:
            raise _refused("grammar", f"has {len(text):,} characters", BYTES)
        return self._compile("lark", text)

    def choice(self, options: Sequence[str]) -> Grammar:
        """Compile a choice between texts, as they are."""
        if not options or len(options) > ITEMS:
            raise _refused("choice", f"has {len(options)} options", ITEMS)
        return self._compile("lark", "start: " + " | ".join(json.dumps(o, ensure_ascii=False) for o in options))

    def _compile(self, kind: Literal["json_schema", "regex", "lark"], text: str, options: Any = None) -> Grammar:
        matcher_of = self._library.LLMatcher
        try:
            if kind == "json_schema":
                grammar = matcher_of.grammar_from_json_schema(text, overrides=options)
            else:
                grammar = getattr(matcher_of, f"grammar_from_{kind}")(text)
            matcher = matcher_of(self._tokenizer, grammar, log_level=0, limits=self._limits)
        except ValueError as error:
            raise EngineError("grammar", kind, _line(str(error))) from None
        if matcher.is_error():
            raise EngineError("grammar", kind, _line(matcher.get_error()))
        probe = matcher.deep_copy()
        probe.compute_bitmask()
        if probe.is_error():
            raise EngineError("grammar", kind, _line(probe.get_error()))
        return Grammar(matcher)


def measure(schema: Any) -> None:
    """Refuse a schema that is too large, too deep or counts too far, before anything compiles it."""
    stack: list[tuple[Any, int]] = [(schema, 0)]
    nodes = size = 0
    while stack:
        node, depth = stack.pop()
        nodes += 1
        if depth > DEPTH:
            raise _refused("json_schema", "is nested too deep", DEPTH)
        if nodes > NODES:
            raise _refused("json_schema", "has too many parts", NODES)
        if isinstance(node, str):
            size += len(node)
        if isinstance(node, dict | list) and len(node) > ITEMS:
            raise _refused("json_schema", f"has {len(node):,} entries in one place", ITEMS)
        if isinstance(node, list):
            stack += [(v, depth + 1) for v in node]
        if isinstance(node, dict):
            _keywords(node)
            size += sum(len(str(k)) for k in node)
            stack += [(v, depth + 1) for v in node.values()]
        if size > BYTES:
            raise _refused("json_schema", "is too long", BYTES)


def _keywords(node: dict[str, Any]) -> None:
    if "x-guidance" in node:
        raise EngineError("grammar", "json_schema", "has x-guidance, which is not for requests")
    for key in _BOUNDS:
        if isinstance(value := node.get(key), int | float) and not 0 <= value <= REPEATS:
            raise _refused(f"json_schema {key}", f"is {value}", REPEATS)
    if isinstance(pattern := node.get("pattern"), str):
        _expression("json_schema pattern", pattern)


def _expression(place: str, pattern: str) -> None:
    if len(pattern) > PATTERN:
        raise _refused(place, f"has {len(pattern):,} characters", PATTERN)
    product = 1
    for low, high in _COUNTED.findall(pattern):
        product *= max(int((high or low)[:9]), 1)
    if product > REPEATS:
        raise _refused(place, f"repeats up to {product:,} times", REPEATS)


def _refused(place: str, problem: str, most: int) -> EngineError:
    return EngineError("grammar", place, f"{problem}, at most {most:,}")


def _line(text: str) -> str:
    return " ".join(text.replace("\0", " ").split())[:300]


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True
    _accepts_bytes = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        names = {id: name for name, id in tokenizer.specials.items()}
        self.tokens = [
            names[i].encode() if i in names else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)
        ]
        self.special_token_ids = sorted(names)
        self.bos_token_id = tokenizer.bos
        self.eos_token_id = min(tokenizer.stops)
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)
