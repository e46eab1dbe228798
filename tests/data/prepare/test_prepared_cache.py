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
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

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


def split(tokenizer: Any) -> None:
    tokenizer.split_special_tokens = True


def with_flags(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("fox", rstrip=True)])


def without_flags(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("fox")])


def with_prefix_space(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def lowered(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def opened(tokenizer: Any) -> None:
    own = [("<|im_start|>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<|im_start|> $A", None, own)


def closed_otherwise(tokenizer: Any) -> None:
    tokenizer.eos_token = "<|endoftext|>"


def spaced_by_its_class(tokenizer: Any) -> None:
    tokenizer.add_prefix_space = True


def of_another_class(tokenizer: Any) -> None:
    tokenizer.__class__ = type("Other", (PreTrainedTokenizerFast,), {"__module__": "transformers.other"})


CHANGES = (
    split, with_flags, without_flags, with_prefix_space, lowered, opened, closed_otherwise, spaced_by_its_class,
    of_another_class,
)  # fmt: skip


def test_padding_that_a_call_left_is_not_in_the_key(file: Path, tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    before = cache_key(str(file), tokenizer, OPTIONS)
    tokenizer(["a", "a b"], padding=True, truncation=True, max_length=4)
    assert tokenizer.backend_tokenizer.padding is not None
    assert cache_key(str(file), tokenizer, OPTIONS) == before


def test_all_of_the_tokenizer_that_decides_its_ids_is_in_the_key(file: Path, tiny_tokenizer: Any) -> None:
    keys = [cache_key(str(file), tiny_tokenizer, OPTIONS)]
    for change in CHANGES:
        other = copy.deepcopy(tiny_tokenizer)
        change(other)
        keys.append(cache_key(str(file), other, OPTIONS))
    assert None not in keys and len(set(keys)) == len(keys)


def test_special_tokens_that_are_split_are_another_input(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"text": "a <|im_end|> b"}) + "\n", encoding="utf-8")
    other = copy.deepcopy(tiny_tokenizer)
    split(other)
    given = [prepare_cached(str(path), one, OPTIONS).rows[0].input_ids.tolist() for one in (tiny_tokenizer, other)]
    eos = tiny_tokenizer.eos_token_id
    assert given == [[*one("a <|im_end|> b")["input_ids"], eos] for one in (tiny_tokenizer, other)]
    assert given[0] != given[1]


class Characters(PreTrainedTokenizer):
    """A tokenizer in Python, whose way of reading a text follows from an attribute that no file names."""

    lower = False

    @property
    def vocab_size(self) -> int:
        return 128

    def get_vocab(self) -> dict[str, int]:
        return {chr(n): n for n in range(128)} | dict(self.added_tokens_encoder)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text.lower() if self.lower else text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


class OfOnesOwn(PreTrainedTokenizerFast):
    """One whose code lies beside a model."""


def test_tokenizers_whose_code_is_not_known_are_used_anew_each_time(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"text": "A b"}) + "\n", encoding="utf-8")
    tokenizer, found = Characters(eos_token="<e>"), []
    for lower in (False, True):
        monkeypatch.setattr(Characters, "lower", lower)
        found.append(prepare_cached(str(path), tokenizer, OPTIONS, root=tmp_path / "c"))
    assert [list(one.rows[0].input_ids[:3]) for one in found] == [[65, 32, 98], [97, 32, 98]]
    assert found[0].ledger.notes == ["prepared data is not kept on disk: Characters is not a fast tokenizer"]
    own = OfOnesOwn(tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    [note] = prepare_cached(str(path), own, OPTIONS, root=tmp_path / "c").ledger.notes
    assert "OfOnesOwn is not one of transformers' own tokenizers" in note
    assert not (tmp_path / "c").exists()


def test_other_versions_of_libraries_prepare_anew(
    file: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [cache_key(str(file), tiny_tokenizer, OPTIONS)]
    for library in ("tokenizers", "transformers", "jinja2"):
        monkeypatch.setattr(prepared_cache, "version", lambda name, other=library: "0" if name == other else "1")
        keys.append(cache_key(str(file), tiny_tokenizer, OPTIONS))
    assert len(set(keys)) == len(keys)


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
