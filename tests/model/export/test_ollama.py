"""Modelfiles: the Go template writes what the chat template writes."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from honed.errors import TemplateError
from honed.model.export.ollama import go_template, modelfile, role_texts
from honed.model.load.chat_tokens import CHATML

CHATS = [
    [("user", "a")],
    [("user", "a"), ("assistant", "b"), ("user", "c\n\nd")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")],
]
LLAMA3 = (
    "{{- bos_token }}{%- for m in messages %}{{- '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] + '<|eot|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\n\n' }}{%- endif %}"
)
DEFAULT_SYSTEM = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\nBe kind.<|im_end|>\n' }}{%- endif %}"
)


def executed(template: str, chat: list[tuple[str, str]]) -> str:
    """The little of Go's text/template that is used, read by itself."""
    has_system = any(role == "system" for role, _ in chat)
    default = re.match(r"\{\{ if not \.System \}\}(.*?)\{\{ end \}\}", template, flags=re.DOTALL)
    text = default[1] if default and not has_system else ""
    rest = template[default.end() :] if default else template
    loop = re.fullmatch(r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", rest, flags=re.DOTALL)
    assert loop
    branches = re.findall(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else if|\Z)', loop[1], flags=re.DOTALL)
    bodies = dict(branches)
    return text + "".join(bodies[role].replace("{{ .Content }}", said) for role, said in chat) + loop[2]


def with_template(tokenizer: Any, template: str) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM + CHATML, LLAMA3], ids=["chatml", "default", "llama3"])
def test_both_templates_write_the_same(template: str, tiny_tokenizer: Any) -> None:
    tokenizer = with_template(tiny_tokenizer, template)
    written = go_template(role_texts(tokenizer))
    for chat in CHATS:
        messages = [{"role": role, "content": said} for role, said in chat]
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert executed(written, chat) == expected


def test_modelfile(tiny_tokenizer: Any) -> None:
    text = modelfile(tiny_tokenizer, ["<|im_end|>"])
    assert text.startswith('FROM .\nTEMPLATE """')
    assert 'PARAMETER stop "<|im_end|>"' in text


def test_bos_is_written_once(tiny_tokenizer: Any) -> None:
    """Ollama puts it before a prompt where the tokenizer does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = with_template(tiny_tokenizer, LLAMA3)
    assert "<|im_start|>" in modelfile(tokenizer, [])
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=[bos[0], "$A"], special_tokens=[bos])
    assert "<|im_start|>" not in modelfile(tokenizer, [])


@pytest.mark.parametrize(
    "template",
    [
        "{%- for m in messages %}{{- m['role'] + loop.index|string + m['content'] }}{%- endfor %}",
        "{{ raise_exception('no system') }}",
        "{%- for m in messages %}{{- '{{' + m['role'] + m['content'] }}{%- endfor %}",
        "always the same",
    ],
)
def test_templates_that_do_more(template: str, tiny_tokenizer: Any) -> None:
    with pytest.raises(TemplateError, match="by hand"):
        role_texts(with_template(tiny_tokenizer, template))
