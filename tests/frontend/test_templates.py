"""Chat templates: what they render, and that a bad one can neither get out nor run away."""

from __future__ import annotations

import contextlib
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from vocabularies import TEMPLATE

from quire.errors import RequestError
from quire.frontend.metering import BUDGET, MAX_WEIGHT
from quire.frontend.templates import NO_TEMPLATE, ChatTemplate
from quire.frontend.timelimit import TimeLimitExceeded, run_limited

MESSAGES = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yo"}]


def render(source: str, **options: object) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(MESSAGES, **options)  # type: ignore[arg-type]


def test_renders() -> None:
    assert render(TEMPLATE) == "<s><|user|>hi<|end|><|assistant|>yo<|end|><|assistant|>"
    assert render(TEMPLATE, add_generation_prompt=False) == "<s><|user|>hi<|end|><|assistant|>yo<|end|>"
    assert render(TEMPLATE, continue_final_message=True) == "<s><|user|>hi<|end|><|assistant|>yo"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "13"),
        ("  {% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
        ("{{ {'b': '<é>', 'a': [1, none]} | tojson }}", '{"b": "<é>", "a": [1, null]}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% generation %}x{% endgeneration %}y", "xy"),
        ("{{ messages | map(attribute='role') | join(', ') }}", "user, assistant"),
        ("{{ messages[-1:][0].content }}{{ 'a-b'.split('-') | length }}{{ '%s!' | format('z') }}", "yo2z!"),
        ("{% set a, b = (1, 2) %}{{ a ~ b ~ 'x' * 3 }}{{ '{}-{:>3}'.format(1, 2) }}", "12xxx1-  2"),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m('q') }}{% set y %}z{% endset %}{{ y }}", "[q]z"),
        ("{{ undefined_thing }}{{ x is defined }}{{ 'AbC' | lower | replace('a', 'x') | indent }}", "Falsexbc"),
        ("{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + m.role %}{% endfor %}{{ ns.t }}",
         "userassistant"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ [1, 2] | sum }}", "13"),
    ],
)  # fmt: skip
def test_dialect(source: str, text: str) -> None:
    assert render(source) == text


def test_same_as_transformers() -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    source = (
        "{%- for message in messages %}\n  {{- '<' + message.role + '>' + message.content | trim }}\n"
        "    {% if not loop.last %}\n, {{ strftime_now('%Y') }}\n{% endif %}\n{%- endfor %}{{ messages | tojson }}\n"
    )
    assert render(source) == utils._compile_jinja_template(source).render(messages=MESSAGES)


def test_variables() -> None:
    assert render("{{ enable_thinking }}{{ bos_token }}", kwargs={"enable_thinking": False}) == "False<s>"
    assert len(render("{{ strftime_now('%Y') }}")) == 4
    several = ChatTemplate({"default": "d", "tool_use": "t"}, {})
    assert several.render(MESSAGES) == "d" and several.render(MESSAGES, tools=[{}]) == "t"


def test_no_template() -> None:
    assert not ChatTemplate(None, {})
    with pytest.raises(RequestError) as caught:
        ChatTemplate(None, {}).render(MESSAGES)
    assert caught.value.message == NO_TEMPLATE


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{% for %}", "wrong in line 1"),
        ("{{ x | nosuch }}", "No filter named 'nosuch'"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os }}", "unsafe"),
        ("{{ ''|attr('__class__') }}{{ (''|attr('__class__'))() }}", "unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "too deeply"),
        ("{{ messages[0]['x']['y'] }}", "fails on these messages"),
        ("{{ raise_exception(raise_exception) }}", "refuses these messages"),
    ],
)
def test_errors(source: str, words: str) -> None:
    with pytest.raises(RequestError, match="template") as caught:
        render(source)
    assert words in caught.value.message and "0x" not in caught.value.message


HEAVY = [
    "{{ 'a' * 300000000 }}",
    "{{ 300000000 * 'a' }}",
    "{{ [0] * 300000000 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{% set ns = namespace(x=7) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = {1: ns.x, 2: ns.x} %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=(1, 2)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1}}}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "{{ ('{0}' * 10000).format('a' * 1000000) }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ 'a'.zfill(1000000000) }}",
    "{{ '\\t'.expandtabs(1000000000) }}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000) }}",
    "{{ ('a' * 1000000) | replace('', 'b' * 1000) }}",
    "{{ ('b' * 1000000).join(range(100000) | map('string') | list) }}",
    "{{ range(100000) | map('string') | join('b' * 1000000) }}",
    "{{ ('\\n' * 1000000) | indent(100000) }}",
    "{{ ('\\n' * 1000000) | indent('a' * 1000) }}",
    "{{ 1.5 | round(1000000000, 'ceil') }}",
    "{{ [[1]] | sum(start=[]) }}",
    "{% set x %}{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}{% endset %}{{ x }}",
    "{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}",
    "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='aaaaaaaa') %}"
    "{% for i in range(60) %}{% set ns.x = m(ns.x) %}{% endfor %}",
    "{% set b = 'a' * 1000000 %}{% set ns = namespace(l=0) %}"
    "{% for i in range(99999) %}{% set ns.l = cycler(ns.l, b.upper()) %}{% endfor %}",
    "{% set b = 'a' * 1000000 %}{% set ns = namespace(l=0) %}"
    "{% for i in range(99999) %}{% set ns.l = cycler(ns.l, b[1:]) %}{% endfor %}",
    "{% set b = ['a' * 100000] * 100 %}{% for i in range(99999) %}{{ b }}{% endfor %}",
]  # fmt: skip


@pytest.mark.parametrize("source", HEAVY)
def test_heavy_values_are_refused(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.frontend.templates.TIME_LIMIT", 30)  # a busy machine must not end them first
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RequestError, match=r"stopped: it"):  # by weight, not by the clock
        render(source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4 * (BUDGET + 4 * MAX_WEIGHT) // 1024


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = j %}{% endfor %}{% endfor %}",
    ],
)
def test_endless_loops_are_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.frontend.templates.TIME_LIMIT", 0.3)
    start = time.perf_counter()
    with pytest.raises(RequestError, match=r"stopped after 0\.3 s"):
        render(source)
    assert 0.3 <= time.perf_counter() - start < 1.0


def test_time_limit_hits_only_its_own_job() -> None:
    """Jobs that end about when their time does, in a pool whose threads go on to other jobs at once."""

    def spin(seconds: float) -> bool:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return True

    def job(i: int) -> bool:
        with contextlib.suppress(TimeLimitExceeded):
            run_limited(lambda: spin(0.002 + 0.0001 * (i % 20)), 0.003)
        return spin(0.0005)  # an interrupt that came too late would end this

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(job, range(600)))


def test_time_limit_survives_code_that_catches_everything() -> None:
    def stubborn() -> None:
        while True:
            try:
                while True:
                    pass
            except Exception:  # noqa: BLE001 - that is the point
                pass

    with pytest.raises(TimeLimitExceeded):
        run_limited(stubborn, 0.05)
    assert run_limited(lambda: 5, 0.05) == 5
    with pytest.raises(KeyError):
        run_limited(lambda: {}[1], 0.05)  # type: ignore[index]


def test_time_limit_sleeps_when_idle() -> None:
    run_limited(lambda: None, 10)
    watchers = [thread for thread in threading.enumerate() if thread.name == "quire-time-limit"]
    assert len(watchers) == 1
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.05
