"""Chat templates as data: what stands round each role's words, and which part a model learns to say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Turn:
    """One role: `before · lead · content · tail · after`. An assistant is trained on lead, content and tail.

    `{bos}` and `{eos}` in these texts (never in content) mean the tokenizer's own.
    """

    before: str
    after: str = ""
    lead: str = ""
    tail: str = ""


@dataclass(frozen=True)
class Template:
    """A way of writing conversations down.

    `system` is said when the first message is no system message. `fold` puts the system text inside the first user
    turn, between these two texts, for families that have no system role. `controls` are the control tokens that the
    texts rely on; without them the template is refused.
    """

    name: str
    turns: Mapping[str, Turn]
    controls: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    opening: str = ""
    system: str | None = None
    fold: tuple[str, str] | None = None
    trim: bool = False
    alternate: bool = False  # user, assistant, user, … and nothing else

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles a message may have."""
        return (*(("system",) if self.fold else ()), *self.turns)


def _turns(assistant: Turn, **others: Turn) -> Mapping[str, Turn]:
    return MappingProxyType({**others, "assistant": assistant})


def _chatml(name: str, system: str | None = None) -> Template:
    roles = {role: Turn(f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "tool")}
    return Template(
        name,
        _turns(Turn("<|im_start|>assistant\n", "\n", tail="<|im_end|>"), **roles),
        controls=("<|im_start|>", "<|im_end|>"),
        stops=("<|im_end|>",),
        system=system,
    )


def _headed(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


_ALL = (
    _chatml("chatml"),
    _chatml("smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    _chatml("qwen2", "You are a helpful assistant."),
    _chatml("qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    Template(
        "llama2",
        _turns(Turn("", lead=" ", tail=" {eos}"), user=Turn("{bos}[INST] ", " [/INST]")),
        fold=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        trim=True,
        alternate=True,
    ),
    Template(
        "mistral",
        _turns(Turn("", tail="{eos}"), user=Turn("[INST] ", " [/INST]")),
        opening="{bos}",
        fold=("", "\n\n"),
        alternate=True,
    ),
    Template(
        "llama3",
        _turns(
            Turn(_headed("assistant"), tail="<|eot_id|>"),
            system=Turn(_headed("system"), "<|eot_id|>"),
            user=Turn(_headed("user"), "<|eot_id|>"),
        ),
        controls=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        stops=("<|eot_id|>",),
        opening="{bos}",
        trim=True,
    ),
    Template(
        "gemma",
        _turns(
            Turn("<start_of_turn>model\n", "\n", tail="<end_of_turn>"),
            user=Turn("<start_of_turn>user\n", "<end_of_turn>\n"),
        ),
        controls=("<start_of_turn>", "<end_of_turn>"),
        stops=("<end_of_turn>",),
        opening="{bos}",
        fold=("", "\n\n"),
        trim=True,
        alternate=True,
    ),
    Template(
        "zephyr",
        _turns(
            Turn("<|assistant|>\n", "\n", tail="{eos}"),
            system=Turn("<|system|>\n", "{eos}\n"),
            user=Turn("<|user|>\n", "{eos}\n"),
        ),
    ),
    Template(
        "phi3",
        _turns(
            Turn("<|assistant|>\n", "\n", tail="<|end|>"),
            system=Turn("<|system|>\n", "<|end|>\n"),
            user=Turn("<|user|>\n", "<|end|>\n"),
        ),
        controls=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        stops=("<|end|>",),
    ),
    Template(
        "vicuna",
        _turns(Turn("ASSISTANT:", lead=" ", tail="{eos}"), system=Turn("", " "), user=Turn("USER: ", " ")),
        opening="{bos}",
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    ),
    Template(
        "alpaca",
        _turns(
            Turn("### Response:", "\n\n", tail="{eos}"),
            system=Turn("", "\n\n"),
            user=Turn("### Instruction:\n", "\n\n"),
        ),
        system="Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.",
    ),
)
TEMPLATES: Mapping[str, Template] = MappingProxyType({t.name: t for t in _ALL})

# Sha256 of published Jinja sources; each rendered the same text as our data over 310 to 620 conversations.
_PUBLISHED: Mapping[str, str] = MappingProxyType(
    {
        "fcf7a096fe99a48fd9ad2b250bf9237e96e8f48bffec1c7ea4d3f225176cd40e": "chatml",
        "153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3": "chatml",
        "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": "smollm2",
        "26a59556925c987317ce5291811ba3b7f32ec4c647c400c6cc7e3a9993007ba7": "mistral",
        "1e51d5c0fec2f83da1953fb850b7b532b7da02d0dc35f9201e671e0b9a35a123": "gemma",
    }
)


def recognise(jinja: str | None) -> str | None:
    """The name of the template that a Jinja text is known to be; None for every other text. Nothing is guessed."""
    if not jinja:
        return None
    known = _PUBLISHED.get(hashlib.sha256(jinja.encode("utf-8", "replace")).hexdigest())
    return known or next((t.name for t in _ALL if to_jinja(t) == jinja), None)


def to_jinja(template: Template) -> str:
    """Write the template in Jinja, as transformers and other programs read it."""
    lines = [
        "{%- if messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] -%}"
        "{%- set rest = messages[1:] -%}{%- else -%}"
        f"{{%- set system = {_quoted(template.system) if template.system is not None else 'none'} -%}}"
        "{%- set rest = messages -%}{%- endif -%}",
        _said(template.opening),
    ]
    if template.fold is None and "system" in template.turns:
        turn = template.turns["system"]
        lines.append(
            f"{{%- if system is not none -%}}{_said(turn.before, turn.lead)}"
            f"{_content(template, 'system')}{_said(turn.tail, turn.after)}{{%- endif -%}}"
        )
    lines.append("{%- for message in rest -%}")
    if template.alternate:
        lines.append(
            "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
            "{{- raise_exception('roles must alternate: user, assistant, user, …') -}}{%- endif -%}"
        )
    words = _content(template, "message['content']")
    for i, (role, turn) in enumerate(template.turns.items()):
        folded = ""
        if template.fold and role == "user":
            inside = f"{_said(template.fold[0])}{_content(template, 'system')}{_said(template.fold[1])}"
            folded = f"{{%- if loop.first and system is not none -%}}{inside}{{%- endif -%}}"
        lines.append(
            f"{{%- {'elif' if i else 'if'} message['role'] == {_quoted(role)} -%}}{_said(turn.before)}{folded}"
            f"{_said(turn.lead)}{words}{_said(turn.tail, turn.after)}"
        )
    lines.append("{%- else -%}{{- raise_exception('unknown role ' + message['role']) -}}{%- endif -%}{%- endfor -%}")
    lines.append(f"{{%- if add_generation_prompt -%}}{_said(template.turns['assistant'].before)}{{%- endif -%}}")
    return "\n".join(line for line in lines if line)


def _content(template: Template, name: str) -> str:
    return f"{{{{- {name}{' | trim' if template.trim else ''} -}}}}"


def _said(*texts: str) -> str:
    text = "".join(texts)
    if not text:
        return ""
    found = _quoted(text).replace("{bos}", '" + bos_token + "').replace("{eos}", '" + eos_token + "')
    return "{{- " + found.replace('"" + ', "").replace(' + ""', "") + " -}}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
