"""SFTTrainer stopped anywhere and gone on from its checkpoint ends as if it had not been: the same bits."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import KILLS, keep_result, kill_until_done, needs_fork
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from honed.data.mix.mixture import Mixture, Part
from honed.errors import RunError
from honed.model.adapters.adapters import lora_config
from honed.train.options.config import SFTConfig
from honed.train.run_folder import checkpoint
from honed.train.trainer.trainer import SFTTrainer

CLOCKS = {"tokens_per_second", "trained_tokens_per_second", "memory_gb", "seconds"} | {
    f"{name}_{what}" for name in ("train", "eval") for what in ("runtime", "samples_per_second", "steps_per_second")
}
DROPOUT: dict[str, Any] = {"lora": True, "neftune_noise_alpha": 5.0}
WAYS: dict[str, dict[str, Any]] = {
    "flat": {"logging_steps": 2, "save_steps": 1},
    "accumulated, dropout, noise": {**DROPOUT, "gradient_accumulation_steps": 2, "logging_steps": 3, "save_steps": 1},
    "packed": {"packing": True, "max_length": 64, "save_steps": 2, **DROPOUT},
    "padded": {"attention_dropout": 0.1, "padded": True, "save_steps": 1},
    "by length": {"train_sampling_strategy": "group_by_length", "padded": True, "save_steps": 1, **DROPOUT},
    "tokens": {"tokens_per_step": 150, "save_steps": 1, "max_length": 64, "dataloader_num_workers": 1, **DROPOUT},
    "in backward": {"optimizer_in_backward": True, "max_grad_norm": 0.0, "save_steps": 1},
    "workers": {"dataloader_num_workers": 1, "save_steps": 3, **DROPOUT},
    "streamed": {
        "streaming": True, "max_steps": 14, "shuffle_buffer": 5, "save_steps": 1, **DROPOUT, "logging_steps": 3},
    "epochs": {"save_steps": 1, "eval_strategy": "epoch", "logging_strategy": "epoch", **DROPOUT},
    "evaluated": {"save_steps": 1, "eval_strategy": "steps", "eval_steps": 2, **DROPOUT},
}  # fmt: skip
Trainers = Callable[..., SFTTrainer]


class Break(TrainerCallback):
    """Breaks the run off in the midst of a step, as a crash would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            raise KeyboardInterrupt


@pytest.fixture
def begin(tiny_model: Callable[..., Any], tiny_tokenizer: Any, chat_rows: Any, tmp_path: Path) -> Trainers:
    """Makes a trainer of a job; each is a new one with a new model, as after a kill."""

    def make(out: str, *callbacks: TrainerCallback, rows: Any = None, **job: Any) -> SFTTrainer:
        shape = {"attention_dropout": job.pop("attention_dropout")} if "attention_dropout" in job else {}
        padded, lora = job.pop("padded", False), job.pop("lora", False)
        options: dict[str, Any] = {
            "output_dir": str(tmp_path / out), "use_cpu": True, "report_to": "none", "save_strategy": "steps",
            "max_length": 128, "logging_steps": 1, "disable_tqdm": True, "learning_rate": 0.01, "num_train_epochs": 3,
            "per_device_train_batch_size": 2, "gradient_checkpointing": False,
        }  # fmt: skip
        if padded:
            options["dataset_kwargs"] = None
        torch.manual_seed(0)
        return SFTTrainer(
            tiny_model("gemma2" if padded else "llama", **shape),
            args=SFTConfig(**{**options, **job}),
            train_dataset=chat_rows if rows is None else rows,
            eval_dataset=chat_rows[:5],
            processing_class=tiny_tokenizer,
            peft_config=lora_config(r=2, dropout=0.2) if lora else None,
            callbacks=list(callbacks),
        )

    return make


def log_of(trainer: SFTTrainer) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in trainer.state.log_history]


def same_weights(a: SFTTrainer, b: SFTTrainer) -> bool:
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_run_ends_with_the_same_bits(way: str, begin: Trainers) -> None:
    """It breaks in its first, an early and a late step and right behind an epoch's end; each time a new one goes on."""
    job = WAYS[way]
    whole = begin("whole", **job)
    whole.train()
    total = whole.state.max_steps
    for step in sorted({1, 4, 6 * total // 9 + 1, total}):
        with pytest.raises(KeyboardInterrupt):
            begin("run", Break(step), **job).train(resume_from_checkpoint="auto")
    resumed = begin("run", **job)
    resumed.train(resume_from_checkpoint=True)
    assert log_of(resumed) == log_of(whole)
    assert same_weights(resumed, whole)


def test_a_torn_and_a_foreign_checkpoint_are_passed_over(begin: Trainers, tmp_path: Path) -> None:
    job = {**DROPOUT, "save_steps": 3, "lr_scheduler_type": "constant"}
    whole = begin("whole", **job)
    whole.train()
    begin("run", max_steps=9, **job).train()
    weights = tmp_path / "run" / "checkpoint-9" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(RunError, match="safetensors has"):
        begin("run", **job).train(resume_from_checkpoint=str(weights.parent))
    resumed, notes = begin("run", **job), []
    resumed.tell = notes.append
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-9 is skipped: adapter_model.safetensors has" in notes[0]
    assert notes[-1] == "resuming from checkpoint-6" and same_weights(resumed, whole)
    assert [line["loss"] for line in log_of(resumed) if "loss" in line] == [
        line["loss"] for line in log_of(whole) if "loss" in line
    ]
    with pytest.raises(RunError, match="seed is 42 there, 7 here"):
        begin("run", seed=7, **job).train(resume_from_checkpoint=True)


def test_another_engine_s_checkpoint_is_not_gone_on_from(begin: Trainers, tmp_path: Path) -> None:
    """transformers would leave the optimizer's states in it out, without a word."""
    job = {"max_steps": 2, "save_steps": 1}
    begin("run", **job).train()
    newest = tmp_path / "run" / "checkpoint-2"
    (newest / "optimizer.pt").unlink()
    (newest / "latest").write_text("global_step2")
    checkpoint.seal(newest)
    with pytest.raises(RunError, match="optimizer states are of DeepSpeed below ZeRO-3 on 1 process"):
        begin("run", **job).train(resume_from_checkpoint=str(newest))
    resumed, notes = begin("run", **job), []
    resumed.tell = notes.append
    resumed.train(resume_from_checkpoint="auto")
    assert "checkpoint-2 is skipped: its optimizer states are of DeepSpeed" in notes[0]
    assert notes[-1] == "resuming from checkpoint-1"


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_nothing_in_a_checkpoint_is_executed(name: str, begin: Trainers, tmp_path: Path) -> None:
    """Not even of one that another program made, which has no manifest."""

    class Hostile:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    begin("a", max_steps=1, save_steps=1).train()
    folder = tmp_path / "a" / "checkpoint-1"
    (folder / checkpoint.MANIFEST).unlink()
    torch.save({"state": Hostile()}, folder / name)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        begin("b", max_steps=2).train(resume_from_checkpoint=str(folder))
    assert not (tmp_path / "executed").exists()


def test_another_program_s_checkpoint_is_read_before_it_is_resumed(begin: Trainers, tmp_path: Path) -> None:
    """A damaged file is named; without an optimizer's state the run says so."""
    begin("run", save_steps=1, max_steps=1, save_only_model=True).train()
    folder = tmp_path / "run" / "checkpoint-1"
    (folder / checkpoint.MANIFEST).unlink()
    trainer, said = begin("other", max_steps=2), []
    trainer.tell = said.append
    trainer.train(resume_from_checkpoint=str(folder))
    assert len(said) == 2 and "cannot be checked" in said[0] and "holds no optimizer's state" in said[1]
    for name in ("model.safetensors", "trainer_state.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(RunError, match=f"{name} cannot be read"):
            begin("other").train(resume_from_checkpoint=str(folder))
    (folder / "trainer_state.json").unlink()
    with pytest.raises(RunError, match=r"trainer_state\.json is missing"):
        begin("other").train(resume_from_checkpoint=str(folder))
    with pytest.raises(RunError, match="there is no such folder"):
        begin("other").train(resume_from_checkpoint=str(tmp_path / "none"))


def test_a_run_that_reached_its_end_takes_no_step_more(begin: Trainers) -> None:
    job = {"max_steps": 4, "save_steps": 4}
    whole = begin("run", **job)
    whole.train()
    again = begin("run", **job)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4 and same_weights(again, whole)


def test_early_stopping_goes_on_counting(begin: Trainers, caplog: pytest.LogCaptureFixture) -> None:
    """Only the first of these evaluations is better by more than 100, so the fourth is the third that is not."""
    job: dict[str, Any] = {
        "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True,
        "early_stopping_patience": 3, "early_stopping_threshold": 100.0, "num_train_epochs": 2,
    }  # fmt: skip
    whole = begin("whole", **job)
    whole.train()
    assert whole.state.global_step == 4 < whole.state.max_steps
    assert "training ends at step 4 of 12" in caplog.text and "in 3 evaluations" in caplog.text
    for step in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            begin("broken", Break(step), **job).train(resume_from_checkpoint="auto")
    resumed = begin("broken", **job)
    resumed.train(resume_from_checkpoint="auto")
    assert log_of(resumed) == log_of(whole) and same_weights(resumed, whole)
    whole.train()  # from the first step on
    assert whole.state.global_step == 4
    before = begin("whole", **{**job, "early_stopping_patience": None, "max_steps": 2})
    before.train()
    later = begin("whole", **{**job, "max_steps": 6})  # none were counted before
    later.train(resume_from_checkpoint=True)
    assert later.state.global_step == 5


def test_the_best_stays_in_the_folder_that_was_resumed_from(begin: Trainers, tmp_path: Path) -> None:
    job = {"save_steps": 1, "max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    worst = {**job, "greater_is_better": True}  # so the first evaluation is the best
    whole, resumed = begin("whole", **worst), begin("elsewhere", **worst)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.state.best_global_step == 1 and same_weights(resumed, whole)


def test_rotation_keeps_the_last_good_one_and_the_best(begin: Trainers, tmp_path: Path) -> None:
    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "learning_rate": 5.0}
    trainer = begin("run", save_steps=2, save_total_limit=1, max_steps=8, **best)
    trainer.train()
    kept = sorted(path.name for path in (tmp_path / "run").glob("*checkpoint-*"))
    assert Path(trainer.state.best_model_checkpoint).name in kept and len(kept) <= 2
    assert all(checkpoint.check(tmp_path / "run" / name) == [] for name in kept)


@pytest.mark.parametrize("more", [{}, {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}])
def test_rotation_leaves_the_checkpoints_of_others(more: Any, begin: Trainers, tmp_path: Path) -> None:
    """Those of a run with other settings, and another program's; it says so once."""
    begin("run", save_steps=3, max_steps=3, seed=7).train()
    (tmp_path / "run" / "checkpoint-1").mkdir()
    (tmp_path / "run" / "checkpoint-1" / "model.safetensors").write_bytes(b"another program's")
    trainer, said = begin("run", save_steps=2, save_total_limit=1, max_steps=8, **more), []
    trainer.tell = said.append
    trainer.train(resume_from_checkpoint="auto")
    kept = {path.name for path in (tmp_path / "run").glob("*checkpoint-*")}
    best = trainer.state.best_model_checkpoint
    assert kept == {"checkpoint-1", "checkpoint-3", "checkpoint-8" if best is None else Path(best).name}
    assert [line for line in said if "save_total_limit" in line] == [
        "save_total_limit leaves checkpoint-3, checkpoint-1 as they are: they are not from this run."
    ]


KILLED: dict[str, dict[str, Any]] = {
    "packed": {"packing": True, "max_length": 32},
    "streamed, packed": {"packing": True, "max_length": 32, "streaming": True, "shuffle_buffer": 5},
}


@needs_fork
@pytest.mark.parametrize("way", KILLED)
def test_killed_at_random_it_still_ends_with_the_same_bits(
    way: str, begin: Trainers, chat_rows: Any, tmp_path: Path, forked: Callable[..., int]
) -> None:
    """Two weighted sources, accumulation, LoRA, noise and dropout; killed in steps and in saves."""
    parts = (Part(data=chat_rows[:7], name="one", weight=2.0), Part(data=chat_rows[7:], name="other", weight=1.0))
    job = {
        **DROPOUT, **KILLED[way], "rows": Mixture(parts=parts, seed=3), "gradient_accumulation_steps": 2,
        "max_steps": 6 * (KILLS + 1), "save_steps": 1, "save_total_limit": 2, "logging_steps": 2,
    }  # fmt: skip
    whole = begin("whole", **job)
    whole.train()

    def work() -> None:
        trainer = begin("run", **job)
        trainer.train(resume_from_checkpoint="auto")
        save_file(dict(trainer.model.named_parameters()), tmp_path / "weights.safetensors")
        (tmp_path / "log.json").write_text(json.dumps(log_of(trainer)))

    def reached(kill: int) -> bool:
        return (tmp_path / "run" / f"checkpoint-{6 * kill + 2 + kill * 7 % 4}").exists()

    struck = kill_until_done(forked, work, tmp_path / "run", reached)
    assert struck.kills == KILLS and struck.in_saves
    log = json.loads((tmp_path / "log.json").read_text())
    assert log == log_of(whole) and len([line for line in log if "loss" in line]) == 3 * (KILLS + 1)
    found = load_file(tmp_path / "weights.safetensors")
    weights = dict(whole.model.named_parameters())
    assert found.keys() == weights.keys() and all(torch.equal(found[name], p) for name, p in weights.items())
    keep_result("trainer", way, **asdict(struck), steps=whole.state.max_steps, tensors_that_differ=0)
