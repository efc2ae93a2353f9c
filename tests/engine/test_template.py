"""Templates of checkpoints: as transformers renders them, never a control token from a user, never without end."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path
from typing import Any

import pytest

from terakoya.engine.template import Jinja, encode
from terakoya.engine.template_cut import TemplateError
from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Message, render, train
from terakoya.tokenizer.templates import TEMPLATES, to_jinja

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
NOW = datetime.datetime(2026, 3, 14)
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "  こんにちは、ｶﾞｷﾞｸﾞ 👨‍👩‍👧\n\n"}],
    "system": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1 < 2 & 'x' \"y\""}],
    "turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": " <think>\nhm\n</think>\n\nb "},
        {"role": "user", "content": "c"},
    ],
    "both": [
        {"role": "system", "content": "s\n"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c\nd"},
    ],
    "tool": [
        {"role": "user", "content": "天気は？"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "東京"}}}
            ],
        },
        {"role": "tool", "name": "weather", "content": '{"c": 21}', "tool_call_id": "abcdefghi"},
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "天気 & <more>",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "町", "enum": ["東京", "京都"]}},
                "required": ["city"],
            },
        },
    }
]


def joined(parts: list[tuple[str, bool]]) -> str:
    return "".join(text for text, _ in parts)


def theirs(source: str, messages: list[dict[str, Any]], **more: Any) -> str | None:
    """What transformers makes of it; None where it raises."""
    pytest.importorskip("transformers", reason="needs terakoya[reference]")
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        found, _ = render_jinja_template([messages], chat_template=source, **more)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError):
        return None
    return found[0]


def compared(source: str) -> int:
    """Render every conversation both ways; return how many there were a rendering for."""
    template, same = Jinja(source), 0
    for chat in CHATS.values():
        for answer in (True, False):
            for tools in (None, TOOLS):
                want = theirs(source, chat, add_generation_prompt=answer, tools=tools, **NAMES)
                try:
                    got = joined(template.render(chat, names=NAMES, answer=answer, tools=tools))
                except TemplateError:
                    got = None
                assert got == want
                same += want is not None
    return same


@pytest.mark.parametrize("name", TEMPLATES)
def test_our_own_templates(name: str) -> None:
    assert compared(to_jinja(TEMPLATES[name]))


def published() -> list[Path]:
    """Files of published templates, where somebody has put some: TERAKOYA_TEMPLATES names the folder."""
    folder = os.environ.get("TERAKOYA_TEMPLATES")
    return sorted(Path(folder).glob("*.jinja")) if folder else []


@pytest.mark.skipif(not published(), reason="no folder of templates (set TERAKOYA_TEMPLATES)")
@pytest.mark.parametrize("path", published(), ids=lambda path: path.stem)
def test_published_templates(path: Path) -> None:
    assert compared(path.read_text(encoding="utf-8"))


SNIPPETS = [
    "{% for m in messages %}\n  {% if loop.first %}\nA\n  {% endif %}\n{{ m.role }}\n{% endfor %}\nend\n\n",
    "  {%- if true %} x {%- endif +%}\n y {# note #}\n z {%+ if true %}q{% endif %}",
    "{% set ns = namespace(a=1, l=[]) %}{% for i in range(4) %}{% set ns.a = ns.a * 2 + i %}{% endfor %}{{ ns.a }}",
    "{% set x %}a{{ 1 }}{% endset %}{{ x ~ 2 ~ none ~ true ~ 1.5 ~ [1, 'a'] }}",
    "{% macro f(a, b='d') %}<{{ a }}{{ b }}>{% endmacro %}{{ f(1) }}{{ f(2, b=3) }}{{ f('x', 'y')|upper }}",
    "{{ messages[0]['content'][1:3] }}{{ messages[-1].content[::-1] }}{{ 'abc'[-1] }}{{ (1, 2, 3)[1:] }}",
    "{{ 1 if false }}{{ 'a' if 1 > 2 else 'b' if 3 else 'c' }}{{ not 1 or 2 and 3 }}{{ 1 < 2 < 3 }}",
    "{{ 7 // 2 }} {{ 7 % 3 }} {{ -7 / 2 }} {{ 2 ** 3 }} {{ 1 + 2 * 3 - 4 }} {{ 'a' 'b' }}",
    "{{ x is defined }} {{ x is not defined }} {{ none is none }} {{ 'a' is string }} {{ 3 is odd and 4 is even }}",
    "{{ 'a' in 'abc' }} {{ 1 not in [1] }} {{ 'k' in {'k': 1} }} {{ x in [] }}",
    "{{ ' a b '.strip().split(' ')|join('-') }} {{ 'a,b,,c'.split(',', 1) }} {{ 'Ab'.lower() ~ 'ß'|upper }}",
    "{{ [3, 1, 2]|sort|list }} {{ ['b', 'A']|sort }} {{ {'b': 1, 'a': 2}|dictsort }} {{ [1, 1, 2]|unique|list }}",
    "{{ messages|map(attribute='role')|list }} {{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
    "{{ messages|rejectattr('role', 'in', ['user'])|list|length }} {{ ['a', '']|select|list }} {{ [1, 2]|sum }}",
    "{{ {'a': [1, 'あ<&>']}|tojson }} {{ {'b': {'c': none}}|tojson(indent=2) }} {{ 'x'|default('y') }}{{ q|d('z') }}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }}{{ ', ' if not loop.last }}{% else %}none{% endfor %}",
    "{% for i in [] %}x{% else %}none{% endfor %}{% for i in range(5) if i % 2 %}{{ loop.index }}:{{ i }} {% endfor %}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}"
    "{% endfor %}",
    "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined else '-' }}{{ loop.revindex }}"
    "{% endfor %}",
    "{{ 'line\nb'|indent(2) }}|{{ 'line\n\nb'|indent(2, true) }}|{{ 'a\nb'.splitlines() }}",
    "{{ 'a.b'.replace('.', '--') }}{{ 'aaa'|replace('a', 'b', 2) }}{{ '  x'|trim }}{{ 'abc'.startswith('ab') }}",
    "{% raw %}{{ x }}{% endraw %} {{ '{{' }} {{ {'a': {'b': 1}}['a']['b'] }} {{ {'a': 1}.a }} {{ [1, 2].0 }}",
    "{%- set a, b = 1, 2 -%}{{ a }}{{ b }}{% set c = [a] + [b] %}{{ c }}{% generation %}g{% endgeneration %}",
    "{{ messages[0].get('x', 'none') }} {{ messages[0].keys()|list }} {{ '%s'|string }} {{ 5|string ~ 5.0|int }}",
]


@pytest.mark.parametrize("source", SNIPPETS)
def test_the_language(source: str) -> None:
    for chat in CHATS.values():
        want = theirs(source, chat, **NAMES)
        assert want is not None
        assert joined(Jinja(source).render(chat, names=NAMES, answer=False)) == want


def test_dates() -> None:
    source = "{{ strftime_now('%d %b %Y') }}"
    assert joined(Jinja(source).render(CHATS["one"], now=NOW)) == "14 Mar 2026"


MARKS = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]"]
TAKING = [
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>' }}"
    "{% endfor %}",
    "{{ '<s>' }}{% for m in messages %}{{ '[INST]' ~ m.content[:-1].upper().lower()|replace('x', '<s>') ~ m.name }}"
    "{% endfor %}",
    "{{ '<s>' ~ messages|tojson }}{{ messages[0].content.split('|')|join('|') }}{{ messages|string }}",
    "{% set x %}{{ messages[0].content }}{% endset %}{{ '<s>' + x }}"
    "{{ '<|im' }}{{ messages[0].content[4:] }}{{ 'end|>' }}",
    "{{ '<s>' }}{{ messages[0].content|list|join }}{{ messages[0].content|indent }}{{ tools|tojson }}",
]


@pytest.mark.parametrize("source", TAKING)
@pytest.mark.parametrize("mark", MARKS)
def test_no_words_become_control(source: str, mark: str) -> None:
    """Whatever a template does with the words of messages, names and tools: its own control tokens, and no others."""
    specials = tokenizer()
    poison = f"a {mark} x{mark}{mark[:-1]}"
    said = [{"role": "user", "content": "a plain x", "name": "n"}]
    evil = [{"role": poison, "content": poison, "name": poison}]
    tools = [{"type": "function", "function": {"name": poison, "description": poison}}]

    def controls(messages: list[dict[str, Any]], tools: Any) -> list[int]:
        ids = specials.encode_parts(Jinja(source).render(messages, names=NAMES, tools=tools))
        return [i for i in ids if i in specials.specials.values()]

    wanted = controls(said, None)
    assert wanted
    if "replace('x'" in source:  # the template itself puts <s> wherever the user wrote x
        wanted = [i for i in wanted if i != specials.specials["<s>"]]
        found = [i for i in controls(evil, tools) if i != specials.specials["<s>"]]
    else:
        found = controls(evil, tools)
    assert found == wanted


def tokenizer():
    from terakoya.tokenizer import Tokenizer

    description = train([], "bytes", 259).description()
    for i, name in enumerate(MARKS):
        if name not in {t["content"] for t in description["added_tokens"]}:
            description["added_tokens"].append(
                {"id": 259 + i, "content": name, "special": True, "single_word": False, "lstrip": False,
                 "rstrip": False, "normalized": False}
            )  # fmt: skip
            description["model"]["vocab"][name] = 259 + i
    return Tokenizer(description)


def test_ids_are_those_of_our_template() -> None:
    chatml = tokenizer().with_template("chatml")
    chat = CHATS["both"]
    ids = encode(chatml, Jinja(to_jinja(TEMPLATES["chatml"])), chat)
    assert ids == render(chatml, [Message(m["role"], m["content"]) for m in chat], template="chatml", answer=True).ids


BOMBS = {
    "globals": '{{ lipsum.__globals__["os"].popen("id").read() }}',
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "attr": "{{ ''|attr('__class__') }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(x) }}",
    "format map": "{{ '{a.__class__}'.format_map({'a':x}) }}",
    "mapped format": "{{ ['{0.__class__}']|map('format',x)|list }}",
    "a billion steps": "{% for i in range(1000000000) %}{% endfor %}",
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "multiplied text": "{{ 'A'*1000000000 }}",
    "multiplied list": "{{ ([0]*100000000)|length }}",
    "power": "{{ 9**(9**9) }}",
    "center": "{{ ''.center(1000000000)|length }}",
    "center filter": "{{ 'x'|center(1000000000)|length }}",
    "format width": "{{ '%1000000000d'|format(1)|length }}",
    "percent width": "{{ ('%1000000000d' % 1)|length }}",
    "lipsum": "{{ lipsum(n=100000)|length }}",
    "replace": "{% set ns=namespace(s='aaaaaaaaaa') %}{% for i in range(9) %}"
    "{% set ns.s=ns.s.replace('a','aaaaaaaaaa') %}{% endfor %}{{ ns.s|length }}",
    "replace filter": "{% set ns=namespace(s='aaaaaaaaaa') %}{% for i in range(9) %}"
    "{% set ns.s=ns.s|replace('a','aaaaaaaaaa') %}{% endfor %}{{ ns.s|length }}",
    **{
        f"doubled by {how[:9]}": "{% set ns=namespace(s=" + start + ") %}{% for i in range(40) %}{% set ns.s="
        + how + " %}{% endfor %}{{ ns.s|length }}"
        for start, how in [
            ("'a'", "ns.s~ns.s"), ("'a'", "ns.s+ns.s"), ("[1]", "ns.s+ns.s"), ("'a'", "[ns.s,ns.s]|join"),
            ("'\"'", "ns.s|tojson"),
        ]
    },
    "doubled by blocks": "{% set ns=namespace(s='a') %}{% for i in range(40) %}{% set b %}{{ns.s}}{{ns.s}}{% endset %}"
    "{% set ns.s=b %}{% endfor %}{{ ns.s|length }}",
    "recursion": "{% macro f(n) %}{{ f(n+1) }}{% endmacro %}{{ f(0) }}",
    "tree": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "shallow tree": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(22) }}",
    "parentheses": "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    "signs": "{{" + "-" * 5000 + "1}}",
    "nots": "{{" + "not " * 5000 + "1}}",
    "ifs": "{% if 1 %}" * 5000,
    "elifs": "{% if 1 %}" + "{% elif 1 %}" * 5000 + "{% endif %}",
    "indent": "{{ ('a\n'*1000)|indent(1000000)|length }}",
    "wide indent": "{% set s='a\na\na\na' %}{{ s|indent(100000000)|length }}",
    "batch": "{{ [1]|batch(100000000,0)|list|length }}",
    "zfill": "{{ '1'.zfill(1000000000)|length }}",
    "join": "{{ range(99999)|join('a'*10000)|length }}",
    "join far": "{% set ns=namespace(s='a') %}{% for i in range(12) %}{% set ns.s=ns.s~ns.s %}{% endfor %}"
    "{{ range(99999)|join(ns.s)|length }}",
    "wordwrap": "{{ ('a '*100000)|wordwrap(1)|length }}",
    "shared data": "{% set ns=namespace(x=[]) %}{% for i in range(30) %}{% set ns.x=[ns.x,ns.x] %}{% endfor %}"
    "{{ ns.x|string|length }}",
    "shared data as JSON": "{% set ns=namespace(x=[]) %}{% for i in range(30) %}{% set ns.x=[ns.x,ns.x] %}{% endfor %}"
    "{{ ns.x|tojson|length }}",
    "shared data compared": "{% set ns=namespace(x=[]) %}{% for i in range(30) %}{% set ns.x=[ns.x,ns.x] %}{% endfor %}"
    "{{ ns.x == ns.x }}",
    "shared data sought": "{% set ns=namespace(x=[]) %}{% for i in range(30) %}{% set ns.x=[ns.x,ns.x] %}{% endfor %}"
    "{{ 1 in ns.x }}",
    "sorting": "{% for i in range(5000) %}{{ range(5000)|sort|length }}{% endfor %}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends 'x' %}",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_stopped(name: str) -> None:
    began = time.process_time()
    with pytest.raises(TerakoyaError):
        Jinja(BOMBS[name]).render(CHATS["both"], x="x")
    assert time.process_time() - began < 2


def test_members_of_objects_do_not_exist() -> None:
    for name in ("__class__", "_x", "mro", "format", "encode", "pop", "append", "setdefault"):
        assert joined(
            Jinja("{{ x." + name + " is defined }}{{ y." + name + " is defined }}").render([], x="a", y={})
        ) == ("FalseFalse")
