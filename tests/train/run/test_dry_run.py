"""A dry run tells what the run then does: held against the run itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from honed.errors import DataError, ModelError, RecipeError
from honed.model.plan import plan
from honed.model.plan.step_time import flops_per_step
from honed.recipe import Recipe, load_recipe
from honed.train.options.config import SFTConfig
from honed.train.rows.token_batches import step_bounds
from honed.train.run.dry_run import dry_run, first_rows, meta_model, schedule_in_words, steps_of
from honed.train.run.run import run


@pytest.fixture
def recipe_of(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, chat_rows: list[dict[str, Any]]
) -> Callable[..., Recipe]:
    """A recipe on a tiny model and twelve rows."""
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat_rows))
    given = {"model": tmp_path / "tiny", "data.files": tmp_path / "rows.jsonl", "output": tmp_path / "run"}

    def make(*changes: str) -> Recipe:
        fixed = [f"{key}={value}" for key, value in given.items()]
        return load_recipe(None, [*fixed, "use_cpu=true", "dtype=float32", "max_length=64", *changes])

    return make


@pytest.mark.parametrize(
    "changes",
    [
        ("per_device_train_batch_size=2", "gradient_accumulation_steps=4", "num_train_epochs=2"),
        ("data.packing=true", "per_device_train_batch_size=1", "lora.target_modules=[q_proj]"),
        ("lora=null", "per_device_train_batch_size=5", "dataloader_drop_last=true", "data.eval_share=0.2"),
    ],
)
def test_what_it_says_is_what_happens(changes: tuple[str, ...], recipe_of: Callable[..., Recipe]) -> None:
    found = dry_run(recipe_of(*changes))
    assert not Path(found.recipe.output).exists()
    folder = run(recipe_of(*changes), command="", say=lambda _: None).folder
    record = json.loads((folder / "run.json").read_text())
    total = found.parameters + (found.trainable if found.recipe.lora else 0)
    assert (total, found.trainable) == (record["parameters"], record["trainable_parameters"])
    assert found.dtype == record["device"]["dtype"]
    assert found.ledger is not None
    assert found.ledger.as_dict() == json.loads((folder / "ledger.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert found.steps == max(line["step"] for line in lines)
    assert "finished run" in dry_run(recipe_of(*changes)).output.stops


def test_a_stream_is_not_read(recipe_of: Callable[..., Recipe]) -> None:
    found = dry_run(recipe_of("data.streaming=true", "max_steps=7"))
    assert (found.ledger, found.rows, found.batches, found.steps) == (None, None, None, 7)
    assert len(found.examples) == 3


def test_adjusted_options_are_told(recipe_of: Callable[..., Recipe]) -> None:
    found = dry_run(recipe_of("data.packing_strategy=wrapped", "max_length=1024"))
    assert any(note.startswith("packing_strategy has no effect") for note in found.notes)
    assert any(note.startswith("max_length is 512") for note in found.notes)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("data.files=nowhere.jsonl", DataError),
        ("model=./nowhere", ModelError),
        ("lora.target_modules=[q_prj]", ModelError),
        ("truncation_mode=keep_end", RecipeError),
        ("lr_scheduler_type=warmup_stable_decay", RecipeError),
        ("data.workers=0", RecipeError),
    ],
)
def test_what_would_stop_the_run_stops_it(change: str, error: type, recipe_of: Callable[..., Recipe]) -> None:
    with pytest.raises(error):
        dry_run(recipe_of(change))


def test_a_torn_configuration_is_named(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe_of()
    (tmp_path / "tiny" / "config.json").write_text("{")
    with pytest.raises(RecipeError, match="tiny cannot be read"):
        meta_model(str(tmp_path / "tiny"))


def test_each_source_shows_rows_with_its_own_options(tmp_path: Path, recipe_of: Callable[..., Recipe]) -> None:
    from honed.data.mix.mixture import mixture_from

    (tmp_path / "other.jsonl").write_text('{"text": "fox"}\n' * 4)
    sources = [{"files": str(tmp_path / "rows.jsonl"), "system": "Be brief."}, {"files": str(tmp_path / "other.jsonl")}]
    recipe_of()
    shown = first_rows(mixture_from(sources, seed=0), SFTConfig(output_dir=str(tmp_path)).prepare_options())
    assert [Path(source.file).name for source, *_ in shown] == ["rows.jsonl", "rows.jsonl", "other.jsonl"]
    assert [options.system for *_, options in shown] == ["Be brief.", "Be brief.", None]


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup", "cosine_with_min_lr"])
def test_the_schedule_in_words_is_transformers_own(kind: str, tmp_path: Path) -> None:
    import torch
    from transformers import get_scheduler

    options = {"min_lr_rate": 0.5} if kind == "cosine_with_min_lr" else {}
    args = SFTConfig(
        output_dir=str(tmp_path),
        lr_scheduler_type=kind,
        lr_scheduler_kwargs=options,
        warmup_steps=0.25,
        learning_rate=1,
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(
        kind,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(8),
        num_training_steps=8,
        scheduler_specific_kwargs=options,
    )
    rates = []
    for _ in range(9):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    said = schedule_in_words(args, 8)
    assert ("rises from 0 to 1 in the first 2 of 8 steps" in said) == (rates[:3] == [0, 0.5, 1])
    assert ("to 0 at" in said) == (rates[8] == pytest.approx(0, abs=1e-9))
    assert ("to 0.5 at" in said) == (rates[8] == pytest.approx(0.5))
    assert ("stays" in said or "in all" in said) == (min(rates[2:]) == 1)


def test_steps_on_several_processes() -> None:
    class Arguments:
        per_device_train_batch_size, gradient_accumulation_steps, data_parallel_size = 2, 2, 4
        dataloader_drop_last, max_steps, num_train_epochs = False, -1, 1.5
        tokens_per_step = None

    args: Any = Arguments()
    assert steps_of(args, 17) == (3, 3)  # 3 micro-batches on each process, 2 steps an epoch
    assert steps_of(args, None) == (None, -1)


def test_memory_and_operations_are_the_planners(recipe_of: Callable[..., Recipe]) -> None:
    """A step of the data's own tokens takes its share of one whose rows are all of max_length."""
    recipe = recipe_of("per_device_train_batch_size=2", "gradient_accumulation_steps=3")
    found = dry_run(recipe)
    job = plan.job_of(recipe, device="cpu")
    assert found.ledger is not None and found.tokens_per_step is not None and found.memory == plan.estimate(job).peak
    longest = flops_per_step(job, trained_share=found.ledger.trained_tokens / found.ledger.tokens)
    assert found.operations == pytest.approx(longest * found.tokens_per_step / (2 * 3 * 64))
    streamed = dry_run(recipe_of("data.streaming=true", "max_steps=7", "per_device_train_batch_size=2"))
    assert streamed.operations == pytest.approx(flops_per_step(job) / 3)
    unbounded = dry_run(recipe_of("data.max_length=null"))
    assert (unbounded.memory, unbounded.operations) == (None, None)


def test_memory_is_that_of_the_recipes_optimizer(recipe_of: Callable[..., Recipe]) -> None:
    fixed = ("lora=null", "gradient_checkpointing=false", "per_device_train_batch_size=1")
    found = {name: dry_run(recipe_of(*fixed, f"optim={name}")) for name in ("sgd", "adamw_torch_fused", "apollo_adamw")}
    memory = {name: dry.memory or 0 for name, dry in found.items()}
    assert memory["sgd"] < memory["adamw_torch_fused"] == memory["apollo_adamw"]
    told = {name: any("apollo_adamw is not known" in note for note in dry.notes) for name, dry in found.items()}
    assert told == {"sgd": False, "adamw_torch_fused": False, "apollo_adamw": True}
    auto = dry_run(recipe_of(*fixed, "gradient_checkpointing=auto", "optim=apollo_adamw")).notes
    assert sum("apollo_adamw is not known" in note for note in auto) == 1


def test_memory_is_that_of_the_weights_that_are_trained(recipe_of: Callable[..., Recipe]) -> None:
    fixed = ("lora=null", "gradient_checkpointing=false", "per_device_train_batch_size=1")
    every, last = dry_run(recipe_of(*fixed)), dry_run(recipe_of(*fixed, r"trainable=['layers\.1\.']"))
    assert every.memory is not None and last.memory is not None
    frozen = every.trainable - last.trainable
    assert every.memory - last.memory > 2 * 4 * frozen  # of AdamW's states alone
    assert last.operations is not None and every.operations is not None and last.operations < every.operations


def test_steps_chosen_by_tokens_are_counted_as_they_are_made(tmp_path: Path) -> None:
    lengths = [30, 50, 20, 90, 10, 10, 60]
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, tokens_per_step=80, num_train_epochs=2)
    made = len(step_bounds(lengths, 80)) - 1
    assert steps_of(args, len(lengths), sum(lengths)) == (made, 2 * made)


def test_steps_that_are_all_warm_up_are_told(recipe_of: Callable[..., Recipe]) -> None:
    """One step of transformers' warm-up has learning rate 0: nothing is learned."""
    assert any("first has learning rate 0" in note for note in dry_run(recipe_of("max_steps=1")).notes)
    assert not any("learning rate 0" in note for note in dry_run(recipe_of("max_steps=3")).notes)
    assert not any("learning rate 0" in n for n in dry_run(recipe_of("max_steps=1", "warmup_steps=0")).notes)
