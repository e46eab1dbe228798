"""The cache of prepared data: what it gives is what preparing gives, and nothing else is ever taken for it."""

import copy
import json
import multiprocessing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from honed.data.prepare import cache as prepared_cache
from honed.data.prepare.cache import cache_key, prepare_cached
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import Prepared, prepare

OPTIONS = PrepareOptions(max_length=64, packing=True, bad_rows="drop")


@pytest.fixture
def file(chat_rows: list[dict[str, Any]], tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [*chat_rows, {"messages": []}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def same(a: Prepared, b: Prepared) -> None:
    assert list(map(list, a.rows.rows)) == list(map(list, b.rows.rows))
    for name in ("input_ids", "weights", "starts"):
        np.testing.assert_array_equal(getattr(a.rows.table, name), getattr(b.rows.table, name))
    assert a.ledger == b.ledger and a.stop_ids == b.stop_ids
    one, other = a.rows[0], b.rows[0]
    assert one.lengths == other.lengths and np.array_equal(one.input_ids, other.input_ids)


def test_a_hit_gives_what_preparing_gave(file: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_cached(str(file), tiny_tokenizer, OPTIONS)
    same(first, prepare(str(file), tiny_tokenizer, OPTIONS))
    monkeypatch.setattr(prepared_cache, "prepare", lambda *a, **k: pytest.fail("prepared again"))
    hit = prepare_cached(str(file), tiny_tokenizer, OPTIONS)
    same(first, hit)
    assert isinstance(hit.rows.table.input_ids, np.memmap)


def test_everything_that_decides_the_result_is_in_the_key(file: Path, tiny_tokenizer: Any) -> None:
    keys = [cache_key(str(file), tiny_tokenizer, OPTIONS)]
    keys.append(cache_key(str(file), tiny_tokenizer, replace(OPTIONS, max_length=65)))
    keys.append(cache_key(str(file), tiny_tokenizer, replace(OPTIONS, system="be")))
    other = copy.deepcopy(tiny_tokenizer)
    other.chat_template += " "
    keys.append(cache_key(str(file), other, OPTIONS))
    bigger = copy.deepcopy(tiny_tokenizer)
    bigger.add_tokens(["fox"])
    keys.append(cache_key(str(file), bigger, OPTIONS))
    template = file.parent / "t.jinja"
    for text in ("{{ messages }}", "{{ messages }} "):
        template.write_text(text, encoding="utf-8")
        keys.append(cache_key(str(file), tiny_tokenizer, replace(OPTIONS, template=str(template))))
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    keys.append(cache_key(str(file), tiny_tokenizer, OPTIONS))
    assert None not in keys and len(set(keys)) == len(keys)


OTHERWISE: dict[str, Any] = {
    "format": "messages", "columns": {"messages": "chat"}, "text_field": "body", "system": "be",
    "template": "plain", "template_arguments": {"a": 1}, "train_on": "last", "train_roles": ("user",),
    "train_reasoning": False, "train_tool_calls": False, "max_length": 65, "overlong": "split", "packing": False,
    "packing_strategy": "wrapped", "share_prefixes": True, "bad_rows": "error",
}  # fmt: skip


def test_every_option_and_the_code_are_in_the_key(
    file: Path, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(OTHERWISE) == {field.name for field in fields(PrepareOptions)}, "a new option: name it here"
    keys = [cache_key(str(file), tiny_tokenizer, OPTIONS)]
    for name, value in OTHERWISE.items():
        keys.append(cache_key(str(file), tiny_tokenizer, replace(OPTIONS, **{name: value})))
    for code in ("a = 1", "a = 2"):
        (tmp_path / "ledger.py").write_text(code)
        monkeypatch.setattr(prepared_cache, "__file__", str(tmp_path / "prepare" / "cache.py"))
        keys.append(cache_key(str(file), tiny_tokenizer, OPTIONS))
    assert None not in keys and len(set(keys)) == len(keys)


def test_the_same_input_has_the_same_key(file: Path, tiny_tokenizer: Any) -> None:
    again = copy.deepcopy(tiny_tokenizer)
    again(["used before"])
    assert cache_key(str(file), tiny_tokenizer, OPTIONS) == cache_key([str(file)], again, OPTIONS)


def test_a_data_set_is_known_by_its_fingerprint(chat_rows: list[dict[str, Any]], tiny_tokenizer: Any) -> None:
    dataset = Dataset.from_list(chat_rows)
    first = prepare_cached(dataset, tiny_tokenizer, OPTIONS)
    same(first, prepare_cached(dataset, tiny_tokenizer, OPTIONS))
    assert cache_key(dataset, tiny_tokenizer, OPTIONS) != cache_key(dataset.select([0]), tiny_tokenizer, OPTIONS)


def test_rows_in_memory_and_formatting_functions_are_prepared_anew(
    chat_rows: list[dict[str, Any]], file: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    assert cache_key(chat_rows, tiny_tokenizer, OPTIONS) is None
    prepare_cached(chat_rows, tiny_tokenizer, OPTIONS, root=tmp_path / "c")
    prepare_cached(str(file), tiny_tokenizer, OPTIONS, root=tmp_path / "c", formatting_func=lambda row: row)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("fault", ["cut", "gone"])
def test_a_broken_entry_is_made_again(fault: str, file: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    first = prepare_cached(str(file), tiny_tokenizer, OPTIONS, root=tmp_path / "c")
    [stored] = (tmp_path / "c" / "prepared").glob("*/weights.npy")
    stored.write_bytes(stored.read_bytes()[:-4]) if fault == "cut" else stored.unlink()
    same(first, prepare_cached(str(file), tiny_tokenizer, OPTIONS, root=tmp_path / "c"))


def fill(file: str, tokenizer: Any, root: Path) -> int:
    return prepare_cached(file, tokenizer, OPTIONS, root=root).ledger.tokens


def test_two_processes_at_once(file: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        tokens = pool.starmap(fill, [(str(file), tiny_tokenizer, tmp_path / "c")] * 4)
    assert len(set(tokens)) == 1
    assert [path.name for path in (tmp_path / "c" / "prepared").glob(".work-*")] == []


def test_stored_rows_are_a_sequence(file: Path, tiny_tokenizer: Any) -> None:
    prepare_cached(str(file), tiny_tokenizer, OPTIONS)
    rows = prepare_cached(str(file), tiny_tokenizer, OPTIONS).rows.rows
    listed = list(rows)
    assert rows[-1] == listed[-1] and rows[:2] == listed[:2] and len(rows) == len(listed)
    with pytest.raises(IndexError):
        rows[len(rows)]
