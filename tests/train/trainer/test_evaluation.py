"""Evaluation: one exact loss, metrics on logits of rows that stand apart, data prepared as for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from honed.errors import RecipeError, RunError

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


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_weights_that_the_callers_loss_does_not_get_are_told(weight: float, make: Make) -> None:
    rows = [{"input_ids": [3, 4, 5], "loss_mask": [0, weight, 1]}]
    trainer = make(
        rows, trainer={"compute_loss_func": lambda outputs, labels, num_items_in_batch: outputs.logits.sum()}
    )
    assert any("count the same" in note for note in trainer.notes) == (weight != 1)


def test_training_is_the_same_with_evaluations_in_it(
    make: Make, chat_rows: Rows, tiny_model: Callable[..., Any]
) -> None:
    """A loader draws a seed where noise is drawn from; rows grouped by length would draw their order there too."""
    losses = []
    for changes in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        model = tiny_model()
        model.set_attn_implementation("eager")
        trainer = make(
            chat_rows, model=model, eval_dataset=chat_rows, max_steps=3, neftune_noise_alpha=5.0,
            train_sampling_strategy="group_by_length", **changes,
        )  # fmt: skip
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == losses[1]


def test_options_of_training_leave_no_row_out(make: Make, chat_rows: Rows) -> None:
    changes = {"per_device_eval_batch_size": 5, "eval_packing": False}
    usual = make(chat_rows, eval_dataset=chat_rows, **changes)
    options = {"dataloader_drop_last": True, "train_sampling_strategy": "group_by_length"}
    trainer = make(chat_rows, eval_dataset=chat_rows, **changes, **options)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(usual.evaluate()["eval_loss"], rel=1e-12)
    np.testing.assert_array_equal(trainer.predict(chat_rows).label_ids, usual.predict(chat_rows).label_ids)
    assert trainer.args.dataloader_drop_last


def test_workers_that_stay_do_not_keep_another_set(make: Make, chat_rows: Rows) -> None:
    trainer = make(chat_rows, eval_dataset=chat_rows[:3], dataloader_persistent_workers=True, dataloader_num_workers=1)
    own, rest = trainer.evaluate()["eval_loss"], trainer.evaluate(chat_rows[3:])["eval_loss"]
    assert rest == pytest.approx(mean_loss(trainer, trainer._datasets.prepared["eval"].rows), rel=1e-9)
    assert own != rest and trainer.evaluate()["eval_loss"] == own
    for loader in trainer.accelerator._dataloaders:  # left to the collector, each worker takes five seconds to end
        loader._iterator._shutdown_workers()


def test_what_is_returned_holds_the_epoch_and_what_callbacks_add(make: Make, chat_rows: Rows) -> None:
    """transformers' contract: `log` writes `epoch` into the metrics, and `on_log` gets them to change."""

    class Perplexity(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "eval_loss" in logs:
                logs["eval_perplexity"] = float(np.exp(logs["eval_loss"]))

    trainer = make(chat_rows, eval_dataset=chat_rows, max_steps=2, trainer={"callbacks": [Perplexity()]})
    trained = trainer.train().metrics
    measured = trainer.evaluate()
    assert 0 < trained["epoch"] == measured["epoch"] == trainer.state.epoch
    assert measured["eval_perplexity"] == pytest.approx(np.exp(measured["eval_loss"]))


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_weights_that_an_evaluation_rounded_are_not_trained(make: Make, chat_rows: Rows, method: str) -> None:
    """transformers casts the model itself, unless it is being trained."""
    trainer = make(chat_rows, eval_dataset=chat_rows[:2], max_steps=1, bf16_full_eval=True, eval_strategy="epoch")
    trainer.train()
    assert next(trainer.model.parameters()).dtype == torch.float64
    getattr(trainer, method)(chat_rows[:2])
    assert next(trainer.model.parameters()).dtype == torch.bfloat16
    with pytest.raises(RunError, match=r"bf16_full_eval=True.*\n.*leave bf16_full_eval out"):
        trainer.train()


def test_rows_that_are_cut_for_an_evaluation_are_told_once(
    make: Make, chat_rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(chat_rows, max_length=40)
    caplog.clear()
    long = [{"prompt": "why", "completion": " yes" * 60}]
    for use in (trainer.evaluate, trainer.evaluate, trainer.predict):
        use(long)
    cut = [record.message for record in caplog.records if "are longer than max_length=40" in record.message]
    assert [note.split(" set")[0] for note in cut] == ["1 of 1 row of the eval", "1 of 1 row of the test"]
    assert set(cut) <= set(trainer.notes)


BEST = {
    "load_best_model_at_end": True,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("metric", [None, "acuracy", "eval_first_loss", "mean_token_accuracy", "first_acuracy"])
@pytest.mark.parametrize("computes", [False, True])
def test_the_best_models_metric_is_known(
    named: bool, metric: str | None, computes: bool, make: Make, chat_rows: Rows
) -> None:
    """What is not refused is found after the first evaluation; transformers would raise a KeyError there."""
    rows = {"first": chat_rows[:2], "second": chat_rows[2:]} if named else chat_rows
    own = {"compute_metrics": lambda prediction: {"acuracy": 1.0}} if computes else {}
    options = {**BEST, "eval_dataset": rows, "max_steps": 1, "metric_for_best_model": metric, "trainer": own}
    if named:
        good = metric == "eval_first_loss" or (computes and metric == "first_acuracy")
    else:
        good = metric in (None, "mean_token_accuracy") or (computes and metric == "acuracy")
    if good:
        trainer = make(chat_rows, **options)
        trainer.train()
        assert trainer.state.best_metric is not None
    elif named or not computes:
        with pytest.raises(RecipeError, match=r"does not compute\.\n  fix: set one of: eval_(first_)?loss, "):
            make(chat_rows, **options)


def test_a_metric_that_a_callback_adds(make: Make, chat_rows: Rows) -> None:
    class Adds(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
            metrics["eval_length"] = 3.0

    options = {**BEST, "eval_dataset": chat_rows, "max_steps": 1, "metric_for_best_model": "length"}
    trainer = make(chat_rows, trainer={"callbacks": [Adds()]}, **options)
    trainer.train()
    assert trainer.state.best_metric == 3.0
