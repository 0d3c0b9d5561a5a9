"""Chat templates as transformers renders them, and what stops one that costs too much."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from pocketphi.graph.chat_template import ChatTemplate, _Environment
from pocketphi.graph.errors import InputError

PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ANSWER = "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
GENERATION = "{{'<|assistant|>\n'}}{% generation %}{{message['content'] + '<|end|>\n'}}{% endgeneration %}"
TEMPLATES = {
    "Phi-3": PHI3,
    "generation": PHI3.replace(ANSWER, GENERATION),
    "generation, spaced": "{%- for m in messages -%}\n  {%- generation -%}\n {{ m.content }} \n"
    "{%- endgeneration -%}\n{%- endfor -%}",
    "date": "{{ strftime_now('%Y-%m-%d %H:%M') }} {{ strftime_now(format='%d %B') }}" + PHI3,
    "tools": "{% if tools is not none %}{{ 'T' }}{% endif %}{% if tools is defined %}{{ 'D' }}{% endif %}" + PHI3,
    "documents": "{% if documents is not none %}{{ 'T' }}{% endif %}{{ documents }}" + PHI3,
    "what nobody gives": "{% if custom is defined %}x{% endif %}[{{ custom }}]{{ enable_thinking | default(true) }}"
    + PHI3,
    "tojson": "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=2) }}"
    "{{ m.content | tojson(ensure_ascii=True) }}"
    "{{ [m, 1.5, none, true] | tojson(separators=(',', ':'), sort_keys=true) }}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index > 3 %}{% break %}{% endif %}{% if m.role == 'system' %}"
    "{% continue %}{% endif %}{{ loop.index0 ~ ':' ~ m.content ~ loop.last }}{% endfor %}",
    "namespace": "{% set ns = namespace(found=false, n=0, a={}) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.found = ns.found or m.role == 'system' %}{% endfor %}{{ ns.n }}{{ ns.found }}{{ ns }}",
    "underscore": "{% set ns = namespace(_x=1) %}x",
    "dict": "{{ dict(a=1, **{'b': 2}) }}{{ dict.fromkeys(['x'], 0) }}{{ dict([('k', 'v')]).items() | list }}",
    "macro": "{% macro show(m, deep=1) -%}\n  <{{ m.role }}>{{ m.content }}"
    "{{ caller() if caller is defined }}\n{%- endmacro %}"
    "{% for m in messages %}{{ show(m) }}{% call show(m, deep=2) %}!{% endcall %}{% endfor %}",
    "filters": "{% for m in messages %}{{ m.content | trim | upper | replace('A', 'b') | truncate(20) | indent(2) }}"
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ (messages | groupby('role') | first)[0] }}{{ m.items() | list }}{{ m.content | wordcount }}"
    "{{ '%-9s|' | format(m.role) }}"
    "{{ messages | rejectattr('role', 'in', ['user']) | map(attribute='content') | map('trim') | list }}{% endfor %}",
    "generators": "{% set g = messages | map(attribute='role') %}{{ g | first }}{{ g | list }}{{ g | list }}",
    "slices": "{% for m in messages[1:][::-1] %}{{ m.content[:3] ~ m.content[-2:] }}{% endfor %}"
    "{{ messages[-1]['content'] }}",
    "operators": "{{ 7 // 2 }}{{ 7 % 2 }}{{ 2 ** 8 }}{{ 'a' * 3 }}{{ [1] + [2] }}{{ 'x %s' % 'y' }}{{ 1 / 4 }}"
    "{{ -3 }}{{ 'a' in 'abc' }}"
    "{{ 1 < 2 < 3 }}{{ not true }}{{ 'a' ~ 1 ~ none }}{{ 3 if true else 4 }}{{ {'a': [1, (2, 3)]} }}",
    "strings": "{% for m in messages %}{{ m.content.strip().split('\n')[0] }}{{ m.content.startswith(' ') }}"
    "{{ m.role.title() }}"
    "{{ '{}-{:>4}'.format(m.role, loop.index) }}{{ m['content'].replace('e', 'E', 1).rstrip() }}{% endfor %}",
    "white space": "\n{% for m in messages %}\n    {% if true %}\n  {{ m.content }}\n    {% endif %}\n{% endfor %}\n\n",
    "blocks": "{% set x %}a{{ messages | length }}{% endset %}{% filter upper %}{{ x }}b{% endfilter %}"
    "{% with y = 1 %}{{ y }}{% endwith %}"
    "{% raw %}{{ no }}{% endraw %}{# no #}{% block b %}in{% endblock %}{{ self.b() }}",
    "recursion": "{% for x in [['a', ['b']], ['c']] recursive %}{% if x is string %}{{ x }}{% else %}("
    "{{ loop(x) }}){% endif %}{% endfor %}",
    "unpacking": "{% for role, content in messages | map('dictsort') | map('first') | list %}"
    "{{ role ~ content }}{% else %}none{% endfor %}"
    "{% for x in [] %}{% else %}none{% endfor %}{% for k, v in messages[0].items() if v %}{{ k }}{% endfor %}",
    "escapes": "{{ '<b>' | escape }}{{ '<b>' | e ~ '<i>' }}{{ '<' | safe }}{{ '\\u00e9' }}",
    "refuses": "{% if messages[0].role == 'system' %}{{ raise_exception('No system message.') }}{% endif %}" + PHI3,
    "turns": "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns') }}{% endif %}"
    "{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}{% endfor %}",
    "undefined": "{{ messages[0].nothing.at_all }}",
    "unsafe": "{{ messages.__class__ }}{{ messages.append(1) }}",
    "divides": "{{ 1 / 0 }}",
    "types": "{{ 1 + 'a' }}",
    "syntax": "{% for %}",
    "includes": "{% include 'x' %}",
    "nothing": "",
}
TALKS = [
    [("user", "Is 2 < 3? Café & 'tea' \"q\"")],
    [("system", " \n Be brief.\t\n"), ("user", "Hi")],
    [
        ("system", "S"),
        ("user", " a\nb \n"),
        ("assistant", "\n x "),
        ("user", "日本 😀 <|end|>{{ 1 }}"),
        ("assistant", ""),
        ("user", ""),
    ],
    [("user", ""), ("assistant", "x"), ("user", "\u2028\u00a0")],
]
TOKENS = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
NOW = datetime.datetime(2024, 2, 3, 4, 5, 6)


def by_transformers(template: str, talk: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """None where it refuses."""
    from transformers.utils import chat_template_utils

    class Clock:
        @staticmethod
        def now() -> datetime.datetime:
            return NOW

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    try:
        made = chat_template_utils.render_jinja_template(
            [talk], chat_template=template, add_generation_prompt=True, **TOKENS
        )
    except Exception:  # templates raise anything
        return None
    return str(made[0][0])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_in_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    talks = [[{"role": role, "content": content} for role, content in pairs] for pairs in TALKS]
    want = [by_transformers(TEMPLATES[name], talk, monkeypatch) for talk in talks]
    assert [by_us(TEMPLATES[name], talk) for talk in talks] == want


def by_us(template: str, talk: list[dict[str, str]]) -> str | None:
    """None where it is refused, in one line."""
    try:
        return ChatTemplate(template).render(talk, TOKENS, now=NOW)
    except InputError as error:
        return str(error) if "\n" in str(error) else None


def test_the_environment_is_that_of_transformers() -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs: Any = _compile_jinja_template("").environment
    ours = _Environment()
    assert set(ours.filters) - set(theirs.filters) == {"charge value", "charge loop", "charge join"}
    assert set(theirs.filters) <= set(ours.filters)
    assert ours.tests.keys() == theirs.tests.keys()
    assert ours.globals.keys() == theirs.globals.keys()
    for setting in (
        "trim_blocks",
        "lstrip_blocks",
        "keep_trailing_newline",
        "autoescape",
        "newline_sequence",
        "undefined",
    ):
        assert getattr(ours, setting) == getattr(theirs, setting)
    assert [kind.rpartition(".")[2].split("Tracker")[0] for kind in theirs.extensions] == [
        "Assistant",
        "LoopControlExtension",
    ]
    assert len(ours.extensions) == 2


def test_the_date_is_todays_unless_it_is_given() -> None:
    template = ChatTemplate("{{ strftime_now('%Y') }}")
    assert template.tells_time
    assert int(template.render([], {})) >= 2024
    assert template.render([], {}, now=NOW) == "2024"
    assert not ChatTemplate(PHI3).tells_time


def test_what_jinja_passes_with_a_call_in_a_loop_costs_nothing() -> None:
    """All variables of a loop go with each call in it: as factors of a text's size they made messages of 2,000 characters
    too costly for a template that drops a marker from them."""
    template = ChatTemplate(
        "{% for m in messages %}{% set text = m['content'] %}{{ text.replace('<|end|>', '') }}{% endfor %}"
    )
    assert template.render([{"role": "user", "content": "ab<|end|>" * 10_000}], {}) == "ab" * 10_000


def doubled(start: str, step: str) -> str:
    return (
        "{% set ns = namespace(x="
        + start
        + ") %}{% for i in range(90) %}{% set ns.x = "
        + step
        + " %}{% endfor %}{{ ns.x }}"
    )


LARGE = "{% set b = 'ab' * 500000 %}"
COSTLY = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set r = range(99999) | list %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}" + "{% set x = 1 %}" * 1000 + "{% endfor %}",
    "{{ 'a' * 10 ** 9 }}",
    "{{ [1] * 1000000000 }}",
    "{{ 2 ** 100000000 }}",
    doubled("'a'", "ns.x ~ ns.x"),
    doubled("'a'", "ns.x + ns.x"),
    doubled("[1]", "ns.x + ns.x"),
    doubled("[1]", "[ns.x, ns.x]"),
    doubled("[1]", "(ns.x, ns.x)"),
    doubled("[1]", "{'a': ns.x, 'b': ns.x}"),
    doubled("[1]", "namespace(a=ns.x, b=ns.x)"),
    doubled("9", "ns.x * ns.x"),
    "{% set ns = namespace(x='a') %}{% for i in range(90) %}{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = x %}{% endfor %}",
    "{% set a = namespace() %}{% set a.a = a %}{{ a }}",
    "{% macro m(n) %}{% if n > 0 %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ 'a'.rjust(1000000000) }}",
    "{{ 'a'.center(1000000000) }}",
    "{{ 'a'.zfill(1000000000) }}",
    "{{ '\t'.expandtabs(1000000000) }}",
    "{{ (1).to_bytes(1000000000, 'big') }}",
    "{{ '%1000000000s' % 'a' }}",
    "{{ '%1000000000s' | format('a') }}",
    "{{ '%*s' % (1000000000, 'a') }}",
    "{{ '{:1000000000}'.format('a') }}",
    "{{ '{:{}}'.format('a', 1000000000) }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ 'a' | indent(1000000000, true) }}",
    "{{ 'a' | batch(1000000000, 'x') | list }}",
    "{{ 'ab' | slice(1000000000) | list }}",
    "{{ [1] | tojson(indent=1000000000) }}",
    LARGE + "{{ b.replace('a', b) }}",
    LARGE + "{{ b | replace('a', b) }}",
    LARGE + "{{ b.join(range(99999) | map('string')) }}",
    LARGE + "{{ range(99999) | join(b) }}",
    LARGE + "{{ b.translate({97: b}) }}",
    LARGE + "{{ " + " ~ ".join(["b"] * 2000) + " }}",
    LARGE + "{% for i in range(99999) %}{{ b == b ~ 'c' }}{% endfor %}",
    LARGE + "{% for i in range(99999) %}{% set c = b[1:] %}{% endfor %}",
    LARGE + "{% for i in range(99999) %}{{ 'zz' in b }}{% endfor %}",
    LARGE + "{% for i in range(99999) %}{{ b }}{% endfor %}",
    LARGE + "{% for i in range(99999) %}{% if b is equalto(b ~ 'c') %}{% endif %}{% endfor %}",
    "{{ range(1000000000) }}",
    "{{ lipsum(1000000) }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for x in [messages] recursive %}{{ loop([messages, messages]) }}{% endfor %}",
    "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "{{ " + "(" * 300 + "1" + ")" * 300 + " }}",
    "{{ " + "-" * 5000 + "1 }}",
    "{% if x %}" * 500 + "{% endif %}" * 500,
    "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "x" * 200_000,
]


@pytest.mark.parametrize("template", COSTLY)
def test_a_template_that_costs_too_much_is_refused(template: str) -> None:
    """Bounded by what is counted: no time is measured here. Without the bounds most of these never end."""
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(InputError, match=r"^chat: the chat template (costs too much|failed|has 200,000 characters)"):
        ChatTemplate(template).render(messages, TOKENS)


def test_a_long_conversation_is_within_the_bounds() -> None:
    """600 messages, and one of a hundred thousand words."""
    talk = [{"role": ("user", "assistant")[i % 2], "content": f"message {i} of many\n" * 20} for i in range(600)]
    assert len(ChatTemplate(PHI3).render(talk, TOKENS)) > 200_000
    assert len(ChatTemplate(TEMPLATES["strings"]).render(talk, TOKENS)) > 5_000
    assert len(ChatTemplate(PHI3).render([{"role": "user", "content": "word " * 100_000}], TOKENS)) > 500_000


def test_a_budget_is_for_one_rendering() -> None:
    template = ChatTemplate("{% for i in range(50000) %}{% set a = 1 %}{% endfor %}ok")
    assert {template.render([], {}) for _ in range(30)} == {"ok"}
