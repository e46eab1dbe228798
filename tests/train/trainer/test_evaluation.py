"""Evaluation: one exact loss, metrics on logits of rows that stand apart, data prepared as for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

Rows = list[dict[str, Any]]
Make = Callable[..., Any]


def mean_loss(trainer: Any, rows: Any) -> float:
    """Over all trained tokens, each document by itself through the plain model."""
    total, weight = 0.0, 0.0
    for n in range(len(rows.table)):
        row = rows.table.row([n])
        ids = torch.from_numpy(row.input_ids).long()
        with torch.no_grad():
            logits = trainer.model(input_ids=ids[None]).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").numpy()
        total, weight = total + float((nll * row.weights[1:]).sum()), weight + float(row.weights[1:].sum())
    return total / weight


@pytest.mark.parametrize("changes", [{}, {"eval_packing": True, "max_length": 64}, {"per_device_eval_batch_size": 5}])
def test_the_loss_is_the_mean_over_all_tokens(changes: dict[str, Any], make: Make, chat_rows: Rows) -> None:
    """However rows are batched; a mean of batches' means would give each of these another value."""
    trainer = make(chat_rows, eval_dataset=chat_rows, **{"per_device_eval_batch_size": 2, **changes})
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(mean_loss(trainer, trainer.eval_dataset), rel=1e-9)
    assert trainer.state.log_history[-1]["eval_loss"] == metrics["eval_loss"]
    assert {"eval_mean_token_accuracy", "eval_entropy", "eval_runtime"} <= set(metrics)


def test_a_set_that_is_passed_later_is_prepared_too(make: Make, chat_rows: Rows) -> None:
    trainer = make(chat_rows, eval_dataset={"train": chat_rows[:3], "rest": chat_rows[3:]})
    both = trainer.evaluate()
    assert trainer.ledger.rows_in == 12, "a set called train is no training set"
    later = trainer.evaluate(chat_rows[:3], metric_key_prefix="later")
    assert later["later_loss"] == both["eval_train_loss"] != both["eval_rest_loss"]
    assert trainer.evaluate({"x": chat_rows[3:]})["eval_x_loss"] == both["eval_rest_loss"]


@pytest.mark.parametrize("named", [False, True])
def test_metrics_see_logits_row_by_row(named: bool, make: Make, chat_rows: Rows) -> None:
    seen: list[Any] = []

    def accuracy(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        logits, labels = prediction.predictions[:, :-1], prediction.label_ids[:, 1:]
        trained = labels != -100
        return {"accuracy": float((logits.argmax(-1) == labels)[trained].mean())}

    held_out = {"some": chat_rows} if named else chat_rows
    trainer = make(chat_rows, eval_dataset=held_out, trainer={"compute_metrics": accuracy})
    prefix = "eval_some" if named else "eval"
    metrics = trainer.evaluate()
    [prediction] = seen
    assert prediction.predictions.shape[0] == prediction.label_ids.shape[0] == len(chat_rows)
    assert prediction.predictions.shape[-1] == trainer.model.config.vocab_size
    assert metrics[f"{prefix}_accuracy"] == pytest.approx(metrics[f"{prefix}_mean_token_accuracy"])
    plain = make(chat_rows, eval_dataset=chat_rows)
    assert metrics[f"{prefix}_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)


def test_predictions_are_the_models_own_logits(make: Make, chat_rows: Rows) -> None:
    trainer = make(chat_rows)
    output = trainer.predict(chat_rows[:3])
    rows = trainer._datasets.make("again", chat_rows[:3])
    for n in range(3):
        ids = torch.from_numpy(rows[n].input_ids).long()
        with torch.no_grad():
            expected = trainer.model(input_ids=ids[None]).logits[0].numpy()
        np.testing.assert_allclose(output.predictions[n, : len(ids)], expected, rtol=1e-9, atol=1e-9)
        assert (output.label_ids[n, len(ids) :] == -100).all()
    assert output.metrics["test_loss"] == pytest.approx(mean_loss(trainer, rows), rel=1e-9)


def test_packed_rows_keep_their_boundaries_for_metrics(make: Make, chat_rows: Rows) -> None:
    shapes: list[Any] = []

    def shape(prediction: Any) -> dict[str, float]:
        shapes.append(prediction.predictions.shape)
        return {}

    packed = make(chat_rows, eval_dataset=chat_rows, packing=True, trainer={"compute_metrics": shape})
    plain = make(chat_rows, eval_dataset=chat_rows)
    assert packed.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-9)
    assert shapes[0][0] < len(chat_rows)


def test_the_callers_loss_function_gets_logits_and_labels(make: Make, chat_rows: Rows) -> None:
    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        logits = outputs.logits[:, :-1].flatten(0, 1)
        total = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
        return total / (num_items_in_batch if num_items_in_batch is not None else (labels[:, 1:] != -100).sum())

    own = make(chat_rows, eval_dataset=chat_rows, max_steps=2, trainer={"compute_loss_func": loss})
    plain = make(chat_rows, eval_dataset=chat_rows, max_steps=2)
    for trainer in (own, plain):
        trainer.train()
    first, second = ([line["loss"] for line in t.state.log_history if "loss" in line] for t in (own, plain))
    assert first == pytest.approx(second, rel=1e-6) and own.evaluate()["eval_loss"] > 0
