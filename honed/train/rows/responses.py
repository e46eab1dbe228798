"""train_on_responses_only: Unsloth's way to select what is trained, by the texts that begin questions and answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from honed.data.batch.completion_collator import SHOWN, DataCollatorForCompletionOnlyLM
from honed.data.batch.table import PackedRows, TokenTable
from honed.data.read.formats import IGNORE_INDEX
from honed.errors import DataError, RecipeError
from honed.quantities import counted
from honed.train.rows.rows import Features

logger = logging.getLogger(__name__)

Columns = Mapping[str, Sequence[Sequence[int]]]


def train_on_responses_only(  # noqa: PLR0917 - the order is Unsloth's
    trainer: Any,
    instruction_part: str | None = None,
    response_part: str | None = None,
    force_match: bool = True,
    tokenizer: Any = None,
    return_function: bool = False,
    num_proc: int | None = None,
) -> Any:
    """Restricts the loss to responses: from the end of each `response_part` to the next `instruction_part`.

    What was not trained before (because of a row's own mask or `assistant_only_loss`) stays untrained. The parts are
    found in each document's text, however they are tokenised; the token that ends a turn is trained with it. Only the
    prepared rows in the trainer are changed, not the caller's dataset.

    Args:
        trainer: an `SFTTrainer`, before `train()`; may be None with `return_function`.
        instruction_part: text that begins a question, such as "<|im_start|>user\\n".
        response_part: text before an answer, such as "<|im_start|>assistant\\n".
        force_match: no effect: the parts must always match completely, including their last line break.
        tokenizer: decodes the rows; None for the trainer's.
        return_function: return a function {"input_ids": [...]} -> {"labels": [...]} for batched `datasets.map`.
        num_proc: no effect: rows are masked in place.

    Returns:
        The trainer, or the function.

    Raises:
        RecipeError: a part is missing, or the trainer's rows are streamed or masked by its collator.
        DataError: no row of a dataset has anything left to train.
    """
    if not instruction_part or not response_part:
        raise RecipeError(
            "train_on_responses_only needs instruction_part and response_part.",
            fix="pass the texts that begin a question and an answer, or set assistant_only_loss=True, which needs none",
        )
    own = trainer.processing_class if tokenizer is None else tokenizer
    finder = DataCollatorForCompletionOnlyLM(response_part, instruction_part, tokenizer=getattr(own, "tokenizer", own))
    if return_function:
        return _labels_by(finder)
    trainer.train_dataset = _masked(trainer, "train", trainer.train_dataset, finder)
    evaluation = trainer.eval_dataset
    if isinstance(evaluation, dict):
        made = {name: _masked(trainer, f"eval {name}", rows, finder) for name, rows in evaluation.items()}
        trainer.eval_dataset = made
    elif evaluation is not None:
        trainer.eval_dataset = _masked(trainer, "eval", evaluation, finder)
    return trainer


def _labels_by(finder: DataCollatorForCompletionOnlyLM) -> Callable[[Columns], dict[str, list[list[int]]]]:
    def labels(rows: Columns) -> dict[str, list[list[int]]]:
        ids = [list(row) for row in rows["input_ids"]]
        return {"labels": [np.where(finder.trained(row), row, IGNORE_INDEX).tolist() for row in ids]}

    return labels


def _masked(trainer: Any, name: str, rows: Any, finder: DataCollatorForCompletionOnlyLM) -> Any:
    """Returns the rows with all other tokens' weights set to 0; notes documents with nothing left to train."""
    prepared = rows.rows if isinstance(rows, Features) else rows
    makes_its_own = isinstance(rows, Features) and "labels" not in rows.column_names
    if not isinstance(prepared, PackedRows) or makes_its_own:
        what = "a data_collator that makes its own labels" if makes_its_own else f"a {type(rows).__name__}"
        raise RecipeError(
            f"train_on_responses_only cannot mask the {name} rows: they are in {what}.",
            fix="leave data_collator, streaming and skip_prepare_dataset out, or set assistant_only_loss=True",
        )
    table, empty = _masked_table(prepared.table, finder)
    if not table.weights.any():
        text = finder.tokenizer.decode(table.input_ids[: table.starts[1]].tolist())
        raise DataError(
            f"No {name} row holds {finder.response_template!r} with text after it; the first begins {text[:SHOWN]!r}.",
            fix="pass the texts that the chat template writes before a question and an answer",
        )
    if empty:
        of = counted(len(table), f"{name} document")
        note = (
            f"train_on_responses_only: nothing is trained in {len(empty):,} of {of} (the first is number {empty[0]}): "
            f"{finder.response_template!r} is not in them, or nothing follows it."
        )
        trainer.notes.append(note)
        logger.warning(note)
    if (made := trainer._datasets.prepared.get(name)) is not None:
        made.ledger.trained_tokens = int(np.count_nonzero(table.weights))
    masked = PackedRows(table, prepared.rows)
    return Features(masked, with_labels=True) if isinstance(rows, Features) else masked


def _masked_table(table: TokenTable, finder: DataCollatorForCompletionOnlyLM) -> tuple[TokenTable, list[int]]:
    """Returns the table with weights in responses only, and the documents that lost all their trained tokens."""
    weights, empty = table.weights.copy(), []
    for document, (start, end) in enumerate(zip(table.starts[:-1], table.starts[1:], strict=True)):
        if weights[start:end].any():
            weights[start:end] *= finder.trained(table.input_ids[start:end].tolist())
            if not weights[start:end].any():
                empty.append(document)
    return TokenTable.of(table.input_ids, weights, table.starts), empty
