"""SFTTrainer: its shortcuts change nothing, its accounts add up, its callers' objects stay as they were."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainingArguments

from honed.data.batch.collate import FlatCollator, PaddedCollator
from honed.data.batch.table import PackedRows
from honed.errors import DataError, ModelError
from honed.model.adapters.adapters import lora_config
from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer

Rows = list[dict[str, Any]]


def gradients(trainer: SFTTrainer, batches: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Gradients of one optimizer step over these micro-batches, through the trainer's own hooks."""
    trainer.model.zero_grad()
    total = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    with trainer._seams_open():
        for batch in batches:
            trainer.compute_loss(trainer.model, batch, num_items_in_batch=total).backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def reference(model: Any, rows: PackedRows) -> dict[str, torch.Tensor]:
    """Each document by itself through the plain model, loss by torch; no seam, no batch, no padding."""
    model.zero_grad()
    documents = [rows.table.row([d]) for d in range(len(rows.table))]
    trained = sum(int((d.weights > 0).sum()) for d in documents)
    for d in documents:
        ids = torch.from_numpy(d.input_ids).long()
        logits = model(input_ids=ids[None]).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        ((nll * torch.from_numpy(d.weights[1:])).sum() / trained).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[n] - expected[n]).norm() / expected[n].norm().clamp_min(1e-30)) for n in expected)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
@pytest.mark.parametrize("way", ["packed", "flat", "padded", "accumulated", "one by one"])
def test_gradients_do_not_depend_on_how_rows_are_batched(
    family: str, way: str, make: Callable[..., SFTTrainer], tiny_model: Callable[..., Any], chat_rows: Rows
) -> None:
    trainer = make(chat_rows, model=tiny_model(family, dtype=torch.float64), packing=way == "packed")
    rows = trainer.train_dataset
    listed = [rows[n] for n in range(len(rows))]
    flat, padded = FlatCollator(), PaddedCollator(pad_token_id=2)  # 2 is EOS: padding is masked by length
    if way == "padded":
        batches = [padded(listed)]
    elif way == "accumulated":
        batches = [flat(listed[:1]), flat(listed[1:8]), flat(listed[8:])]
    else:
        batches = [flat([row]) for row in listed] if way == "one by one" else [flat(listed)]
    if way == "packed":
        assert len(rows) < len(rows.table), "nothing was packed"
    assert relative(gradients(trainer, batches), reference(trainer.model, rows)) < 1e-10


@pytest.mark.parametrize("changes", [{"gradient_accumulation_steps": 4}, {"gradient_accumulation_steps": 2}])
def test_training_with_accumulation_gives_the_same_weights(
    changes: dict[str, int], make: Callable[..., SFTTrainer], chat_rows: Rows
) -> None:
    """Twelve rows in steps of four: the micro-batches hold different numbers of trained tokens."""
    size = 4 // changes["gradient_accumulation_steps"]
    whole = make(chat_rows, per_device_train_batch_size=4, num_train_epochs=2)
    parts = make(chat_rows, per_device_train_batch_size=size, num_train_epochs=2, **changes)
    for trainer in (whole, parts):
        trainer.train()
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (whole, parts)]
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], rel=1e-6)  # Trainer logs float32
    pairs = zip(whole.model.parameters(), parts.model.parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in pairs)


def test_the_logged_loss_is_the_mean_over_trained_tokens(make: Callable[..., SFTTrainer], chat_rows: Rows) -> None:
    trainer = make(chat_rows, per_device_train_batch_size=3, gradient_accumulation_steps=4, num_train_epochs=1)
    rows = trainer.train_dataset
    total, weight = 0.0, 0
    with torch.no_grad():
        for d in (rows.table.row([n]) for n in range(len(rows.table))):
            ids = torch.from_numpy(d.input_ids).long()
            nll = torch.nn.functional.cross_entropy(trainer.model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
            total, weight = (
                total + float((nll * (torch.from_numpy(d.weights[1:]) > 0)).sum()),
                weight + int((d.weights > 0).sum()),
            )
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["loss"] == pytest.approx(total / weight, rel=1e-6)
    assert line["num_tokens"] == trainer.ledger.tokens and weight == trainer.ledger.trained_tokens
    assert 0 <= line["mean_token_accuracy"] <= 1 and line["entropy"] > 0 and line["tokens_per_second"] > 0


def test_steps_that_no_line_told_are_in_the_last_one(make: Callable[..., SFTTrainer], chat_rows: Rows) -> None:
    """Three steps, logged one by one and two by two; the last line of all is the whole run's."""
    runs = [make(chat_rows, per_device_train_batch_size=4, max_steps=3, logging_steps=every) for every in (1, 2)]
    returned = [run.train().metrics for run in runs]
    each, pairs = (run.state.log_history for run in runs)
    assert len(each) == 4 and len(pairs) == 2
    keys = ("mean_token_accuracy", "entropy", "num_tokens")
    assert [pairs[-1][key] for key in keys] == pytest.approx([each[2][key] for key in keys], rel=1e-9)
    assert [returned[1][key] for key in keys] == [pairs[-1][key] for key in keys]
    assert (
        each[-1]["num_tokens"] == each[2]["num_tokens"] and "entropy" not in each[-1] and "entropy" not in returned[0]
    )


def test_evaluation_gives_the_same_loss_packed_or_not(make: Callable[..., SFTTrainer], chat_rows: Rows) -> None:
    """All rows in one evaluation batch, and packed into few."""
    losses = []
    for changes in ({"per_device_eval_batch_size": 12}, {"per_device_eval_batch_size": 12, "eval_packing": True}):
        trainer = make(chat_rows, eval_dataset=chat_rows, **changes)
        metrics = trainer.evaluate()
        assert metrics["eval_mean_token_accuracy"] >= 0
        losses.append(metrics["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_callers_objects_stay_as_they_were(make: Callable[..., SFTTrainer], chat_rows: Rows) -> None:
    dataset, peft_config = Dataset.from_list(chat_rows), lora_config(r=2)
    before = (dataset.column_names, dataset[0], copy.deepcopy(peft_config.to_dict()))
    trainer = make(dataset, peft_config=peft_config, max_steps=1)
    vocabulary = dict(trainer.processing_class.get_vocab())
    trainer.train()
    assert (dataset.column_names, dataset[0], peft_config.to_dict()) == before
    assert trainer.processing_class.get_vocab() == vocabulary


def test_arguments_are_copied_and_plain_ones_are_taken(
    tiny_model: Callable[..., Any], tiny_tokenizer: Any, chat_rows: Rows, tmp_path: Path
) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=1, report_to="none", disable_tqdm=True)
    before = args.to_dict()
    trainer = SFTTrainer(tiny_model(), args=args, train_dataset=chat_rows, processing_class=tiny_tokenizer)
    trainer.train()
    assert args.to_dict() == before
    assert isinstance(trainer.args, SFTConfig) and trainer.args.max_length == 512 and trainer.args.max_steps == 1


@pytest.mark.parametrize("adapter", [False, True])
def test_the_saved_folder_reloads_with_the_same_logits(
    adapter: bool, make: Callable[..., SFTTrainer], chat_rows: Rows, tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    trainer = make(chat_rows, model=tiny_model(), peft_config=lora_config(r=2) if adapter else None, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    ids = torch.arange(3, 20)[None]
    expected = trainer.model.eval()(input_ids=ids).logits
    if adapter:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "saved")
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(loaded.eval()(input_ids=ids).logits, expected, rtol=0, atol=0)


def test_a_tiny_model_learns_to_answer_and_to_stop(
    make: Callable[..., SFTTrainer], tiny_model: Callable[..., Any]
) -> None:
    rows = [{"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": "yes one"}]}] * 8
    model = tiny_model(initializer_range=0.1)
    trainer = make(rows, model=model, optim="adamw_torch", learning_rate=1e-2, max_steps=40, logging_steps=40)
    prompt = trainer.processing_class("<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt")

    def answer() -> str:
        output = model.generate(**prompt, max_new_tokens=12, do_sample=False)
        return trainer.processing_class.decode(output[0, prompt["input_ids"].shape[1] :])

    before = answer()
    trainer.train()
    assert before != "yes one<|im_end|>" and answer() == "yes one<|im_end|>"


def test_generation_stops_where_training_did(
    make: Callable[..., SFTTrainer], tiny_model: Callable[..., Any], chat_rows: Rows
) -> None:
    model = tiny_model(eos_token_id=0)
    trainer = make(chat_rows, model=model)
    assert 2 in trainer.model.generation_config.eos_token_id


def test_packing_is_refused_where_documents_would_see_each_other(
    make: Callable[..., SFTTrainer], tiny_model: Callable[..., Any], chat_rows: Rows
) -> None:
    model = tiny_model("llama", attention_chunk_size=4)
    with pytest.raises(ModelError, match="packing=True"):
        make(chat_rows, model=model, packing=True)
    padded = make(chat_rows, model=model, max_steps=1)
    assert isinstance(padded.data_collator, PaddedCollator)
    padded.train()


def test_a_second_adapter_is_refused(make: Callable[..., SFTTrainer], chat_rows: Rows) -> None:
    adapted = make(chat_rows, peft_config=lora_config(r=2)).model
    with pytest.raises(ModelError, match="adapter already"):
        make(chat_rows, model=adapted, peft_config=lora_config(r=2))


def test_rows_that_cannot_be_used_are_named(make: Callable[..., SFTTrainer], chat_rows: Rows) -> None:
    with pytest.raises(DataError, match="row:13: unknown format"):
        make([*chat_rows, {"question": "?"}])
