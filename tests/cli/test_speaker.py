"""What is served is what was trained: `chat` and `generate` take the run's system prompt and template arguments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from honed.cli.console import load_speaker
from honed.data.example import Message
from honed.recipe import as_yaml, recipe_from

TEMPLATE = "{{ mood }}{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<|im_end|>' }}{% endfor %}"


@pytest.fixture
def folder(tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_runs_own_system_prompt_and_arguments_are_used(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    data = {"system": "Be brief.", "template_arguments": {"mood": "calm "}}
    (folder / "recipe.yaml").write_text(as_yaml(recipe_from({"data": data})), encoding="utf-8")
    speaker = load_speaker(str(folder), seed=0)
    assert speaker.system == "Be brief."
    [prompt] = speaker.template.prompt([Message(role="user", content="why")])
    assert prompt.text == "calm user:why<|im_end|>"


def test_a_folder_that_is_no_runs_has_no_system_prompt(folder: Path) -> None:
    assert load_speaker(str(folder), seed=0).system is None
