"""`engine: plain`: the same recipe, the same folder, the same weights; and it goes on by itself."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from honed.cli.main import main
from honed.errors import ModelError, RecipeError
from honed.recipe import as_yaml, load_recipe, recipe_from
from honed.train.loop import loop
from honed.train.loop.recipe import PlainTrainer, config_of
from honed.train.options.config import SFTConfig
from honed.train.run.run import run
from honed.train.trainer.trainer import SFTTrainer


@pytest.fixture
def tree(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, chat_rows: Any) -> dict[str, Any]:
    """A recipe as YAML gives it."""
    folder, rows = tmp_path / "tiny", tmp_path / "rows.jsonl"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    rows.write_text("".join(json.dumps(row) + "\n" for row in chat_rows))
    return {
        "model": str(folder),
        "data": {"files": str(rows), "held_out": str(rows), "cache": False},
        "train": {"max_steps": 4, "learning_rate": 0.01, "per_device_train_batch_size": 4, "use_cpu": True},
        "output": str(tmp_path / "run"),
    }


def trained(tree: dict[str, Any], **changes: Any) -> Path:
    return run(recipe_from({**tree, **changes}), command="honed train", say=lambda text: None).folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("lora", [{"r": 4}, None], ids=["lora", "whole"])
def test_both_engines_leave_the_same_folder(tree: dict[str, Any], tmp_path: Path, lora: Any) -> None:
    plain = trained(tree, engine="plain", lora=lora)
    trainer = trained(tree, lora=lora, output=str(tmp_path / "other"))
    assert {path.name for path in plain.iterdir()} | {"worst_steps.json"} == {path.name for path in trainer.iterdir()}
    name = "model.safetensors" if lora is None else "adapter_model.safetensors"
    ours, theirs = load_file(plain / name), load_file(trainer / name)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[key], theirs[key], rtol=1e-5, atol=1e-7) for key in ours)
    lines = [[line for line in metrics(folder) if "loss" in line] for folder in (plain, trainer)]
    assert [line["loss"] for line in lines[0]] == pytest.approx([line["loss"] for line in lines[1]], rel=1e-6)
    assert lines[0][0].keys() == lines[1][0].keys()
    assert [line["step"] for line in metrics(plain) if "eval_loss" in line] == [3, 4]
    assert json.loads((plain / "ledger.json").read_text()) == json.loads((trainer / "ledger.json").read_text())
    assert load_recipe(plain / "recipe.yaml").engine == "plain"


def test_sigterm_ends_the_command_with_0_and_the_next_one_goes_on(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trained(tree, engine="plain", output=str(tmp_path / "whole"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(as_yaml(recipe_from(tree)))
    real = loop.train_step

    def stopped(run: Any, micro_batches: Any) -> Any:
        if run.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, micro_batches)

    monkeypatch.setattr(loop, "train_step", stopped)
    command = ["train", str(recipe), "--engine", "plain"]
    assert main(command) == 0
    folder = tmp_path / "run"
    assert "Stopped at step 2 and saved" in capsys.readouterr().out
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert not (folder / "adapter_model.safetensors").exists()

    monkeypatch.undo()
    assert main(command) == 0
    assert "resuming from checkpoint-2" in capsys.readouterr().err
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    name = "adapter_model.safetensors"
    ours, expected = load_file(folder / name), load_file(whole / name)
    assert all(torch.equal(ours[key], expected[key]) for key in expected)
    assert [line["step"] for line in metrics(folder) if "loss" in line] == [1, 2, 3, 4]

    assert main(command) == 2, "a finished run is not replaced without a word"
    assert main([*command, "--overwrite"]) == 0
    assert [line["step"] for line in metrics(folder) if "loss" in line] == [1, 2, 3, 4]


def test_sigterm_to_the_trainer_does_the_same(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trained(tree, output=str(tmp_path / "whole"))
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(as_yaml(recipe_from(tree)))
    real = SFTTrainer.training_step

    def stopped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "training_step", stopped)
    assert main(["train", str(recipe)]) == 0
    assert "Stopped at step 2 and saved" in capsys.readouterr().out
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    monkeypatch.undo()
    assert main(["train", str(recipe), "learning_rate=0.02"]) == 2, "another recipe's checkpoints are kept"
    assert "--overwrite" in capsys.readouterr().err
    assert main(["train", str(recipe)]) == 0
    assert "resuming from checkpoint-2" in capsys.readouterr().out
    name = "adapter_model.safetensors"
    ours, expected = load_file(folder / name), load_file(whole / name)
    assert all(torch.equal(ours[key], expected[key]) for key in expected)
    assert [line["step"] for line in metrics(folder) if "loss" in line] == [1, 2, 3, 4]


def test_minimind_s_schedule_can_be_asked_for(tree: dict[str, Any]) -> None:
    train = {**tree["train"], "lr_scheduler_type": "minimind", "warmup_steps": 0}
    rates = [line["learning_rate"] for line in metrics(trained(tree, engine="plain", train=train)) if "loss" in line]
    assert rates[-1] == pytest.approx(0.001)
    with pytest.raises(RecipeError, match="minimind"):
        trained(tree, train=train)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim": "sgd"}, "optim=sgd"),
        ({"adam_beta2": 0.95, "torch_compile": True}, "torch_compile"),
        ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type=polynomial"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}, "load_best"),
        ({"early_stopping_patience": 3}, "early_stopping_patience"),
        ({"loss_type": "dft"}, "loss_type"),
        ({"loss_type": "eaft"}, "loss_type"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last"),
        ({"pad_to_multiple_of": 8}, "pad_to_multiple_of"),
        ({"streaming": True, "max_steps": 3}, "streaming"),
    ],
)
def test_what_the_loop_does_not_have_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"engine=plain does not support.*{words}|engine=plain supports.*{words}"):
        config_of(SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, **changes))


def test_what_both_have_is_taken_over(tmp_path: Path) -> None:
    args = SFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        max_steps=7,
        warmup_steps=0.2,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        save_strategy="epoch",
        save_total_limit=3,
        eval_strategy="steps",
        eval_steps=5,
        bf16=True,
        adam_beta2=0.95,
        dataloader_num_workers=2,
        project="foxes",
        resume_from_checkpoint="runs/checkpoint-3",
    )
    config = config_of(args)
    assert (config.max_steps, config.warmup, config.schedule, config.floor) == (7, 0.2, "cosine", 0.1)
    assert (config.save_every, config.keep, config.eval_every, config.dtype) == ("epoch", 3, 5, "bfloat16")
    assert (config.betas, config.workers, config.project) == ((0.9, 0.95), 2, "foxes")
    assert (config.resume, config.device, config.seed) == ("runs/checkpoint-3", "cpu", 42)
    constant = SFTConfig(output_dir=str(tmp_path), lr_scheduler_type="constant", warmup_steps=5, use_cpu=True)
    assert config_of(constant).warmup == 0, "as in transformers"


def test_the_lessons_arguments_are_recipe_keys(tmp_path: Path) -> None:
    """What MiniMind's script takes, under the names that docs/loop.md gives for it."""
    args = SFTConfig(
        output_dir=str(tmp_path),
        num_train_epochs=5,
        per_device_train_batch_size=2,
        learning_rate=5e-4,
        use_cpu=True,
        bf16=True,
        gradient_accumulation_steps=4,
        max_grad_norm=0.7,
        warmup_steps=3,
        logging_steps=6,
        save_strategy="steps",
        save_steps=9,
        dataloader_num_workers=1,
        report_to="wandb",
        project="MiniMind-Notebook",
    )
    found = config_of(args)
    assert (found.epochs, found.batch_size, found.learning_rate, found.device) == (5, 2, 5e-4, "cpu")
    assert (found.dtype, found.accumulation, found.max_grad_norm, found.warmup) == ("bfloat16", 4, 0.7, 3)
    assert (found.log_every, found.save_every, found.workers) == (6, 9, 1)
    assert (found.trackers, found.project, found.resume) == (("wandb",), "MiniMind-Notebook", "auto")


def test_an_engine_that_is_not_there_is_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"engine is 'steam'.*\n.*trainer, plain"):
        trained(tree, engine="steam")


def test_packing_is_refused_where_documents_would_see_each_other(
    tree: dict[str, Any], tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    tiny_model("gemma3_text", attn_logit_softcapping=None, use_bidirectional_attention=True).save_pretrained(
        tmp_path / "tiny"
    )
    with pytest.raises(ModelError, match="cannot keep documents in a row apart"):
        trained(tree, engine="plain", data={**tree["data"], "packing": True})


@pytest.mark.parametrize("max_length", [16, 64])
def test_rotations_that_depend_on_the_longest_row_are_told(
    max_length: int, tiny_model: Callable[..., Any], tiny_tokenizer: Any, chat_rows: Any
) -> None:
    kind = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = tiny_model(max_position_embeddings=32, rope_parameters=kind)
    args = SFTConfig(use_cpu=True, report_to="none", max_length=max_length, overlong="truncate", data_cache=False)
    plain = PlainTrainer(model, args=args, train_dataset=chat_rows, processing_class=tiny_tokenizer)
    assert any("longer than 32 tokens" in note for note in plain.notes) == (max_length > 32)
