"""Compiled chat templates: transformers' own text, under a time limit, inside the sandbox."""

from __future__ import annotations

import signal
import time
from typing import Any

import numpy as np
import pytest

from honed.data.example import RowError
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.data.templates.compiled import ChatJinja, time_limit, within
from honed.errors import TemplateError

TALK = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "yes"}]
EVERYTHING = (
    "{{ bos_token }}{{ eos_token }}{{ tools | tojson(indent=2) if tools else 'none' }}{{ mood }}{{ documents is none }}"
    "{% for m in messages %}{% if m.role == 'stop' %}{% break %}{% endif %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{{ m | tojson }}{{ m.name is defined }}{% endfor %}{{ dict(a=1) }}{{ add_generation_prompt }}"
    "{{ strftime_now('%Y') | length }}"
)


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("tools", [(), ({"type": "function", "function": {"name": "é<", "parameters": {}}},)])
@pytest.mark.parametrize("messages", [
    TALK,
    [{"role": "user", "content": "a", "name": None, "extra": np.float32(0.5), "list": np.array([1, 2]), "t": (1, "b")}],
    [*TALK, {"role": "stop", "content": "not this"}],
])  # fmt: skip
def test_text_is_transformers_own(tokenizer_with: Any, messages: list[Any], tools: Any, prompt: bool) -> None:
    tokenizer = tokenizer_with(EVERYTHING)
    render = ChatJinja(tokenizer, {"mood": "glad"})
    # absent keys are left out, as `formats` does: older transformers would show them as defined
    plain = [{k: v for k, v in m.items() if v is not None and k not in ("extra", "list")} for m in messages]
    render(TALK, ())  # decides on the fast way
    assert render._render is render._fast
    expected = tokenizer.apply_chat_template(
        plain, tools=list(tools) or None, tokenize=False, add_generation_prompt=prompt, mood="glad"
    )
    assert render(plain, tools, prompt=prompt) == expected
    assert render(messages, tools, prompt=prompt)


def test_slow_way_where_the_fast_one_differs(tokenizer_with: Any) -> None:
    render = ChatJinja(tokenizer_with("{{ messages[0].content }}"), {})
    render._fast = lambda messages, tools, prompt: "something else"
    assert render(TALK, ()) == "why"
    assert render._render is render._slow


def test_template_for_tools_is_chosen_where_there_are_some(tokenizer_with: Any) -> None:
    tokenizer = tokenizer_with(None)
    tokenizer.chat_template = {"default": "plain", "tool_use": "with tools"}
    render = ChatJinja(tokenizer, {})
    tool = {"type": "function", "function": {"name": "f"}}
    assert [render(TALK, ()), render(TALK, (tool,)), render(TALK, ())] == ["plain", "with tools", "plain"]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for a in range(10**9) %}{% endfor %}", "what the sandbox forbids: OverflowError"),
        ("{% include '/etc/passwd' %}", "what the sandbox forbids"),
        ("{{ messages.__class__.__mro__ }}", "what the sandbox forbids: SecurityError"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "what the sandbox forbids: SecurityError"),
        ("{% for %}", "does not parse: line 1"),
    ],
)
def test_templates_that_are_refused(tokenizer_with: Any, template: str, problem: str) -> None:
    render = ChatJinja(tokenizer_with(template), {})
    for _ in range(2):
        with pytest.raises(TemplateError, match=problem):
            render(TALK, ())


def test_template_without_an_end(tokenizer_with: Any) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a %}{% endfor %}{% endfor %}"
    render = ChatJinja(tokenizer_with(endless), {}, seconds=0.2)
    started = time.monotonic()
    with pytest.raises(TemplateError, match=r"does not terminate: no text within 0\.2 s"):
        render(TALK, ())
    with pytest.raises(TemplateError, match="does not terminate"):
        render(TALK, ())  # and not a second time
    assert time.monotonic() - started < 5


def test_what_a_call_raises_is_raised_here() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)


def test_conversation_that_the_template_refuses(tokenizer_with: Any) -> None:
    render = ChatJinja(tokenizer_with("{{ raise_exception('no system prompt') }}"), {})
    with pytest.raises(RowError, match="refuses this conversation: TemplateError: no system prompt"):
        render(TALK, ())


# shows no tools
ROWS = [{"messages": TALK}, {"messages": TALK, "tools": [{"name": "f", "parameters": {}}]}]


def test_template_errors_name_the_row(tiny_tokenizer: Any) -> None:
    with pytest.raises(TemplateError, match=r"^row:2: This chat template does not announce the tools"):
        prepare(ROWS, tiny_tokenizer, PrepareOptions())


def test_template_errors_drop_rows_on_request(tiny_tokenizer: Any) -> None:
    ledger = prepare(ROWS, tiny_tokenizer, PrepareOptions(bad_rows="drop")).ledger
    assert (ledger.rows_in, ledger.rows_trained) == (2, 1)
    assert ledger.rows_dropped == {"the chat template's spans cannot be verified": 1}
    assert " Fix: " in ledger.examples[0]["detail"]
    with pytest.raises(TemplateError, match=r"^row:1: This chat template does not announce the tools"):
        prepare(ROWS[1:] * 2, tiny_tokenizer, PrepareOptions(bad_rows="drop"))


def test_a_template_that_hangs_on_a_later_row_is_stopped(tokenizer_with: Any) -> None:
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    text = (
        f"{{% for m in messages %}}{{{{ m.content }}}}{{% if 'loop' in m.content %}}{loops}{{% endif %}}{{% endfor %}}"
    )
    render = ChatJinja(tokenizer_with(text), {}, seconds=0.5)
    assert render([{"role": "user", "content": "fine"}], ()) == "fine"
    with pytest.raises(TemplateError, match="does not terminate"):
        render([{"role": "user", "content": "loop"}], ())


def test_a_timer_of_someone_else_is_left_alone() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))
    try:
        with time_limit(0.01):
            assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with time_limit(0.01):
            time.sleep(0.1)
        assert heard == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)
