"""Chat templates that came with a checkpoint: rendered, metered, to parts that say who wrote them.

The language is our own reading of the subset of Jinja that published templates use. jinja2 turns a template into
Python and runs it; its sandbox has been left more than once, and it cannot tell the template's text from the user's.
Here a control token counts only where every character of it was written by the template.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from terakoya.engine.template_cut import TemplateError
from terakoya.engine.template_parse import parse
from terakoya.engine.template_run import Runner
from terakoya.engine.template_value import Fuel, Text, size
from terakoya.tokenizer import Tokenizer

Part = tuple[str, bool]


class Jinja:
    """A template, parsed. Raises TemplateError (a TerakoyaError) where it is none, or is not allowed."""

    def __init__(self, source: str) -> None:
        self.body = parse(source)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        names: Mapping[str, str] | None = None,
        answer: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        now: datetime.datetime | None = None,
        **more: Any,
    ) -> list[Part]:
        """Render -> parts (text, whether the template wrote it).

        `names` are control tokens by what they are for (`bos_token`, `eos_token`); everything else, the tools and
        `more` too, may be anyone's words.
        """
        variables: dict[str, Any] = {name: Text(token) for name, token in (names or {}).items()}
        variables |= {"messages": list(messages), "add_generation_prompt": answer, "tools": tools, "documents": None}
        try:
            run = Runner(variables | more, _fuel(variables | more), now or datetime.datetime.now())
            return parts(run.run(self.body))
        except TemplateError:
            raise
        except RecursionError:
            raise TemplateError("calls itself too deep") from None
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, MemoryError) as error:
            raise TemplateError(f"fails: {type(error).__name__}: {str(error)[:200]}") from None


def _fuel(variables: Mapping[str, Any]) -> Fuel:
    """Allow some work, and more for a longer conversation."""
    given = Fuel(1 << 40, 1 << 40)
    characters = size(dict(variables), given)
    return Fuel(200_000 + 200 * ((1 << 40) - given.steps), 2_000_000 + 20 * characters)


def parts(text: Text) -> list[Part]:
    """Cut where the author changes."""
    found: list[Part] = []
    begin = 0
    while begin < len(text):
        mark = text.marks[begin]
        end = text.marks.find(1 - mark, begin)
        end = len(text) if end < 0 else end
        found.append((text.text[begin:end], bool(mark)))
        begin = end
    return found


def encode(tokenizer: Tokenizer, template: Jinja, messages: Sequence[Mapping[str, Any]], **more: Any) -> list[int]:
    """Render a conversation to ids, with exactly one bos where the template or the tokenizer wants one."""
    by_id = {id: name for name, id in tokenizer.specials.items()}
    ends = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad}
    names = {key: by_id[id] for key, id in ends.items() if id is not None}
    ids = tokenizer.encode_parts(template.render(messages, names=names, **more))
    first = tokenizer.wrap()[0]
    while tokenizer.bos is not None and ids[:2] == [tokenizer.bos] * 2:
        ids = ids[1:]
    if tokenizer.bos is not None and first == [tokenizer.bos] and tokenizer.wrap()[1] and ids[:1] != first:
        ids = first + ids
    return ids
