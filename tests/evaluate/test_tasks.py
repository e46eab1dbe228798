"""Tasks from YAML: what they check, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from honed.data.example import Message
from honed.errors import MissingExtraError, RecipeError
from honed.evaluate.tasks import Task, read_tasks


def one(tmp_path: Path, expect: str, question: str = "prompt: why") -> Task:
    file = tmp_path / "tasks.yaml"
    file.write_text(f"- {question}\n  expect: {expect}\n", encoding="utf-8")
    [task] = read_tasks(file, system="be short")
    return task


@pytest.mark.parametrize(
    ("expect", "right", "wrong"),
    [
        ("{exact: '4'}", [" 4\n", "4"], ["44", "", "4."]),
        ("{contains: 天空}", ["蓝色的天空。"], ["天 空", ""]),
        ("{regex: '^a+$'}", ["aaa"], ["ab", ""]),
        ("{regex: b}", ["abc"], ["ac"]),
    ],
)
def test_checks(tmp_path: Path, expect: str, right: list[str], wrong: list[str]) -> None:
    task = one(tmp_path, expect)
    assert all(map(task.check, right)) and not any(map(task.check, wrong))


def test_json_schema(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema", reason="pip install 'honed[eval]'")
    task = one(tmp_path, "{json_schema: {type: object, required: [a], properties: {a: {type: integer}}}}")
    assert task.check(' {"a": 1}\n')
    assert not any(map(task.check, ['{"a": "1"}', "{}", "[1]", "not JSON", "", 'Here: {"a": 1}', "[" * 100_000]))
    with pytest.raises(RecipeError, match="task 1: json_schema is not valid"):
        one(tmp_path, "{json_schema: {type: 3}}")


def test_json_schema_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'honed\[eval\]'"):
        one(tmp_path, "{json_schema: {type: object}}")


def test_questions(tmp_path: Path) -> None:
    system, user = Message(role="system", content="be short"), Message(role="user", content="why")
    assert one(tmp_path, "{exact: a}").messages == (system, user)
    given = one(tmp_path, "{exact: a}", "messages: [{role: human, content: why}]")
    assert given.messages == (user,)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "does not hold a list of tasks"),
        ("a: 1", "does not hold a list of tasks"),
        ("- [", "could not be read as YAML"),
        ("- prompt: a\n  expect: {equals: a}\n  prompt: b", "found the key 'prompt' twice"),
        ("- why", "task 1 has str"),
        ("- {prompt: why}", "task 1 has prompt"),
        ("- {prompt: why, messages: [], expect: {exact: a}}", "task 1 has prompt, messages, expect"),
        ("- {prompt: why, expect: {exact: a}}\n- {prompt: 3, expect: {exact: a}}", "task 2: prompt is 3"),
        ("- {prompt: why, expect: {exact: 4}}", "exact is 4, not text"),
        ("- {prompt: why, expect: {like: a}}", "expects"),
        ("- {prompt: why, expect: {exact: a, regex: b}}", "expects"),
        ("- {prompt: why, expect: {regex: '('}}", "regex is not valid"),
        ("- {messages: [], expect: {exact: a}}", "messages is not a list"),
        ("- {messages: [{role: poet, content: a}], expect: {exact: a}}", "messages is not a list"),
        ("- {messages: hello, expect: {exact: a}}", "messages is not a list"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=problem) as error:
        read_tasks(file)
    assert str(file) in str(error.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="could not be read"):
        read_tasks(tmp_path / "none.yaml")
