"""Datasets as the trainer reads them: prepared, tokenised before, streamed, for our collators and for others'."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler
from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq, DataCollatorWithFlattening

from honed.data.batch.collate import FlatCollator
from honed.data.batch.table import PackedRows, TokenTable
from honed.data.mix.mixture import Mixture, Part
from honed.errors import DataError, RecipeError
from honed.train.options.config import SFTConfig
from honed.train.rows import rows as module
from honed.train.rows.rows import Datasets, FeatureCollator, Features, TokenCollator, as_packed_row

Rows = list[dict[str, Any]]
Make = Callable[..., Any]
SKIP = {"dataset_kwargs": {"skip_prepare_dataset": True}}


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.fixture
def tokenised(make: Make, chat_rows: Rows) -> Rows:
    """The rows as another script might have tokenised them."""
    prepared = make(chat_rows).train_dataset
    return [module.as_feature(prepared[n], with_labels=True) for n in range(len(prepared))]


@pytest.mark.parametrize("kind", [DataCollatorForSeq2Seq, DataCollatorForLanguageModeling, DataCollatorWithFlattening])
def test_a_collator_of_transformers_gets_token_ids(kind: Any, make: Make, chat_rows: Rows, tiny_tokenizer: Any) -> None:
    """The same loss as with our own collator; one makes its own labels, so all tokens are trained for it."""
    makes_labels = kind is DataCollatorForLanguageModeling
    options = {DataCollatorForLanguageModeling: {"mlm": False}, DataCollatorWithFlattening: {}}.get(kind, {})
    collator = kind(**options) if kind is DataCollatorWithFlattening else kind(tiny_tokenizer, **options)
    changes = {"train_on": "all" if makes_labels else "assistant", "max_steps": 2, "learning_rate": 0.01}
    expected = make(chat_rows, **changes)
    found = make(chat_rows, trainer={"data_collator": collator}, **changes)
    assert isinstance(found.train_dataset, Features) and found.data_collator is collator
    assert ("labels" in found.train_dataset[0]) is not makes_labels and len(found.train_dataset) == 12
    assert losses(found) == pytest.approx(losses(expected), rel=1e-6)
    assert found.state.log_history[0]["mean_token_accuracy"] >= 0 and found.ledger.rows_trained == 12


def test_a_collator_behind_a_stream(make: Make, chat_rows: Rows, tiny_tokenizer: Any) -> None:
    stream = datasets.Dataset.from_list(chat_rows).to_iterable_dataset()
    collator = DataCollatorForSeq2Seq(tiny_tokenizer)
    expected = make(stream, max_steps=2)
    found = make(stream, max_steps=2, trainer={"data_collator": collator})
    assert found.train_dataset.collate == FeatureCollator(collate=collator, with_labels=True)
    assert losses(found) == pytest.approx(losses(expected), rel=1e-6)


@pytest.mark.parametrize("kind", ["list", "dataset", "stream", "tensors"])
def test_rows_that_were_tokenised_before(kind: str, make: Make, chat_rows: Rows, tokenised: Rows) -> None:
    """As they are or prepared, as a list, a dataset or a stream: the same loss as from the conversations."""
    data = {
        "list": tokenised,
        "dataset": datasets.Dataset.from_list([{**row, "note": "a text"} for row in tokenised]),
        "stream": datasets.Dataset.from_list(tokenised).to_iterable_dataset(),
        "tensors": datasets.Dataset.from_list(tokenised).with_format("torch"),
    }[kind]
    stream = {"per_device_train_batch_size": 12, "max_steps": 1}  # a stream shuffles in its own way: all in one batch
    expected = losses(make(chat_rows, **stream))
    assert losses(make(data, **stream)) == pytest.approx(expected, rel=1e-6)
    if kind != "list":  # Trainer would take a list of mappings, but not count on its columns
        skipped = make(data, **stream, **SKIP)
        assert isinstance(skipped.data_collator, TokenCollator) and skipped.ledger is None
        assert losses(skipped) == pytest.approx(expected, rel=1e-6)


def test_a_collator_gets_rows_as_they_are_when_told(make: Make) -> None:
    seen: list[Any] = []

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        seen.extend(rows)
        ids = torch.tensor([[1, 5, 6, 2]])
        return {"input_ids": ids, "labels": ids.clone()}

    rows = datasets.Dataset.from_list([{"anything": "x"}] * 4)
    options = {"max_steps": 1, "remove_unused_columns": False}
    trainer = make(rows, trainer={"data_collator": collate}, **options, **SKIP)
    trainer.train()
    assert seen[0] == {"anything": "x"} and trainer.ledger is None
    with pytest.raises(DataError, match="skip_prepare_dataset"):
        make(rows, trainer={"data_collator": collate}, **options)


def test_what_a_tokenised_row_says(tokenised: Rows) -> None:
    row = as_packed_row({"input_ids": [1, 2, 3, 4, 5], "completion_mask": [1, 0, 1, 1, 1], "seq_lengths": [2, 3]})
    assert row.weights.tolist() == [0, 0, 0, 1, 1] and row.lengths == (2, 3)
    batch = TokenCollator(collate=FlatCollator())([tokenised[0], {"input_ids": np.array([3, 4])}])
    assert batch["cu_seq_lens_q"].tolist() == [0, len(tokenised[0]["input_ids"]), len(tokenised[0]["input_ids"]) + 2]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"text": "why"}, "no `input_ids`, only text"),
        ({"input_ids": []}, "no `input_ids`"),
        ({"input_ids": [1, 2], "labels": [1]}, "differ in length"),
        ({"input_ids": [1, 2], "labels": [7, 7]}, "labels differ"),
    ],
)
def test_tokenised_rows_that_cannot_be(row: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        as_packed_row(row)


@pytest.mark.parametrize("way", ["rows", "dataset", "mixture"])
def test_rows_are_shuffled_once_and_none_is_lost(way: str, make: Make, chat_rows: Rows) -> None:
    data = {
        "rows": chat_rows,
        "dataset": datasets.Dataset.from_list(chat_rows),
        "mixture": Mixture(parts=(Part(data=chat_rows, name="one"),)),
    }[way]
    plain, first, again, other = (
        [tuple(row.input_ids) for row in map(t.train_dataset.__getitem__, range(12))]
        for t in (make(data), *(make(data, shuffle_dataset=True, seed=seed) for seed in (1, 1, 2)))
    )
    assert first == again and len({str(plain), str(first), str(other)}) == 3
    assert sorted(plain) == sorted(first) == sorted(other)


def rows_of(trainer: Any) -> list[tuple[list[int], list[float], tuple[int, ...]]]:
    rows = map(trainer.train_dataset.__getitem__, range(len(trainer.train_dataset)))
    return [(row.input_ids.tolist(), row.weights.tolist(), tuple(row.lengths)) for row in rows]


@pytest.mark.parametrize("option", [{"padding_free": True}, {"dataset_num_proc": 2}, {"dataset_text_field": "other"}])
def test_options_that_change_no_row(option: dict[str, Any], make: Make, chat_rows: Rows) -> None:
    """Batches have no padding anyway; more processes give the same rows; conversations have no text column."""
    assert rows_of(make(chat_rows, **option)) == rows_of(make(chat_rows))


def test_the_text_column_has_any_name(make: Make) -> None:
    texts = ["why one", "yes two fox"]
    plain = make([{"text": text} for text in texts], train_on=None)
    named = make([{"body": text, "text": "no"} for text in texts], train_on=None, dataset_text_field="body")
    assert rows_of(named) == rows_of(plain)


def test_a_text_column_comes_before_alpaca_as_in_trl(make: Make) -> None:
    """The notebook that adds `text` to Alpaca rows; `dataset_text_field` always names a column."""
    rows = [{"instruction": "why", "input": "", "output": "yes", "text": f"why yes {n}"} for n in range(2)]
    trainer = make(rows, train_on=None)
    assert rows_of(trainer) == rows_of(make([{"text": row["text"]} for row in rows], train_on=None))
    assert any("trained as text, not alpaca" in note for note in trainer.notes)
    other = make(rows, train_on=None, dataset_text_field=None)  # as a recipe without text_field
    assert rows_of(other) == rows_of(make(rows, train_on=None, data_format="alpaca"))
    assert any("trained as alpaca, not text" in note for note in other.notes)


@pytest.mark.parametrize(("strategy", "whole", "full"), [("bfd", True, False), ("wrapped", False, True)])
def test_packing_strategies(strategy: str, whole: bool, full: bool, make: Make) -> None:
    """bfd keeps each document in one row; wrapped fills every row but the last, and tears some."""
    data = [{"text": "why " * n} for n in (3, 17, 9, 20, 5)]
    options = {"train_on": None, "packing": True, "max_length": 24}
    rows = rows_of(make(data, packing_strategy=strategy, **options))
    documents = [n for *_, lengths in rows for n in lengths]
    alone = [len(ids) for ids, *_ in rows_of(make(data, train_on=None, max_length=24))]
    assert (sorted(documents) == sorted(alone)) is whole and sum(documents) == sum(alone)
    assert ({len(ids) for ids, *_ in rows[:-1]} == {24}) is full


def test_a_transform_is_refused(make: Make, chat_rows: Rows) -> None:
    rows = datasets.Dataset.from_list(chat_rows).with_transform(lambda batch: batch)
    with pytest.raises(RecipeError, match="has a transform"):
        make(rows)


def test_a_file_is_named_by_a_text(make: Make, chat_rows: Rows, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in chat_rows))
    trainer = make(str(file), eval_dataset=file, shuffle_dataset=True)
    assert trainer.ledger.rows_in == trainer.ledger.evaluation["rows_in"] == 12


def test_a_formatting_function_is_not_called_for_token_ids(make: Make, tokenised: Rows) -> None:
    rows = datasets.Dataset.from_list(tokenised)
    trainer = make(rows, trainer={"formatting_func": lambda row: row["missing"]})
    assert trainer.ledger.rows_trained == 12 and any("formatting_func has no effect" in n for n in trainer.notes)


def test_packing_for_another_collator_is_refused(make: Make, chat_rows: Rows, tiny_tokenizer: Any) -> None:
    with pytest.raises(RecipeError, match="packs nothing for a DataCollatorForSeq2Seq"):
        make(chat_rows, packing=True, trainer={"data_collator": DataCollatorForSeq2Seq(tiny_tokenizer)})


def test_what_was_cut_is_counted_and_told(make: Make, chat_rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make(chat_rows, max_length=20)
    cut = trainer.ledger.rows_cut.total()
    assert 0 < cut < 12
    assert any(f"{cut} of 12 rows of the train set are longer than max_length=20" in note for note in trainer.notes)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("honed")] == trainer.notes


def test_rows_of_which_nothing_fits_are_told(make: Make, chat_rows: Rows) -> None:
    """As TRL does, such rows are left out; unlike there it is said, unless `overlong="drop"` asked for it."""
    rows = [*chat_rows, {"prompt": "why " * 40, "completion": " yes"}]
    said = "1 of 13 rows of the train set are left out"
    assert any(note.startswith(said) for note in make(rows, max_length=30).notes)
    assert not any("are left out" in note for note in make(rows, max_length=30, overlong="drop").notes)


@pytest.mark.parametrize("flat", [True, False])
def test_padding_to_a_multiple(flat: bool, make: Make, chat_rows: Rows, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model() if flat else tiny_model("llama", attention_chunk_size=4)
    padded = make(chat_rows, pad_to_multiple_of=8, model=model)
    assert padded.seams.flat is flat
    assert all(batch["input_ids"].shape[1] % 8 == 0 for batch in padded.get_train_dataloader())


def test_rows_of_like_length_meet_in_a_batch(make: Make, tiny_model: Callable[..., Any]) -> None:
    rows = [{"text": "yes " * (1 + 6 * (n % 2))} for n in range(128)]
    padding = {}
    for strategy in ("random", "group_by_length"):
        model = tiny_model("llama", attention_chunk_size=4)  # whose batches are padded
        trainer = make(rows, model=model, train_sampling_strategy=strategy, train_on=None)
        padding[strategy] = sum(int((batch["attention_mask"] == 0).sum()) for batch in trainer.get_train_dataloader())
    assert 0 <= padding["group_by_length"] < padding["random"]
    flat = make(rows, train_sampling_strategy="group_by_length", train_on=None, max_steps=1)
    flat.train()
    assert any("no effect on flat batches" in note for note in flat.notes)


def test_rows_that_do_not_fill_one_batch_are_told(make: Any, chat_rows: list[dict[str, Any]]) -> None:
    """transformers would say that the loader has no length."""
    with pytest.raises(DataError, match="12 rows do not fill a batch of 20"):
        make(chat_rows, per_device_train_batch_size=20, dataloader_drop_last=True).train()


def test_the_ranks_batches_of_a_round_are_of_like_length() -> None:
    """At 8 ranks, with lengths as conversations have (half of them 128 tokens, 5% above 350): each row once an epoch,
    and the longest of the 8 batches is less than a tenth longer than they are on average."""
    draw, ranks, size = np.random.default_rng(0), 8, 8
    lengths = np.clip(np.exp(draw.normal(np.log(128), 0.6, size=20_000)), 8, 2048).astype(np.int64)
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    table = TokenTable.of(np.zeros(starts[-1], np.int32), np.zeros(starts[-1], np.float32), starts)
    order = module.GroupedByLength(PackedRows(table, [[n] for n in range(len(lengths))]), size * ranks, seed=0)
    orders = []
    for epoch in (0, 1):
        order.set_epoch(epoch)
        batches = BatchSampler(order, size, drop_last=True)
        dealt = [list(BatchSamplerShard(batches, ranks, rank)) for rank in range(ranks)]
        padded_RS = np.array([[size * lengths[batch].max() for batch in of_rank] for of_rank in dealt])
        assert (padded_RS.max(axis=0) / padded_RS.mean(axis=0)).mean() <= 1.1
        assert sorted(order) == list(range(len(lengths)))
        orders.append(list(order))
    assert orders[0] != orders[1]


def test_a_text_with_bos_gets_no_second_one_and_ids_with_two_are_told(
    tiny_tokenizer: Any, quick: dict[str, Any]
) -> None:
    """A text that a chat template made, and a tokenizer that adds BOS to texts."""
    from tokenizers.processors import TemplateProcessing

    tokenizer, bos = copy.deepcopy(tiny_tokenizer), tiny_tokenizer.bos_token
    opening = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = opening
    data = Datasets(SFTConfig(**quick), tokenizer, formatting_func=None, collator=None, flat=True)
    made = data.make("train", [{"text": f"{bos}why one"}, {"text": "why two"}])
    assert [list(made[n].input_ids[:2] == tokenizer.bos_token_id) for n in (0, 1)] == [[True, False]] * 2
    [note] = data.notes
    assert note.startswith("texts of 1 row begin with BOS already")
    data.notes.clear()
    data.make("eval", [{"input_ids": tokenizer(f"{bos}why one")["input_ids"]}, {"text": "why two"}])
    [note] = data.notes
    assert note.startswith("eval set: two BOS at the beginning of 1 document,")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"overlong": "truncate"}, "their ends are cut off"),
        ({"overlong": "split"}, "they are split into parts"),
        ({"packing": True, "packing_strategy": "bfd_split"}, "they are split into parts"),
        ({"packing": True, "packing_strategy": "wrapped"}, None),
        ({"overlong": "drop"}, None),
    ],
)
def test_what_became_of_long_rows_is_told(
    changes: dict[str, Any], told: str | None, chat_rows: Rows, tiny_tokenizer: Any
) -> None:
    args = SFTConfig(use_cpu=True, report_to="none", max_length=20, **changes)
    made = Datasets(args, tiny_tokenizer, formatting_func=None, collator=None, flat=True)
    made.make("train", chat_rows)
    cut = made.prepared["train"].ledger.rows_cut.total()
    notes = [note for note in made.notes if "longer than max_length=20" in note]
    assert [f"{cut} of 12 rows" in note and told in note for note in notes] == ([True] if told else [])
    assert bool(cut) == bool(told)
