"""A subject on a tiny model, made as `honed prove` makes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from honed.prove.prove import Place, make_subject
from honed.prove.subject import Subject
from honed.recipe import recipe_from

Subjects = Callable[..., Subject]


@pytest.fixture
def subject_of(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, chat_rows: list[dict[str, Any]]
) -> Subjects:
    def make(family: str = "llama", rows: Any = chat_rows, model: Any = None, **recipe: Any) -> Subject:
        folder, file = tmp_path / "model", tmp_path / "rows.jsonl"
        tiny_model(family, **(model or {})).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        data = {"files": str(file), "cache": False, "max_length": 128, **recipe.pop("data", {})}
        return make_subject(recipe_from({"model": str(folder), "data": data, **recipe}), Place())

    return make
