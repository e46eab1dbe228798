"""Rows are prepared before weights are loaded: as a loaded model would have them, once, and told if they cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from honed.data.prepare.prepare import prepare
from honed.errors import DataError
from honed.train.options.config import SFTConfig
from honed.train.rows.ahead import Ahead, prepare_ahead
from honed.train.trainer import start
from honed.train.trainer.trainer import SFTTrainer

Rows = list[dict[str, Any]]
BAD = {"messages": [{"role": "user", "content": "why?"}]}  # nobody answers


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is prepared."""
    seen: list[Any] = []

    def counted(data: Any, *args: Any, **options: Any) -> Any:
        seen.append(data)
        return prepare(data, *args, **options)

    monkeypatch.setattr("honed.train.rows.ahead.prepare", counted)
    return seen


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "load_model", lambda *_, **__: pytest.fail("the weights were loaded"))


def as_dataset(rows: Rows) -> Any:
    import datasets

    return datasets.Dataset.from_list(rows)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("made_as", [list, as_dataset])
@pytest.mark.parametrize("side", ["train_dataset", "eval_dataset", "one of several"])
def test_a_bad_row_is_told_first(
    side: str, made_as: Callable[[Rows], Any], chat_rows: Rows, folder: Callable[..., str], quick: dict[str, Any]
) -> None:
    good, bad = made_as(chat_rows), made_as([*chat_rows * 300, BAD])
    assert len(bad) > 2000
    sets = {"train_dataset": good, "eval_dataset": good}
    sets |= {"eval_dataset": {"good": good, "bad": bad}} if side == "one of several" else {side: bad}
    with pytest.raises(DataError, match=f"1 of {len(bad):,} rows cannot be trained on"):
        SFTTrainer(folder(), SFTConfig(**quick), **sets)


@pytest.mark.usefixtures("no_weights")
def test_what_a_formatting_function_makes_is_looked_at(folder: Callable[..., str], quick: dict[str, Any]) -> None:
    rows = [{"q": "why fox", "a": "yes"}] * 1200 + [{"q": "why fox", "a": ""}]

    def pair(row: dict[str, str]) -> dict[str, str]:
        return {"prompt": row["q"], "completion": row["a"]}

    with pytest.raises(DataError, match="1 of 1,201 rows"):
        SFTTrainer(folder(), SFTConfig(**quick), train_dataset=rows, formatting_func=pair)


def ids(rows: Any) -> list[list[int]]:
    return [row.input_ids.tolist() for row in rows]


@pytest.mark.parametrize("changes", [{}, {"packing": True}, {"packing": True, "share_prefixes": "auto"}])
def test_a_model_by_name_gets_the_rows_of_a_loaded_one(
    changes: dict[str, Any], chat_rows: Rows, folder: Callable[..., str], quick: dict[str, Any], prepared: list[Any]
) -> None:
    name, sets = folder(), {"train_dataset": chat_rows, "eval_dataset": {"same": chat_rows}}
    by_name = SFTTrainer(name, SFTConfig(**quick, **changes), **sets)
    assert len(prepared) == 2
    tokenizer = by_name.processing_class
    loaded = SFTTrainer(by_name.model, SFTConfig(**quick, **changes), processing_class=tokenizer, **sets)
    assert ids(by_name.train_dataset) == ids(loaded.train_dataset)
    assert ids(by_name.eval_dataset["same"]) == ids(loaded.eval_dataset["same"])
    assert by_name.ledger.as_dict() == loaded.ledger.as_dict() and by_name.notes == loaded.notes


def test_a_model_with_fewer_positions_has_them_prepared_again(
    chat_rows: Rows, folder: Callable[..., str], quick: dict[str, Any], prepared: list[Any]
) -> None:
    name = folder("gpt2", max_position_embeddings=32)
    trainer = SFTTrainer(name, SFTConfig(**{**quick, "max_length": 1024, "overlong": "truncate"}), None, chat_rows)
    assert len(prepared) == 2 and trainer.args.max_length == 32
    assert max(len(row.input_ids) for row in trainer.train_dataset) == 32


@pytest.mark.parametrize(
    "changes",
    [{"streaming": True, "max_steps": 1}, {"shuffle_dataset": True},
     {"dataset_kwargs": {"skip_prepare_dataset": True}}],
)  # fmt: skip
def test_what_is_not_prepared_whole_or_as_it_is_stays(
    changes: dict[str, Any], chat_rows: Rows, tiny_tokenizer: Any, quick: dict[str, Any]
) -> None:
    assert prepare_ahead(chat_rows, tiny_tokenizer, SFTConfig(**quick, **changes)) is chat_rows


def test_what_can_be_read_only_once_is_not_read(chat_rows: Rows, tiny_tokenizer: Any, quick: dict[str, Any]) -> None:
    def rows() -> Iterator[Any]:
        yield pytest.fail("a row was read")

    once = rows()
    assert prepare_ahead(once, tiny_tokenizer, SFTConfig(**quick)) is once


def test_another_tokenizer_or_length_does_not_fit(chat_rows: Rows, tiny_tokenizer: Any, quick: dict[str, Any]) -> None:
    import copy
    from dataclasses import replace

    made = prepare_ahead(chat_rows, tiny_tokenizer, SFTConfig(**quick))
    assert isinstance(made, Ahead) and made.fits(tiny_tokenizer, made.options)
    other = copy.deepcopy(tiny_tokenizer)
    assert made.fits(other, made.options)
    other.chat_template += " "
    assert not made.fits(other, made.options)
    assert not made.fits(tiny_tokenizer, replace(made.options, max_length=64))
