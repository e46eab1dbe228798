"""The example of tools, small: the call and the answer alone are trained, and the model that learned them calls."""

from __future__ import annotations

import copy
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> str:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.model_max_length = 1024
    tokenizer.save_pretrained(tmp_path / "base")
    shape = {"initializer_range": 0.1, "hidden_size": 64, "head_dim": 16, "max_position_embeddings": 1024}
    tiny_model(**shape).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_a_call_is_learned_made_and_answered(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "tool_calling.py"))
    options = {"max_steps": 100, "learning_rate": 0.02, "max_length": 1024, "disable_tqdm": True, "save_strategy": "no"}
    messages = example["main"](folder, ("Rome",), output_dir=str(tmp_path / "out"), use_cpu=True, **options)
    marked = re.findall("«(.*?)»", capsys.readouterr().out, re.DOTALL)
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call><|im_end|>'
    assert marked[:2] == [call, "Rome: sunny.<|im_end|>"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": {"city": "Rome"}}
    assert messages[2]["content"] == "sunny" and messages[3]["content"] == "Rome: sunny."


def test_what_is_no_call(capsys: pytest.CaptureFixture[str]) -> None:
    calls_in = runpy.run_path(str(EXAMPLES / "tool_calling.py"))["calls_in"]
    assert calls_in("plain words") == []
    assert calls_in('<tool_call>{"name": 1</tool_call><tool_call>{"a": 2}</tool_call>') == [{"a": 2}]
    assert "not a call" in capsys.readouterr().out
