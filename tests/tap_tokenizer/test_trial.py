"""Templates and patterns without end are found out in a process of their own; those that people use pass."""

from __future__ import annotations

import pytest
from foreign_folders import BRIDGE

from tap_tokenizer import check_chat_template, check_patterns

NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS = {
    "loops in the second turn": "{% for m in messages %}{% if m.role == 'assistant' %}" + NESTED + "{% endif %}{% endfor %}",
    "one long text": "{{ 'a' * 10 ** 10 }}",
    "a wide format": "{{ '%9999999999d' % 1 }}",
    "a text that doubles": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "much output": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "brackets without end": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "inside a generation tag": "{% generation %}{{ 'a' * 10 ** 10 }}{% endgeneration %}",
}  # fmt: skip
"""Two of these take the two seconds of processor time that a template may take; the others less."""


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_templates_are_refused(kind: str) -> None:
    with pytest.raises(
        ValueError, match=r"^somewhere has a chat template that does not finish within 2 seconds and 1 GB"
    ):
        check_chat_template(ENDLESS[kind], "somewhere")


def test_templates_that_people_use_pass() -> None:
    check_chat_template((BRIDGE / "chat_template.jinja").read_text(), "the bundled bridge")
    tools = (
        "{%- macro shown(x) %}{{ x | tojson(indent=2) }}{% endmacro -%}{% for t in tools or [] %}{{ shown(t) }}{% endfor %}"
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for i in m.content %}{{ i.text }}"
        "{% endfor %}{% endif %}{% generation %}{{ strftime_now('%d %b %Y') }}{% endgeneration %}{% endfor %}"
    )
    check_chat_template(tools, "a template with tools")
    check_chat_template("{{ raise_exception('no system message') }}", "a template that refuses")


def test_endless_patterns_are_refused() -> None:
    names = ["model.layers.0.self_attn.q_proj", "a" * 40]
    check_patterns([r".*\.(q|v)_proj", "all-linear"], names, "here")
    with pytest.raises(ValueError, match=r"^here has regular expressions that take more than 2 seconds"):
        check_patterns([r"(a+)+b"], names, "here")
    with pytest.raises(ValueError, match=r"^here has '\(', which is not a regular expression"):
        check_patterns(["("], names, "here")
