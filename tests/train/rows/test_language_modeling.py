"""DataCollatorForLanguageModeling against what TRL 1.16 returned for the same rows, and in a training run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from honed import DataCollatorForLanguageModeling
from honed.errors import DataError, RecipeError

ROWS = [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5], "labels": [-100, 5]}]
PACKED = [
    {"input_ids": [1, 2, 3, 4, 5, 6], "seq_lengths": [3, 3]},
    {"input_ids": [7, 8, 9, 10, 11], "seq_lengths": [4, 1]},
]
MASKED = [{"input_ids": [1, 2, 3, 4], "completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 1, 0, 1]}]

# TRL 1.16; of padding_free without the boundaries that it adds, which follow from position_ids
BATCHES: list[tuple[dict[str, Any], list[Any], dict[str, Any]]] = [
    (
        {},
        ROWS,
        {
            "input_ids": [[1, 2, 3], [4, 5, 9]],
            "labels": [[1, 2, 3], [-100, 5, -100]],
            "attention_mask": [[1, 1, 1], [1, 1, 0]],
        },
    ),
    (
        {"pad_to_multiple_of": 4, "return_position_ids": True},
        ROWS,
        {
            "input_ids": [[1, 2, 3, 9], [4, 5, 9, 9]],
            "labels": [[1, 2, 3, -100], [-100, 5, -100, -100]],
            "attention_mask": [[1, 1, 1, 0], [1, 1, 0, 0]],
            "position_ids": [[0, 1, 2, 0], [0, 1, 0, 0]],
        },
    ),
    (
        {"padding_free": True, "pad_to_multiple_of": 4},
        ROWS,
        {
            "input_ids": [[1, 2, 3, 4, 5, 9, 9, 9]],
            "labels": [[-100, 2, 3, -100, 5, -100, -100, -100]],
            "position_ids": [[0, 1, 2, 0, 1, 0, 0, 0]],
        },
    ),
    (
        {"return_position_ids": True},
        PACKED,
        {
            "input_ids": [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 9]],
            "labels": [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, -100]],
            "attention_mask": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]],
            "position_ids": [[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 0, 0]],
        },
    ),
    (
        {"padding_free": True},
        PACKED,
        {
            "input_ids": [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]],
            "labels": [[-100, 2, 3, -100, 5, 6, -100, 8, 9, 10, -100]],
            "position_ids": [[0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 0]],
        },
    ),
]


@pytest.mark.parametrize("as_column", [list, np.array, torch.tensor])
@pytest.mark.parametrize(("options", "rows", "expected"), BATCHES)
def test_batches_are_trls(options: Any, rows: Any, expected: Any, as_column: Callable[..., Any]) -> None:
    given = [{name: as_column(column) for name, column in row.items()} for row in rows]
    batch = DataCollatorForLanguageModeling(9, **options)(given)
    assert {name: column.tolist() for name, column in batch.items()} == expected
    assert all(column.dtype == torch.int64 for column in batch.values())
    assert given[0]["input_ids"].tolist() == rows[0]["input_ids"] if as_column is not list else given == rows


def test_masks_count_in_rows_without_labels() -> None:
    def labels(rows: Any = MASKED, **options: Any) -> Any:
        return DataCollatorForLanguageModeling(0, **options)(rows)["labels"].tolist()

    assert labels() == [[-100, 2, -100, 4]]
    assert labels(completion_only_loss=False) == [[1, 2, -100, 4]]
    assert labels([{**MASKED[0], "labels": [1, 2, 3, 4]}]) == [[1, 2, 3, 4]]


def test_a_subclass_overrides_torch_call_and_has_attributes_of_its_own() -> None:
    class First(DataCollatorForLanguageModeling):
        def __init__(self, token: int) -> None:
            super().__init__(pad_token_id=0)
            self.token = token

        def torch_call(self, examples: Any) -> dict[str, torch.Tensor]:
            return {"first": super().torch_call(examples)["input_ids"][:, 0] + self.token}

    assert First(10)(ROWS)["first"].tolist() == [11, 14]
    with pytest.raises(RecipeError, match="only 'pt'"):
        First(10)(ROWS, return_tensors="np")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "Hi"}, r"no input_ids; its columns are text.\n.*tokenise the rows"),
        ({"input_ids": [1, 2], "labels": [1]}, "1 labels for 2 input_ids"),
        ({"input_ids": [1, 2], "assistant_masks": [1, 0, 1]}, "3 assistant_masks for 2 input_ids"),
    ],
)
def test_rows_that_cannot_be_used(row: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        DataCollatorForLanguageModeling(0)([row])


@pytest.mark.parametrize(
    ("options", "said"), [({"max_length": 5}, "without counting"), ({"return_tensors": "np"}, "'pt'")]
)
def test_arguments_that_it_does_not_take(options: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        DataCollatorForLanguageModeling(0, **options)


@pytest.mark.parametrize("options", [{}, {"padding_free": True}, {"padding_free": True, "pad_to_multiple_of": 8}])
def test_training_with_it_is_training_without(make: Callable[..., Any], chat_rows: list[Any], options: Any) -> None:
    def norms(**trainer: Any) -> list[float]:
        made = make(chat_rows, trainer=trainer, max_steps=3, logging_steps=1)
        made.train()
        return [entry["grad_norm"] for entry in made.state.log_history if "grad_norm" in entry]

    assert norms(data_collator=DataCollatorForLanguageModeling(0, **options)) == pytest.approx(norms(), rel=1e-5)
